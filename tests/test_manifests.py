"""The manifests say what the code says, and ask the cluster for no more than they need."""

import functools
import json
import re
from pathlib import Path

import kubernetes_validate
import pytest
from kubernetes_validate.utils import SchemaNotFoundError, latest_version

from job import __version__
from job.errors import ExitCode
from job.observe import termination
from job.settings.settings import Settings
from k8s.render import Manifest
from tests.conftest import REPOSITORY
from tests.manifests import (
    COMPONENTS,
    OVERLAYS,
    base,
    component,
    config,
    container,
    job_spec,
    kustomize_is_there,  # noqa: F401
    of_kind,
    overlay,
    pod_spec,
    settings,
    variables,
)

pytestmark = pytest.mark.usefixtures("kustomize_is_there")

OLDEST, NEWEST = "1.31", latest_version()
WITHOUT_SCHEMA = {"PodMonitor", "PodMonitoring", "PrometheusRule", "ClusterRules"}
"""Kinds of operators, which no cluster has of itself."""

every_overlay = pytest.mark.parametrize("name", OVERLAYS)


def _validate(manifests: list[Manifest], version: str) -> None:
    for manifest in manifests:
        _validate_text(json.dumps(manifest), version)


@functools.cache
def _validate_text(manifest: str, version: str) -> None:
    try:
        kubernetes_validate.validate(json.loads(manifest), version, strict=True)
    except SchemaNotFoundError:
        assert json.loads(manifest)["kind"] in WITHOUT_SCHEMA


@every_overlay
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_overlay_is_valid(name: str, version: str) -> None:
    """Strictly: a field that Kubernetes does not know is a mistake."""
    _validate(overlay(name), version)


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_component_stands_alone(name: str, tmp_path: Path) -> None:
    """On the bare base it renders, is valid, and adds something."""
    manifests = component(name, tmp_path)
    _validate(manifests, OLDEST)
    assert manifests != base()


@every_overlay
def test_everything_in_the_environment_is_a_setting(name: str) -> None:
    """The program refuses what it does not know."""
    manifests = overlay(name)
    given = set(config(manifests)) | {entry["name"] for entry in container(manifests)["env"]}
    assert given <= variables()


@every_overlay
def test_a_failed_pod_is_judged_by_its_exit_code(name: str) -> None:
    """What a retry will not help, by the README, fails the Job; being told to stop costs no retry."""
    spec = job_spec(overlay(name))
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    disrupted, interrupted, hopeless = spec["podFailurePolicy"]["rules"]
    assert disrupted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    readme = (REPOSITORY / "README.md").read_text()
    will_not_help = [int(code) for code in re.findall(r"^\| (\d+) \| .* \| will not help \|$", readme, re.MULTILINE)]
    codes = {"containerName": container(overlay(name))["name"], "operator": "In"}
    assert interrupted == {"action": "Ignore", "onExitCodes": codes | {"values": [ExitCode.INTERRUPTED]}}
    assert hopeless == {"action": "FailJob", "onExitCodes": codes | {"values": will_not_help}}
    retried = {ExitCode.UNEXPECTED, ExitCode.SUPERSEDED, ExitCode.STORAGE_UNAVAILABLE}
    assert {ExitCode.COMPLETE, ExitCode.INTERRUPTED, *will_not_help, *retried} == set(ExitCode)


@every_overlay
def test_a_run_has_one_pod_at_a_time(name: str) -> None:
    """And an end: the next pod waits for the last, and neither pods nor finished Jobs stay for ever."""
    spec = job_spec(overlay(name))
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec.get("parallelism", 1) == spec.get("completions", 1) == 1
    assert 0 < spec["backoffLimit"] < 10
    assert spec["activeDeadlineSeconds"] >= 3600
    assert spec["ttlSecondsAfterFinished"] >= 86400
    assert "suspend" not in spec, "applied again, it would suspend a Job that runs"


@every_overlay
def test_the_program_leaves_before_it_is_killed(name: str) -> None:
    """On Spot capacity there are 15 s, whatever the pod asks for."""
    pod, grace_seconds = pod_spec(overlay(name)), settings(overlay(name)).grace_seconds
    assert grace_seconds < pod["terminationGracePeriodSeconds"]
    if "cloud.google.com/gke-spot" in pod.get("nodeSelector", {}):
        assert grace_seconds <= 15


