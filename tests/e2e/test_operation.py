"""What operators meet: wrong settings, two Jobs of one run, a schedule, metrics."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families

from job.errors import ExitCode
from job.observe.metrics.table import SERIES
from k8s.render import Manifest
from tests.e2e.cluster import Namespace, wait_for
from tests.e2e.conftest import Finished, See
from tests.e2e.runs import LONG, Runs, name_of_job, named


def test_a_wrong_setting_fails_the_job_at_once(namespace: Namespace, runs: Runs, see: See) -> None:
    """`make deploy` would have refused it; here the ConfigMap was edited by hand."""
    manifests = runs.render("wrong")
    named(manifests, "ConfigMap")["data"]["THAW_BATCH_SIZE"] = "many"
    job = name_of_job(manifests)
    namespace.apply(manifests)
    condition = namespace.wait_for_end(job)
    assert (condition["type"], condition["reason"]) == ("Failed", "PodFailurePolicy")
    (pod,) = namespace.pods(job)
    end = namespace.terminated(pod["metadata"]["name"])
    message = json.loads(end["message"])
    assert end["exitCode"] == message["exit_code"] == ExitCode.INVALID_SETTINGS
    assert "THAW_BATCH_SIZE" in message["reason"]
    seconds = datetime.fromisoformat(condition["lastTransitionTime"]) - datetime.fromisoformat(
        pod["metadata"]["creationTimestamp"]
    )
    see(f"after {seconds.total_seconds():.0f} s and one pod: {condition['reason']}, {message['reason']!r}")
    namespace.kubectl("delete", "job", job)


def test_a_result_below_the_gate_fails_the_job_at_once_and_stays(
    undisturbed: Finished, namespace: Namespace, runs: Runs, see: See
) -> None:
    """The gate is no part of the result: a finished run is judged again, and not trained again."""
    accuracy = undisturbed.outcome["test_accuracy"]
    assert accuracy < 1
    judged = {}
    for gate in ("1", "0.5"):
        namespace.kubectl("delete", "job", undisturbed.job)
        manifests = runs.render("undisturbed", {"THAW_MIN_TEST_ACCURACY": gate})
        assert name_of_job(manifests) == undisturbed.job
        namespace.apply(manifests)
        condition = namespace.wait_for_end(undisturbed.job)
        (pod,) = namespace.pods(undisturbed.job)
        exit_code = namespace.terminated(pod["metadata"]["name"])["exitCode"]
        judged[gate] = (condition["type"], condition.get("reason"), exit_code)
        assert "step_compiled" not in {line["event"] for line in namespace.log(pod["metadata"]["name"])}
    assert judged["1"] == ("Failed", "PodFailurePolicy", ExitCode.QUALITY_GATE)
    assert (judged["0.5"][0], judged["0.5"][2]) == ("Complete", ExitCode.COMPLETE)
    namespace.apply(undisturbed.manifests)
    see(f"accuracy {accuracy:.3f}: exit {judged['1'][2]} with a gate of 1, exit {judged['0.5'][2]} with one of 0.5")


def test_a_slot_of_a_cronjob_is_one_run_however_often_it_is_retried(
    namespace: Namespace, runs: Runs, undisturbed: Finished, see: See
) -> None:
    """The run is named by the slot's Job. A pod that is deleted meanwhile is replaced, and the next one continues."""
    every_minute = {"target": {"kind": "CronJob", "name": "thaw"}, "patch": json.dumps(EVERY_MINUTE)}
    namespace.apply(runs.render(None, components=("cron",), patches=(every_minute,)))
    try:

        def slot() -> str | None:
            jobs = namespace.get("jobs")["items"]
            names = [job["metadata"]["name"] for job in jobs if _is_owned_by_cronjob(job)]
            return str(names[0]) if names else None

        job = wait_for("a slot", slot)
        namespace.kubectl("patch", "cronjob", "thaw", "--patch", json.dumps({"spec": {"suspend": True}}))
        lost = namespace.wait_for_event(job, "epoch_finished", phase="head", epoch=0)
        namespace.kubectl("delete", "pod", lost, "--wait=false")
        condition = namespace.wait_for_end(job)
        log = namespace.log(namespace.pods(job)[-1]["metadata"]["name"])
    finally:
        namespace.kubectl("delete", "cronjob", "thaw")
    assert condition["type"] == "Complete", log
    assert {line["run_id"] for line in log} == {job}
    assert log[0]["attempt"] == 2
    assert log[-1]["model_sha256"] == undisturbed.outcome["model_sha256"]
    see(f"run {job!r}, attempt {log[0]['attempt']}, same digest")


