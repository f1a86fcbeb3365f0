"""The manifests fit the program, ask the cluster for no more than they need, and each overlay does what it is for."""

import functools
import json
import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import SchemaNotFoundError, latest_version

from job import __version__
from job.cli.mirror import DATA, WEIGHTS
from job.errors import ExitCode
from job.observe import termination
from job.settings.settings import Settings
from k8s.render import Manifest, settings_of
from tests.manifests import (
    COMPONENTS,
    K8S,
    OVERLAYS,
    base,
    component,
    config,
    container,
    demo_settings,
    field_variables,
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
"""Kinds of operators, which Kubernetes itself does not have."""

every_overlay = pytest.mark.parametrize("name", OVERLAYS)


def validate(manifests: list[Manifest], version: str) -> None:
    for manifest in manifests:
        _validate_text(json.dumps(manifest), version)


@functools.cache
def _validate_text(manifest: str, version: str) -> None:
    try:
        kubernetes_validate.validate(json.loads(manifest), version, strict=True)
    except SchemaNotFoundError:
        assert json.loads(manifest)["kind"] in WITHOUT_SCHEMA


@every_overlay
def test_every_overlay_is_valid(name: str) -> None:
    """Strictly: a field that Kubernetes does not know is a mistake."""
    for version in (OLDEST, NEWEST):
        validate(overlay(name), version)


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_component_stands_alone(name: str, tmp_path: Path) -> None:
    """On the bare base it renders, is valid, and adds something."""
    manifests = component(name, tmp_path)
    validate(manifests, OLDEST)
    assert manifests != base()


@every_overlay
def test_every_variable_is_a_setting(name: str) -> None:
    """The program refuses unknown names; it learns from the cluster which Job and node it is on."""
    fields = field_variables(overlay(name))
    assert config(overlay(name)).keys() | fields.keys() <= variables()
    assert (
        fields.items()
        >= {
            "THAW_JOB_UID": "metadata.labels['batch.kubernetes.io/controller-uid']",
            "THAW_JOB_NAME": "metadata.labels['batch.kubernetes.io/job-name']",
            "THAW_NODE_NAME": "spec.nodeName",
        }.items()
    )


@every_overlay
def test_a_failed_pod_is_judged_by_its_exit_code(name: str) -> None:
    """A code that a retry cannot help fails the Job, and 42 costs no retry. Disruption comes first: with any code."""
    assert job_spec(overlay(name))["template"]["spec"]["restartPolicy"] == "Never"
    disrupted, interrupted, hopeless = job_spec(overlay(name))["podFailurePolicy"]["rules"]
    assert disrupted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    codes = {"containerName": container(overlay(name))["name"], "operator": "In"}
    assert interrupted == {"action": "Ignore", "onExitCodes": codes | {"values": [ExitCode.INTERRUPTED]}}
    will_not_help = [code for code in ExitCode if code.retry == "will not help"]
    assert hopeless == {"action": "FailJob", "onExitCodes": codes | {"values": will_not_help}}


def test_the_comments_on_exit_codes_are_those_of_the_table() -> None:
    """Beside each code its meaning; those that remain are tried again."""
    text = (K8S / "base" / "job.yaml").read_text()
    commented = {int(code): meaning for code, meaning in re.findall(r"- (\d+) # (.+)", text)}
    assert commented == {int(code): ExitCode(code).meaning for code in commented}
    (again,) = re.findall(r"exit codes (\d+), (\d+) and (\d+)", text)
    assert {0, *commented, *map(int, again)} == set(ExitCode)


@every_overlay
def test_a_run_has_one_pod_at_a_time_and_an_end(name: str) -> None:
    """The next pod waits for the last, which ends before it is killed; finished Jobs are removed."""
    spec, pod = job_spec(overlay(name)), pod_spec(overlay(name))
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec.get("parallelism", 1) == spec.get("completions", 1) == 1
    assert 0 < spec["backoffLimit"] < 10
    assert spec["activeDeadlineSeconds"] >= 3600
    assert spec["ttlSecondsAfterFinished"] >= 86400
    assert "suspend" not in spec, "applied again, it would suspend a running Job"
    # On Spot capacity there are 15 s, whatever the pod asks for.
    seconds = 16 if "cloud.google.com/gke-spot" in pod.get("nodeSelector", {}) else pod["terminationGracePeriodSeconds"]
    assert settings(overlay(name)).grace_seconds < seconds


@every_overlay
def test_the_restricted_policy_holds(name: str) -> None:
    """Pod Security `restricted`, a read-only root, no token of Kubernetes, and no variables of Services."""
    pod, box = pod_spec(overlay(name)), container(overlay(name))
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"} & set(pod)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"].get("runAsUser") != 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert box["securityContext"] == {
        "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True,
    }  # fmt: skip
    assert all("hostPort" not in port for port in box["ports"])
    (account,) = of_kind(overlay(name), "ServiceAccount")
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    assert account["automountServiceAccountToken"] is pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False


