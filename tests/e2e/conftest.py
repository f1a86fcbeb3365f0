"""A namespace for the tests, one undisturbed run to compare with, and a table of what was seen."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from k8s.render import Manifest
from tests.e2e.cluster import Event, Namespace, kubectl
from tests.e2e.runs import IMAGE, NONE, Runs, name_of_job
from tests.e2e.storage import volume_for

See = Callable[[str], None]
Deploy = Callable[..., str]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this folder needs a cluster, and minutes."""
    for item in items:
        if item.path.parent.name == "e2e":
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(1200))


@pytest.fixture
def see(record_property: Callable[[str, object], None]) -> See:
    """Notes what was seen, for the row of the test in the table."""
    return lambda what: record_property("seen", what)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One row for each test: outcome, seconds, promise, what was seen."""
    reports = [
        report
        for outcome in ("passed", "failed", "error")
        for report in terminalreporter.stats.get(outcome, [])
        if report.nodeid.startswith("tests/e2e/") and (report.when == "call" or report.failed)
    ]
    if not reports:
        return
    terminalreporter.section("What was seen in the cluster")
    for report in sorted(reports, key=lambda report: report.start):
        promise = report.nodeid.split("::")[-1].removeprefix("test_").replace("_", " ")
        seen = "; ".join(str(value) for name, value in report.user_properties if name == "seen")
        terminalreporter.line(f"{report.outcome:7}{report.duration:5.0f} s  {promise}: {seen}")


@pytest.fixture(scope="session")
def namespace(runs: Runs) -> Iterator[Namespace]:
    """A namespace with a volume and what runs share, and Pod Security `restricted`; all of it is gone afterwards."""
    if shutil.which("kubectl") is None:
        pytest.fail("kubectl is not installed")
    answer = subprocess.run(["kubectl", "get", "--raw=/readyz"], capture_output=True, text=True)
    if answer.returncode != 0:
        pytest.fail(f"no cluster answers; KUBECONFIG must name one: {answer.stderr}")
    name = f"thaw-e2e-{os.getpid()}-{int(time.time())}"
    kubectl("create", "namespace", name)
    try:
        modes = [f"pod-security.kubernetes.io/{mode}=restricted" for mode in ("enforce", "warn")]
        kubectl("label", "namespace", name, *modes)
        with volume_for(Namespace(name), image=IMAGE):
            Namespace(name).apply(runs.render_shared())
            yield Namespace(name)
            # Pods first: what is left in their volume is removed next.
            kubectl(f"--namespace={name}", "delete", "jobs,cronjobs,pods", "--all")
    finally:
        kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("overlay"))


@pytest.fixture
def deploy(namespace: Namespace, runs: Runs) -> Iterator[Deploy]:
    """Applies a run beside what runs share, and returns its Job's name; the Job is deleted afterwards."""
    deployed: list[str] = []

    def deploy(
        run_id: str,
        settings: Mapping[str, str] = NONE,
        components: tuple[str, ...] = (),
        patches: tuple[dict[str, Any], ...] = (),
    ) -> str:
        manifests = runs.render(run_id, settings, components=components, patches=patches)
        deployed.append(name_of_job(manifests))
        namespace.apply(manifests)
        return deployed[-1]

    yield deploy
    for job in deployed:
        namespace.kubectl("delete", "job", job, "--ignore-not-found")


@dataclass(frozen=True)
class Finished:
    """A complete Job: its manifests, its pod, and the log of that."""

    manifests: list[Manifest]
    applied: str
    job: str
    pod: Manifest
    log: list[Event]

    @property
    def outcome(self) -> Event:
        return self.log[-1]


@pytest.fixture(scope="session")
def undisturbed(namespace: Namespace, runs: Runs) -> Finished:
    """The run, in one go; its Job is left in the cluster."""
    manifests = runs.render("undisturbed")
    applied = namespace.apply(manifests)
    job = name_of_job(manifests)
    condition = namespace.wait_for_end(job)
    (pod,) = namespace.pods(job)
    log = namespace.log(pod["metadata"]["name"])
    assert condition["type"] == "Complete", log
    return Finished(manifests, applied, job, pod, log)