@every_overlay
def test_the_restricted_policy_holds(name: str) -> None:
    """Pod Security `restricted`, and a root file system that cannot be written."""
    pod, box = pod_spec(overlay(name)), container(overlay(name))
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"} & set(pod)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"].get("runAsUser") != 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert box["securityContext"] == {
        "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True,
    }  # fmt: skip
    allowed = {"configMap", "downwardAPI", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
    assert all(set(volume) - {"name"} <= allowed for volume in pod["volumes"])
    assert all("hostPort" not in port for port in box["ports"])


@every_overlay
def test_the_pod_gets_no_token_and_no_variables_of_services(name: str) -> None:
    """It never talks to Kubernetes; and a Service `thaw` would look like settings."""
    manifests = overlay(name)
    (account,) = of_kind(manifests, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    assert pod_spec(manifests)["serviceAccountName"] == account["metadata"]["name"]
    assert pod_spec(manifests)["automountServiceAccountToken"] is False
    assert pod_spec(manifests)["enableServiceLinks"] is False


@every_overlay
def test_every_place_that_is_written_is_a_volume_with_a_bound(name: str) -> None:
    """The root is read-only, and a full disk must not take the node along."""
    manifests = overlay(name)
    mounts = {mount["name"]: mount["mountPath"] for mount in container(manifests)["volumeMounts"]}
    assert sorted(mounts) == sorted(volume["name"] for volume in pod_spec(manifests)["volumes"])
    values, storage = settings(manifests), settings(manifests).storage_uri
    places = [str(values.cache_dir), values.data_dir or "", storage.removeprefix("file://")]
    for place in (place for place in places if place.startswith("/")):
        assert any(Path(place).is_relative_to(mount) for mount in mounts.values()), place
    assert storage.startswith(("gs://", "file:///")), "kept beyond the life of a pod"
    for volume in pod_spec(manifests)["volumes"]:
        assert "persistentVolumeClaim" in volume or volume["emptyDir"]["sizeLimit"]


@every_overlay
def test_resources_are_asked_for_and_bounded(name: str) -> None:
    """Memory and disk exactly; the processor without a limit, which would throttle TensorFlow's threads."""
    resources = container(overlay(name))["resources"]
    limits, requests = resources["limits"], resources["requests"]
    assert {"memory", "ephemeral-storage"} <= set(limits)
    assert "cpu" in requests
    assert "cpu" not in limits
    assert all(limits[kind] == requests[kind] for kind in ("memory", "ephemeral-storage"))


@every_overlay
def test_ports_and_paths_are_those_of_the_settings(name: str) -> None:
    """The named port is what /metrics listens on; the termination message is where Kubernetes looks."""
    box, values = container(overlay(name)), settings(overlay(name))
    assert {port["name"]: port["containerPort"] for port in box["ports"]} == {"metrics": values.metrics_port}
    assert values.metrics_port == Settings.model_fields["metrics_port"].default
    assert box["terminationMessagePath"] == str(values.termination_log) == str(termination.DEFAULT_PATH)


@every_overlay
def test_policies_select_the_pod_and_let_in_the_metrics_alone(name: str) -> None:
    """By the labels that the pod template has."""
    policies = of_kind(overlay(name), "NetworkPolicy")
    labels = job_spec(overlay(name))["template"]["metadata"]["labels"]
    for policy in policies:
        assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
        assert "Egress" in policy["spec"]["policyTypes"]
    ingress = [rule for policy in policies for rule in policy["spec"].get("ingress", [])]
    assert ingress == [{"ports": [{"protocol": "TCP", "port": "metrics"}]}]
    assert any("Ingress" in policy["spec"]["policyTypes"] for policy in policies)


@every_overlay
def test_labels_and_image_name_the_version(name: str) -> None:
    """And no image is the latest of anything."""
    manifests = overlay(name)
    labels = job_spec(manifests)["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/name"] == "thaw"
    assert labels["app.kubernetes.io/version"] == __version__
    assert re.fullmatch(rf"(.+/)?thaw:{re.escape(__version__)}(-cpu)?", container(manifests)["image"])
    assert all(item["metadata"]["labels"]["app.kubernetes.io/name"] == "thaw" for item in manifests)


@every_overlay
def test_the_pod_learns_from_the_cluster_where_it_is(name: str) -> None:
    """By the labels that the Job controller puts on its pods."""
    env = {entry["name"]: entry["valueFrom"]["fieldRef"]["fieldPath"] for entry in container(overlay(name))["env"]}
    assert env["THAW_JOB_UID"] == "metadata.labels['batch.kubernetes.io/controller-uid']"
    assert env["THAW_JOB_NAME"] == "metadata.labels['batch.kubernetes.io/job-name']"
    assert env["THAW_NODE_NAME"] == "spec.nodeName"
