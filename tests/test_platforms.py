"""Examples for other systems: what a retry cannot help is not tried again, settings are settings, pods are valid."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from job import __version__
from job.errors import ExitCode
from k8s.render import settings_of
from tests.conftest import REPOSITORY
from tests.manifests import needs_kustomize, overlay

EXAMPLES = REPOSITORY / "k8s" / "examples"
FILES = sorted(path for path in EXAMPLES.iterdir() if path.is_file())
PAGE = (REPOSITORY / "docs" / "platforms.md").read_text()
HOPELESS = {int(code) for code in ExitCode if code.retry == "will not help"}
KILLED, TERMINATED = 137, 143
"""By SIGKILL and SIGTERM, as a shell reports it."""


def argo() -> dict[str, Any]:
    return yaml.safe_load((EXAMPLES / "argo-workflows.yaml").read_text())["spec"]  # type: ignore[no-any-return]


def batch() -> dict[str, Any]:
    return json.loads((EXAMPLES / "aws-batch.json").read_text())  # type: ignore[no-any-return]


def constants_of_the_dag() -> dict[str, Any]:
    """The values of the names in capitals; Airflow is not installed here."""
    tree = ast.parse((EXAMPLES / "airflow_dag.py").read_text())
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def pods() -> dict[str, dict[str, Any]]:
    """The specification of each pod, as Kubernetes would get it."""
    made = {}
    for template in argo()["templates"]:
        if "container" in template:
            shared = {key: argo()[key] for key in ("serviceAccountName", "securityContext", "tolerations", "volumes")}
            patch = json.loads(argo()["podSpecPatch"])
            made[f"argo {template['name']}"] = shared | patch | {"containers": [{"name": "x"} | template["container"]]}
    made["airflow"] = constants_of_the_dag()["POD"]["spec"]
    made["batch"] = batch()["eksProperties"]["podProperties"]
    return made


def variables_of(path: Path) -> dict[str, str]:
    """The variables that an example sets, with what its system puts into them left out."""
    pairs = re.findall(
        r'"?name"?: "?(THAW_\w+)"?, "?value"?: "?([^",}]+)|^ *"?(THAW_\w+)"?: "?([^"\n]+)', path.read_text(), re.M
    )
    return {name or key: value or text for name, value, key, text in pairs}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_example_is_on_the_page_and_of_this_version(path: Path) -> None:
    """By its path; the image has the version."""
    assert f"k8s/examples/{path.name}" in PAGE
    images = re.findall(r"registry\.example\.com/thaw:([\w.-]+)", path.read_text())
    assert set(images) == (set() if path.name.startswith("kueue") else {__version__})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_settings_of_an_example_are_accepted(path: Path) -> None:
    """As the program reads them. What Vertex AI says of the folder is tested with its variables."""
    found = variables_of(path)
    assert found or path.name.startswith("kueue")
    settings = settings_of({}, {key: value for key, value in found.items() if "{{" not in value})
    assert settings.storage_uri.startswith(("gs://", "s3://", "file:///")) or path.name.startswith(("vertex", "kueue"))


def test_argo_tries_again_what_can_help() -> None:
    """Its expression has the codes that cannot; a pod without an exit code is an error there."""
    (train,) = [it for it in argo()["templates"] if "retryStrategy" in it]
    (codes,) = re.findall(r"in \[([\d, ]+)\]", train["retryStrategy"]["expression"])
    assert {int(code) for code in codes.split(",")} == HOPELESS
    assert train["retryStrategy"]["expression"].startswith('lastRetry.status == "Error" || !(')


def test_a_job_of_azure_submitted_again_is_the_same_run_under_another_name() -> None:
    """A name cannot be used twice in a workspace, so neither command nor file gives one; the run has its own."""
    path = EXAMPLES / "azure-ml.yaml"
    (command,) = re.findall(r"^# +(az ml job create .+)$", path.read_text(), re.MULTILINE)
    job = yaml.safe_load(path.read_text())
    assert command == "az ml job create --file k8s/examples/azure-ml.yaml"
    assert "name" not in job
    assert job["environment_variables"]["THAW_RUN_ID"] == "cats"


def test_airflow_fails_for_good_where_a_retry_cannot_help() -> None:
    """The same codes."""
    assert constants_of_the_dag()["HOPELESS"] == HOPELESS


def test_batch_tries_again_what_can_help() -> None:
    """It knows five patterns, the first of which decides; the last is for all others."""
    rules = batch()["retryStrategy"]["evaluateOnExit"]
    assert len(rules) <= 5

    def action(code: int) -> str:
        return next(
            str(rule["action"]) for rule in rules if re.fullmatch(rule["onExitCode"].replace("*", ".*"), str(code))
        )

    again = {code for code in ExitCode if code != ExitCode.COMPLETE and int(code) not in HOPELESS}
    assert {action(code) for code in HOPELESS} == {"EXIT"}
    assert {action(code) for code in (*again, KILLED, TERMINATED)} == {"RETRY"}


@pytest.mark.parametrize("name", sorted(pods()))
def test_pods_are_valid_and_have_few_rights(name: str) -> None:
    """No root, no capability, a root file system that is read-only; one writable folder, whose limit is told."""
    pod = pods()[name]
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}
    kubernetes_validate.validate(whole, "1.31", strict=True)
    (container,) = pod["containers"]
    security = pod.get("securityContext", {}) | container["securityContext"]
    assert (security["runAsNonRoot"], security["runAsUser"]) == (True, 65532)
    assert (security["readOnlyRootFilesystem"], security["allowPrivilegeEscalation"]) == (True, False)
    assert {"name": "work", "mountPath": "/work"} in container["volumeMounts"]
    (volume,) = pod["volumes"]
    assert {"name": "THAW_WORK_BYTES", "value": volume["emptyDir"]["sizeLimit"]} in container["env"]
    if name != "batch":  # it has no such fields
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert pod["enableServiceLinks"] is False


@needs_kustomize
def test_kueue_gives_gpus_back_before_the_pods_give_up() -> None:
    """By the one field that its configuration of `v1beta2` needs; page and overlay say the same."""
    texts = [REPOSITORY / "docs/kubernetes.md", REPOSITORY / "k8s/overlays/gke-workers-kueue/kustomization.yaml"]
    (said,) = {words for path in texts for words in re.findall(r"`waitForPodsReady: (\{.*?\})`", path.read_text())}
    (minutes,) = re.findall(r"^\{timeout: (\d+)m\}$", said)
    assert 60 * int(minutes) < overlay("gke-workers-kueue").settings.worker_wait_seconds


@needs_kustomize
def test_the_queue_has_all_that_a_run_asks_for() -> None:
    """Kueue admits no workload that asks for a resource which its queue does not have."""
    run = overlay("gke-workers-kueue")
    manifests = list(yaml.safe_load_all((EXAMPLES / "kueue-topology.yaml").read_text()))
    by_kind = {it["kind"]: it for it in manifests}
    (group,) = by_kind["ClusterQueue"]["spec"]["resourceGroups"]
    resources = run.container["resources"]
    assert set(group["coveredResources"]) == resources["requests"].keys() | resources["limits"].keys()
    (flavor,) = group["flavors"]
    assert [it["name"] for it in flavor["resources"]] == group["coveredResources"]
    assert flavor["name"] == by_kind["ResourceFlavor"]["metadata"]["name"]
    assert by_kind["ResourceFlavor"]["spec"]["topologyName"] == by_kind["Topology"]["metadata"]["name"]
    assert by_kind["ResourceFlavor"]["spec"]["nodeLabels"] == run.pod["nodeSelector"]
    assert by_kind["LocalQueue"]["spec"]["clusterQueue"] == by_kind["ClusterQueue"]["metadata"]["name"]
    queue = run.workload["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert by_kind["LocalQueue"]["metadata"]["name"] == queue
