"""The schedulers of a cloud, as far as they can be checked without one: syntax, names, rights, and the commands."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kubernetes_validate
import pytest
import yaml

from job import __version__
from job.run.record import RECORD_NAME
from job.schema import Record
from job.settings.environment import read_settings
from job.settings.settings import Settings
from k8s.render import kustomize
from tests.manifests import K8S, job_spec, needs_kustomize, of_kind
from tests.services import program

CLOUD = K8S / "cloud"
WORKFLOW: dict[str, Any] = yaml.safe_load((CLOUD / "workflow.yaml").read_text())
CLOUD_RUN: dict[str, Any] = yaml.safe_load((CLOUD / "cloud-run-job.yaml").read_text())

FUNCTIONS = {
    "text.substring", "text.replace_all", "text.to_lower", "text.url_encode", "time.format", "sys.now", "map.get",
}  # fmt: skip
"""Of the standard library of Workflows, those that are used."""

CALLS = {
    "gke.request": {"cluster_id", "location", "method", "path", "query"},
    "gke.create_job": {"cluster_id", "location", "namespace", "job"},
    "gke.await_job": {"cluster_id", "location", "namespace", "job_name", "timeout", "polling_policy"},
    "googleapis.storage.v1.objects.get": {"bucket", "object", "alt"},
}
"""The connectors that are called, with the arguments that their reference lists and that are used."""


def nodes(tree: Any) -> Iterator[Any]:
    """Every mapping, list and value in a tree."""
    yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from nodes(child)


MAPPINGS = [node for node in nodes(WORKFLOW) if isinstance(node, dict)]


def test_expressions_are_well_formed_and_use_what_is_there() -> None:
    """They have Python's syntax, but for the names of constants; each function and variable exists."""
    texts = [node for node in nodes(WORKFLOW) if isinstance(node, str) and "${" in node]
    libraries = {name.split(".")[0] for name in FUNCTIONS}
    assigned = {name for node in MAPPINGS for step in node.get("assign", []) for name in step}
    results = {node[key] for node in MAPPINGS for key in ("result", "as") if key in node}
    assert len(texts) > 10
    for text in texts:
        found = re.fullmatch(r"\$\{(.+)\}", text)
        assert found is not None, text
        tree = ast.parse(found[1], mode="eval")
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - libraries
        assert called <= FUNCTIONS, text
        assert names <= assigned | results | {"args"}, text
        assert len(found[1]) <= 400, "the limit of Workflows"


def test_connectors_get_the_arguments_they_know() -> None:
    """By the names in their reference."""
    calls = [node for node in MAPPINGS if "call" in node]
    assert {node["call"] for node in calls} == set(CALLS)
    for node in calls:
        assert set(node["args"]) <= CALLS[node["call"]]


@pytest.mark.parametrize("slot_characters", [10, 13, 16])
def test_a_slot_is_a_name_for_job_and_run(slot_characters: int) -> None:
    """Of a day, an hour or a minute: a DNS label and a run id, the same for every trigger within the slot."""
    slot, job_name = [value[2:-1] for step in WORKFLOW["main"]["steps"][0]["name_slot"]["assign"]
                      for value in step.values()]  # fmt: skip

    def name_at(seconds: int) -> str:
        library = {
            "text": SimpleNamespace(
                substring=lambda text, start, end: text[start:end], replace_all=str.replace, to_lower=str.lower
            ),
            "time": SimpleNamespace(format=lambda seconds: datetime.fromtimestamp(seconds, UTC).isoformat()),
            "sys": SimpleNamespace(now=lambda: seconds),
            "args": SimpleNamespace(slot_characters=slot_characters),
        }
        return str(eval(job_name, library | {"slot": eval(slot, library)}))

    three_o_clock = int(datetime(2026, 11, 24, 3, 0, tzinfo=UTC).timestamp())
    name = name_at(three_o_clock)
    assert name == name_at(three_o_clock + 59)
    assert name != name_at(three_o_clock + 86400)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name)
    assert Settings(run_id=name).resolved_run_id() == name


@needs_kustomize
def test_the_template_never_starts_by_itself() -> None:
    """The workflow makes the Jobs, and the Job's name is the run id."""
    manifests = kustomize(CLOUD)
    for manifest in manifests + kustomize(CLOUD / "shared"):
        kubernetes_validate.validate(manifest, "1.31", strict=True)
    (cron_job,) = of_kind(manifests, "CronJob")
    assert cron_job["spec"]["suspend"] is True
    (box,) = job_spec(manifests)["template"]["spec"]["containers"]
    env = {entry["name"]: entry["valueFrom"]["fieldRef"]["fieldPath"] for entry in box["env"]}
    assert env["THAW_RUN_ID"] == "metadata.labels['batch.kubernetes.io/job-name']"
    (wait,) = [node for node in MAPPINGS if node.get("call") == "gke.await_job"]
    assert wait["args"]["timeout"] > job_spec(manifests)["activeDeadlineSeconds"]