@dataclass(frozen=True)
class Training:
    """A run that is in its last phase for as long as it is looked at: its Job, and the pod of that."""

    job: str
    pod: str


# The tests that use it are the last ones, because it takes the CPUs of the node.
@pytest.fixture(scope="module")
def training(namespace: Namespace, runs: Runs) -> Iterator[Training]:
    manifests = runs.render("training", LONG)
    job = name_of_job(manifests)
    namespace.apply(manifests)
    yield Training(job, namespace.wait_for_event(job, "epoch_finished", phase="fine_tune", epoch=0))
    namespace.kubectl("delete", "job", job)


def test_two_jobs_of_one_run_do_not_both_train(training: Training, namespace: Namespace, runs: Runs, see: See) -> None:
    """The second waits for as long as a lease lasts, and leaves with 43; the first does not notice."""
    first, trains = training.job, training.pod
    manifests = runs.render("training", LONG)
    named(manifests, "Job")["metadata"]["name"] = second = f"{first}-too"
    namespace.apply(manifests)
    try:
        waits = namespace.wait_for_event(second, "waiting")
        end = namespace.terminated(waits)
        log = namespace.log(waits)
    finally:
        namespace.kubectl("delete", "job", second)
    assert end["exitCode"] == ExitCode.SUPERSEDED
    assert [line["event"] for line in log] == ["waiting", "run_failed"]
    assert f"of Job {first} in namespace {namespace.name} on node" in json.loads(end["message"])["reason"]
    assert namespace.newest_pod(first) == trains
    assert namespace.get("pod", trains)["status"]["phase"] == "Running"
    see(f"the second: exit {end['exitCode']}, {json.loads(end['message'])['reason']!r}")


def test_metrics_are_scraped_from_the_pod(training: Training, namespace: Namespace, see: See) -> None:
    """At the port that the manifest names, while the run trains. From inside: the policy lets in only Prometheus."""
    (container,) = namespace.get("pod", training.pod)["spec"]["containers"]
    (port,) = [port["containerPort"] for port in container["ports"] if port["name"] == "metrics"]
    ask = f"from urllib.request import urlopen; print(urlopen('http://127.0.0.1:{port}/metrics').read().decode())"
    text = namespace.run(training.pod, "python", "-c", ask)
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    steps = {sample.labels["phase"]: sample.value for sample in samples if sample.name == "thaw_steps_total"}
    assert steps["head"] > 0
    assert steps["fine_tune"] > 0
    (info,) = [sample.labels for sample in samples if sample.name == "thaw_info"]
    assert info["run_id"] == "training"
    known = {series.name for series in SERIES}
    assert {sample.name for sample in samples if sample.name in known}
    see(f"port {port}: {len(samples)} samples, steps {steps}")


def test_a_person_asks_the_pod_how_the_run_is(training: Training, namespace: Namespace, see: See) -> None:
    """`kubectl exec POD -- thaw status`: the settings of the pod name the run."""
    told = json.loads(namespace.run(training.pod, "thaw", "status", "--json"))
    assert (told["run_id"], told["state"], told["condition"]) == ("training", "fine_tune", "running")
    assert told["held_by"].startswith(f"{training.pod}:")
    assert told["last_epoch"]["phase"] == "fine_tune"
    see(f"held by {told['held_by']}, {told['progress_ratio']:.0%} done")


def test_the_program_can_write_to_its_volumes_only(training: Training, namespace: Namespace, see: See) -> None:
    """The root file system is read-only, and the user is not root, for a shell in the container, too."""
    found = json.loads(namespace.run(training.pod, "python", "-c", WRITE))
    denied, written = ({place for place, error in found["places"].items() if bool(error) is it} for it in (True, False))
    assert denied == {"/", "/app", "/opt/venv", "/tmp", "/etc"}
    assert written == {"/work", "/runs"}
    assert found["user"] == 65532
    see(f"user {found['user']} writes to {', '.join(sorted(written))} and not to {', '.join(sorted(denied))}")


WRITE = """
import json, os, tempfile
def error(place):
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        return error.strerror
places = ("/", "/app", "/opt/venv", "/tmp", "/etc", "/work", "/runs")
print(json.dumps({"user": os.getuid(), "places": {place: error(place) for place in places}}))
"""


def _is_owned_by_cronjob(job: Manifest) -> bool:
    return any(owner["kind"] == "CronJob" for owner in job["metadata"].get("ownerReferences", []))


EVERY_MINUTE = {
    "apiVersion": "batch/v1",
    "kind": "CronJob",
    "metadata": {"name": "thaw"},
    "spec": {"schedule": "* * * * *"},
}