@every_overlay
def test_disk_and_memory_are_bounded(name: str) -> None:
    """Every place that is written is a volume with a bound. A limit of the CPU would throttle TensorFlow's threads."""
    manifests = overlay(name)
    values, resources = settings(manifests), container(manifests)["resources"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container(manifests)["volumeMounts"]}
    assert sorted(mounts) == sorted(volume["name"] for volume in pod_spec(manifests)["volumes"])
    assert values.storage_uri.startswith(("gs://", "file:///")), "kept beyond the life of a pod"
    places = [str(values.cache_dir), values.data_dir or "", values.storage_uri.removeprefix("file://")]
    for place in (place for place in places if place.startswith("/")):
        assert any(Path(place).is_relative_to(mount) for mount in mounts.values()), place
    for volume in pod_spec(manifests)["volumes"]:
        assert "persistentVolumeClaim" in volume or volume["emptyDir"]["sizeLimit"]
    assert "cpu" in resources["requests"]
    assert "cpu" not in resources["limits"]
    assert all(resources["limits"][kind] == resources["requests"][kind] for kind in ("memory", "ephemeral-storage"))


@every_overlay
def test_ports_and_paths_are_those_of_the_settings(name: str) -> None:
    """The named port serves /metrics; the termination message is where Kubernetes looks."""
    box, values = container(overlay(name)), settings(overlay(name))
    assert {port["name"]: port["containerPort"] for port in box["ports"]} == {"metrics": values.metrics_port}
    assert values.metrics_port == Settings().metrics_port
    assert box["terminationMessagePath"] == str(values.termination_log) == str(termination.DEFAULT_PATH)


@every_overlay
def test_policies_select_the_pod_and_let_in_only_requests_for_metrics(name: str) -> None:
    """By the labels of the pod template, which also name the version, as the image does."""
    manifests = overlay(name)
    labels = job_spec(manifests)["template"]["metadata"]["labels"]
    policies = [policy["spec"] for policy in of_kind(manifests, "NetworkPolicy")]
    assert all(policy["podSelector"]["matchLabels"].items() <= labels.items() for policy in policies)
    assert {kind for policy in policies for kind in policy["policyTypes"]} == {"Ingress", "Egress"}
    ingress = [rule for policy in policies for rule in policy.get("ingress", [])]
    assert ingress == [{"ports": [{"protocol": "TCP", "port": "metrics"}]}]
    assert labels["app.kubernetes.io/version"] == __version__
    assert re.fullmatch(rf"(.+/)?thaw:{re.escape(__version__)}(-cpu)?", container(manifests)["image"])
    assert all(item["metadata"]["labels"]["app.kubernetes.io/name"] == "thaw" for item in manifests)


def test_the_settings_of_the_base_are_few() -> None:
    """Only those that belong to a field of the Job: everything else is a default of the program."""
    assert set(config(base())) == {
        "THAW_CACHE_DIR", "THAW_GRACE_SECONDS", "THAW_METRICS_PORT", "THAW_TERMINATION_LOG",
    }  # fmt: skip
    assert settings(base()).fingerprint() == Settings().fingerprint()


def test_local_is_the_demo_without_gpu_and_bucket() -> None:
    """The run of `make demo`, kept on a claim that the pod may write to."""
    assert settings(overlay("local")).fingerprint() == settings_of({}, demo_settings()).fingerprint()
    (claim,) = of_kind(overlay("local"), "PersistentVolumeClaim")
    volumes = pod_spec(overlay("local"))["volumes"]
    claims = [it["persistentVolumeClaim"]["claimName"] for it in volumes if "persistentVolumeClaim" in it]
    assert claims == [claim["metadata"]["name"]]
    assert not [kind for kind in container(overlay("local"))["resources"]["limits"] if "/" in kind]
    assert pod_spec(overlay("local"))["securityContext"]["fsGroup"] > 0