def test_the_workflow_may_do_what_it_does_and_no_more() -> None:
    """Read one CronJob, make Jobs and look at them, list pods."""
    role, binding = yaml.safe_load_all((CLOUD / "shared" / "rbac.yaml").read_text())
    rights = {(resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    assert rights == {("cronjobs", "get"), ("jobs", "create"), ("jobs", "get"), ("pods", "list")}
    paths = [node["path"] for node in MAPPINGS if "path" in node]
    assert [path.rsplit("/", 2)[-2:] for path in paths if "cronjobs" in path] == [["cronjobs", 'thaw"}']]
    assert {node["method"] for node in MAPPINGS if "method" in node} == {"GET"}
    assert binding["roleRef"]["name"] == role["metadata"]["name"]


def test_the_outcome_is_read_from_the_record() -> None:
    """By its name and fields."""
    (read,) = [node for node in MAPPINGS if node.get("result") == "record"]
    assert f'job_name + "/{RECORD_NAME}"' in read["args"]["object"]
    fields = set(re.findall(r"record\.(\w+)", (CLOUD / "workflow.yaml").read_text()))
    assert fields
    assert fields <= set(Record.model_fields)


PLACES = {
    "PROJECT": "example-project", "LOCATION": "europe-west4-a", "CLUSTER": "training", "BUCKET": "runs.example.com",
}  # fmt: skip


@pytest.fixture(scope="module")
def gcloud_calls(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """The calls of gcloud that install.sh makes in an empty project."""
    tmp_path = tmp_path_factory.mktemp("gcloud")
    log = tmp_path / "calls"
    (tmp_path / "gcloud").write_text(
        f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]), file=open({str(log)!r}, 'a'))\n"
        "sys.exit('describe' in sys.argv)\n"
    )
    (tmp_path / "gcloud").chmod(0o755)
    env = os.environ | PLACES | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([CLOUD / "install.sh"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_the_schedule_starts_the_workflow_with_what_it_reads(gcloud_calls: list[list[str]]) -> None:
    """The body is an execution, whose argument is JSON in JSON."""
    (create,) = [call for call in gcloud_calls if call[:3] == ["scheduler", "jobs", "create"]]
    (deploy,) = [call for call in gcloud_calls if call[:2] == ["workflows", "deploy"]]
    body = json.loads(create[create.index("--message-body") + 1])
    argument = json.loads(body["argument"])
    assert set(argument) == set(re.findall(r"\bargs\.(\w+)", (CLOUD / "workflow.yaml").read_text()))
    assert argument["slot_characters"] in (10, 13, 16)
    uri = create[create.index("--uri") + 1]
    assert uri.endswith(f"/projects/example-project/locations/europe-west4/workflows/{deploy[2]}/executions")
    assert (CLOUD / deploy[deploy.index("--source") + 1]).is_file()


def test_each_account_has_the_least_roles(gcloud_calls: list[list[str]]) -> None:
    """And the names that the manifests have."""
    grants = set()
    for call in (call for call in gcloud_calls if "add-iam-policy-binding" in call):
        role, member = call[call.index("--role") + 1], call[call.index("--member") + 1]
        grants.add((member.split(":")[1].split("@")[0], role))
    assert grants == {
        ("thaw-run", "roles/storage.objectUser"),
        ("example-project.svc.id.goog[default/thaw]", "roles/iam.workloadIdentityUser"),
        ("thaw-workflow", "roles/container.clusterViewer"),
        ("thaw-workflow", "roles/logging.logWriter"),
        ("thaw-workflow", "roles/storage.objectViewer"),
        ("thaw-scheduler", "roles/workflows.invoker"),
    }
    accounts = {f"{call[3]}@example-project.iam.gserviceaccount.com" for call in gcloud_calls
                if call[:3] == ["iam", "service-accounts", "create"]}  # fmt: skip
    component = (K8S / "components" / "workload-identity" / "shared" / "kustomization.yaml").read_text()
    files = [component, *(path.read_text() for path in CLOUD.rglob("*.yaml"))]
    assert set(re.findall(r"[\w-]+@example-project\.iam\.gserviceaccount\.com", "".join(files))) <= accounts


def test_install_says_what_it_needs_and_is_clean() -> None:
    """Before it does anything; and shellcheck finds nothing."""
    env = {name: value for name, value in os.environ.items() if name not in PLACES}
    done = subprocess.run([CLOUD / "install.sh"], env=env, capture_output=True, text=True)
    assert done.returncode != 0
    assert "PROJECT: the project of the cluster" in done.stderr
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([shellcheck, CLOUD / "install.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


TASK: dict[str, Any] = CLOUD_RUN["spec"]["template"]["spec"]["template"]["spec"]


def test_a_task_of_cloud_run_has_settings_that_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same variables as anywhere; gone within the ten seconds that there are."""
    (box,) = TASK["containers"]
    values = {entry["name"]: entry["value"] for entry in box["env"]}
    for name, text in values.items():
        monkeypatch.setenv(name, text)
    settings = read_settings(values)
    assert settings.grace_seconds <= 10
    assert settings.metrics_port == 0
    assert settings.storage_uri.startswith("gs://")
    assert box["image"].endswith(f":{__version__}")
    assert box["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_attempts_of_one_execution_are_of_one_job(tmp_path: Path) -> None:
    """The command of the container hands its name on, and tini is in place of the shell, as in the image."""
    program("tini")
    (tmp_path / "python").write_text(
        '#!/bin/sh\necho "$PPID $(cat /proc/$PPID/comm) $* $THAW_JOB_UID $THAW_JOB_NAME"\n'
    )
    (tmp_path / "python").chmod(0o755)
    (box,) = TASK["containers"]
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CLOUD_RUN_EXECUTION": "thaw-x7k2p", "CLOUD_RUN_JOB": "thaw"}
    with subprocess.Popen([*box["command"], *box["args"]], env=env, stdout=subprocess.PIPE, text=True) as process:
        out, _ = process.communicate()
    assert out.split() == [str(process.pid), "tini", "-m", "job", "thaw-x7k2p", "thaw"]
    assert TASK["maxRetries"] > 0
    assert CLOUD_RUN["spec"]["template"]["spec"]["parallelism"] == 1