def test_gke_is_the_recipe_on_one_l4() -> None:
    """On Spot capacity it is the same run, which commits more often."""
    manifests, spot = overlay("gke"), overlay("gke-spot")
    assert settings(manifests).fingerprint() == Settings().fingerprint()
    assert container(manifests)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod_spec(manifests)["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert settings(spot).resolved_run_id() == settings(manifests).resolved_run_id()
    assert settings(spot).checkpoint_every_seconds < settings(manifests).checkpoint_every_seconds
    assert pod_spec(spot)["nodeSelector"].items() > pod_spec(manifests)["nodeSelector"].items()
    tolerations = [[it["key"] for it in pod_spec(part)["tolerations"]] for part in (manifests, spot)]
    assert tolerations == [["nvidia.com/gpu"], ["nvidia.com/gpu", "cloud.google.com/gke-spot"]]


def test_ci_is_smaller_and_has_a_gate() -> None:
    """A result within the hour."""
    values, spec = settings(overlay("ci")), job_spec(overlay("ci"))
    assert values.min_test_accuracy is not None
    assert values.head_epochs + values.fine_tune_epochs < 4
    assert (spec["activeDeadlineSeconds"], spec["backoffLimit"]) == (3600, 1)


def test_a_slot_of_the_schedule_is_a_run_of_the_job_of_gke() -> None:
    """All pods of a slot have one run id, and slots never overlap; all else is as in `gke`."""
    (cron_job,) = of_kind(overlay("cron"), "CronJob")
    assert cron_job["spec"]["concurrencyPolicy"] == "Forbid"
    assert field_variables(overlay("cron"))["THAW_RUN_ID"] == "metadata.labels['batch.kubernetes.io/job-name']"
    assert "THAW_RUN_ID" not in config(overlay("cron"))
    # Kubernetes adds eleven characters to make the Job's name, and a label has 63 at most.
    assert len(cron_job["metadata"]["name"]) <= 52
    scheduled, once = job_spec(overlay("cron")), job_spec(overlay("gke"))
    labels = cron_job["spec"]["jobTemplate"]["metadata"]["labels"]
    assert labels == scheduled["template"]["metadata"]["labels"]
    for spec in (scheduled, once):
        (box,) = spec["template"]["spec"]["containers"]
        box["env"] = [entry for entry in box["env"] if entry["name"] != "THAW_RUN_ID"]
        box.pop("envFrom")
        spec["template"]["metadata"]["labels"].pop("app.kubernetes.io/instance")
    assert scheduled == once


def test_a_mirror_is_where_the_command_puts_it_and_replaces_the_internet(tmp_path: Path) -> None:
    """Without one HTTPS is open; with one, each way out is to addresses of the cloud, or to DNS."""
    manifests = component("mirror", tmp_path)
    values, mirror = settings(manifests), "gs://thaw.example.com/mirror"
    assert values.data_dir == f"{mirror}/{DATA}"
    assert values.weights == f"{mirror}/{WEIGHTS}/{values.backbone}_imagenet_{values.image_size}px_notop.weights.h5"
    rules, rules_without = (
        [rule for policy in of_kind(part, "NetworkPolicy") for rule in policy["spec"]["egress"]]
        for part in (manifests, base())
    )
    assert {"ports": [{"protocol": "TCP", "port": 443}]} in rules_without
    for rule in rules:
        blocks = [peer["ipBlock"]["cidr"] for peer in rule.get("to", [])]
        assert blocks or {port["port"] for port in rule["ports"]} == {53}
        assert all(block.startswith(("199.36.153.", "169.254.169.")) for block in blocks)


def test_the_pushgateway_can_be_reached(tmp_path: Path) -> None:
    """The policy allows the port and the namespace of the URL."""
    manifests = component("pushgateway", tmp_path)
    match = re.fullmatch(r"http://[a-z-]+\.([a-z-]+)\.svc:(\d+)", settings(manifests).pushgateway_url or "")
    assert match
    (policy,) = [item for item in of_kind(manifests, "NetworkPolicy") if "pushgateway" in item["metadata"]["name"]]
    assert policy["spec"]["egress"] == [{
        "ports": [{"protocol": "TCP", "port": int(match[2])}],
        "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": match[1]}}}],
    }]  # fmt: skip


def test_kueue_finds_the_queue_on_the_job_and_not_on_its_pods(tmp_path: Path) -> None:
    """A pod with the label would be queued by itself."""
    (job,) = of_kind(component("kueue", tmp_path), "Job")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert "kueue.x-k8s.io/queue-name" not in job["spec"]["template"]["metadata"]["labels"]


def test_the_service_account_names_a_google_one(tmp_path: Path) -> None:
    """By the annotation that GKE reads."""
    (account,) = of_kind(component("workload-identity", tmp_path), "ServiceAccount")
    ((key, name),) = account["metadata"]["annotations"].items()
    assert key == "iam.gke.io/gcp-service-account"
    assert re.fullmatch(r"[a-z][a-z0-9-]+@[a-z0-9-]+\.iam\.gserviceaccount\.com", name)


def test_every_place_to_change_is_in_a_reserved_domain() -> None:
    """A manifest that was not adapted reaches no bucket or registry of a stranger."""
    text = "".join(yaml.safe_dump_all(overlay(name)) for name in ("gke", "gke-spot", "ci", "cron"))
    assert {uri.split("/")[2] for uri in re.findall(r"gs://\S+", text)} == {"thaw.example.com"}
    assert set(re.findall(r"image: (\S+?)/", text)) == {"registry.example.com"}
