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
from job.cli.mirror import DATA, DIGEST_DIGITS, WEIGHTS
from job.errors import ExitCode
from job.observe.termination import DEFAULT_PATH
from job.settings.settings import Settings
from job.storage.uri import is_bucket
from k8s.render import CannotRender, Manifest, kustomize, of_one_run, settings_of
from tests.conftest import REPOSITORY, slowly
from tests.manifests import (
    COMPONENTS,
    INSTANCE,
    K8S,
    OVERLAYS,
    Manifests,
    base,
    component,
    demo_settings,
    needs_kustomize,
    overlay,
    variables,
    write_kustomization,
)
from tests.outer_kinds import API_VERSIONS, parts_of

pytestmark = needs_kustomize

OLDEST, NEWEST = "1.31", latest_version()
WITHOUT_SCHEMA = {"PodMonitor", "PodMonitoring", "PrometheusRule", "ClusterRules"} | set(API_VERSIONS)
"""Kinds of operators, which Kubernetes itself does not have."""

SINCE = {"restart-in-place": "1.35"}
"""Components that need a newer Kubernetes."""

PROMETHEUS = ["monitoring", "gmp-system", "gke-gmp-system"]
"""The namespaces from which metrics are asked for; the last two are those of Google Cloud."""

USER = int(re.findall(r"^USER (\d+):\1$", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)[0])
"""User and group of the image."""

every_overlay = pytest.mark.parametrize("name", OVERLAYS)


def validate(manifests: list[Manifest], version: str) -> None:
    for manifest in manifests:
        _validate_text(json.dumps(manifest), version)
    for part in (part for manifest in manifests if manifest["kind"] in API_VERSIONS for part in parts_of(manifest)):
        _validate_text(json.dumps(part), version)


@functools.cache
def _validate_text(manifest: str, version: str) -> None:
    try:
        kubernetes_validate.validate(json.loads(manifest), version, strict=True)
    except SchemaNotFoundError:
        assert json.loads(manifest)["kind"] in WITHOUT_SCHEMA


every_component = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=() if name in ("gpu", "minio", "mirror", "monitoring", "workers") else pytest.mark.slow
        )
        for name in COMPONENTS
    ],
)


@pytest.mark.parametrize("version", [OLDEST, pytest.param(NEWEST, marks=pytest.mark.slow)])
@every_overlay
def test_every_overlay_is_valid(name: str, version: str) -> None:
    """Strictly: a field that Kubernetes does not know is a mistake."""
    validate(overlay(name), version)


@every_component
def test_every_component_stands_alone(name: str) -> None:
    """On the bare base it renders, is valid, and adds something."""
    manifests = component(name)
    validate(manifests, SINCE.get(name, OLDEST))
    assert manifests != base()


@every_overlay
def test_every_variable_is_a_setting(name: str) -> None:
    """The program refuses unknown names; it learns from the cluster which Job, namespace and node it is in."""
    manifests = overlay(name)
    names = manifests.config.keys() | manifests.literals.keys() | manifests.fields.keys() - {"JOBSET_NAME"}
    assert {name for name in names if not name.startswith(("AWS_", "AZURE_"))} <= variables()
    assert (
        manifests.fields.items()
        >= {
            "THAW_JOB_UID": "metadata.labels['batch.kubernetes.io/controller-uid']",
            "THAW_JOB_NAME": "metadata.labels['batch.kubernetes.io/job-name']",
            "THAW_NAMESPACE": "metadata.namespace",
            "THAW_NODE_NAME": "spec.nodeName",
        }.items()
    )


@every_overlay
def test_a_failed_pod_is_judged_by_its_exit_code(name: str) -> None:
    """A code that a retry cannot help fails the Job, or the row of a sweep. 42 costs no retry, and neither does 45: of
    several workers the one that failed counts, once. Disruption comes first: with any code.
    """
    manifests = overlay(name)
    assert manifests.pod["restartPolicy"] == "Never"
    disrupted, free, hopeless = manifests.job["podFailurePolicy"]["rules"]
    assert disrupted == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    codes = {"containerName": manifests.container["name"], "operator": "In"}
    assert free == {"action": "Ignore", "onExitCodes": codes | {"values": [ExitCode.INTERRUPTED, ExitCode.PEER_LOST]}}
    will_not_help = [code for code in ExitCode if code.retry == "will not help"]
    action = "FailIndex" if manifests.settings.sweep else "FailJob"
    assert hopeless == {"action": action, "onExitCodes": codes | {"values": will_not_help}}


def test_the_comments_on_exit_codes_are_those_of_the_table() -> None:
    """Beside each code its meaning; those that remain are tried again."""
    text = (K8S / "base" / "job.yaml").read_text()
    commented = {int(code): meaning for code, meaning in re.findall(r"- (\d+) # (.+)", text)}
    assert commented == {code: ExitCode(code).meaning for code in commented}
    (again,) = re.findall(r"exit codes (\d+), (\d+), (\d+) and (\d+)", text)
    assert {0, *commented, *map(int, again)} == set(ExitCode)


@every_overlay
def test_each_worker_has_one_pod_at_a_time_and_a_run_an_end(name: str) -> None:
    """The next pod waits for the last, which ends before it is killed; finished Jobs are removed."""
    job, pod = overlay(name).job, overlay(name).pod
    assert job["podReplacementPolicy"] == "Failed"
    if overlay(name).settings.sweep:
        assert 0 < job["parallelism"] <= job["completions"]
        assert 0 < job["backoffLimitPerIndex"] < 10
        assert not {"backoffLimit", "maxFailedIndexes", "successPolicy"} & job.keys(), "a row fails alone"
    else:
        assert job.get("parallelism", 1) == job.get("completions", 1) == overlay(name).settings.workers
        assert 0 < job["backoffLimit"] < 10
    assert job["activeDeadlineSeconds"] >= 3600
    kind, spec = overlay(name).workload["kind"], overlay(name).workload["spec"]
    if kind != "TrainJob":  # it has no such field
        assert (spec if kind == "JobSet" else job)["ttlSecondsAfterFinished"] >= 86400
    assert "suspend" not in job, "applied again, it would suspend a running Job"
    # On Spot capacity there are 15 s, whatever the pod asks for.
    seconds = 16 if "cloud.google.com/gke-spot" in pod.get("nodeSelector", {}) else pod["terminationGracePeriodSeconds"]
    assert overlay(name).settings.grace_seconds < seconds


@every_overlay
def test_the_restricted_policy_holds(name: str) -> None:
    """Pod Security `restricted`, a read-only root, no token of Kubernetes, and no variables of Services."""
    pod, container = overlay(name).pod, overlay(name).container
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"} & set(pod)
    assert pod["securityContext"] == {
        "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER,
        "fsGroup": USER, "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True,
    }  # fmt: skip
    assert all("hostPort" not in port for port in container["ports"])
    (account,) = overlay(name).of_kind("ServiceAccount")
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    assert account["automountServiceAccountToken"] is pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False


@every_overlay
def test_disk_and_memory_are_bounded(name: str) -> None:
    """Every place that is written is a volume with a bound. A limit of the CPU would throttle TensorFlow's threads."""
    manifests = overlay(name)
    settings, resources = manifests.settings, manifests.container["resources"]
    mounts = {mount["name"]: mount["mountPath"] for mount in manifests.container["volumeMounts"]}
    assert sorted(mounts) == sorted(volume["name"] for volume in manifests.pod["volumes"])
    written = [volume for volume in manifests.pod["volumes"] if "configMap" not in volume]
    assert settings.storage_uri.startswith(("gs://", "s3://", "az://", "file:///")), "kept beyond the life of a pod"
    places = [
        settings.dataset,
        str(settings.cache_dir),
        settings.data_dir or "",
        settings.storage_uri.removeprefix("file://"),
    ]
    for place in (place for place in places if place.startswith("/")):
        assert any(Path(place).is_relative_to(mount) for mount in mounts.values()), place
    for volume in written:
        assert "persistentVolumeClaim" in volume or volume["emptyDir"]["sizeLimit"]
    assert "cpu" in resources["requests"]
    assert "cpu" not in resources["limits"]
    assert all(resources["limits"][kind] == resources["requests"][kind] for kind in ("memory", "ephemeral-storage"))


@every_overlay
def test_ports_labels_and_image_are_those_of_the_program(name: str) -> None:
    """Policies let in only Prometheus, to the metrics; the termination message is where Kubernetes looks.

    No probe asks for a port: only worker 0 of a Job answers, and THAW_METRICS_PORT may be 0.
    """
    manifests, container = overlay(name), overlay(name).container
    assert container["ports"] == [{"name": "metrics", "containerPort": Settings().metrics_port}]
    assert manifests.settings.metrics_port == Settings().metrics_port
    assert not {"livenessProbe", "readinessProbe", "startupProbe"} & container.keys()
    assert container["terminationMessagePath"] == str(manifests.settings.termination_log) == str(DEFAULT_PATH)
    labels = manifests.labels
    policies = [policy["spec"] for policy in manifests.of_kind("NetworkPolicy")]
    assert all(policy["podSelector"]["matchLabels"].items() <= labels.items() for policy in policies)
    assert {kind for policy in policies for kind in policy["policyTypes"]} == {"Ingress", "Egress"}
    ingress = [rule for policy in policies for rule in policy.get("ingress", [])]
    (rule,) = [rule for rule in ingress if "podSelector" not in rule["from"][0]]  # the others are between workers
    assert rule["ports"] == [{"protocol": "TCP", "port": "metrics"}]
    namespaces = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": PROMETHEUS}
    assert rule["from"] == [{"namespaceSelector": {"matchExpressions": [namespaces]}}]
    assert labels["app.kubernetes.io/version"] == __version__
    assert re.fullmatch(rf"(.+/)?thaw:{re.escape(__version__)}(-cpu)?", container["image"])
    assert all(item["metadata"]["labels"]["app.kubernetes.io/name"] == "thaw" for item in manifests)


def test_the_settings_of_the_base_are_few() -> None:
    """Only those that belong to a field of the Job: everything else is a default of the program."""
    fields_of_the_job = {
        "THAW_CACHE_DIR", "THAW_GRACE_SECONDS", "THAW_METRICS_PORT", "THAW_TERMINATION_LOG", "THAW_WAIT_SECONDS"
    }  # fmt: skip
    assert set(base().config) == fields_of_the_job
    spec = base().job
    assert (spec["backoffLimit"] + 1) * int(base().config["THAW_WAIT_SECONDS"]) <= spec["activeDeadlineSeconds"]
    assert base().settings.fingerprint() == Settings().fingerprint()


def test_local_is_the_demo_without_gpu_and_bucket() -> None:
    """The run of `make demo`, kept on a claim that the pod may write to."""
    local = overlay("local")
    assert local.settings.fingerprint() == settings_of({}, demo_settings()).fingerprint()
    (claim,) = local.of_kind("PersistentVolumeClaim")
    claims = [it["persistentVolumeClaim"]["claimName"] for it in local.pod["volumes"] if it["name"] == "runs"]
    assert claims == [claim["metadata"]["name"]]
    assert not [kind for kind in local.container["resources"]["limits"] if "/" in kind]
    assert local.container["image"] == f"thaw:{__version__}-cpu"


@pytest.mark.parametrize("name", ["local", pytest.param("own-data-pvc", marks=pytest.mark.slow)])
def test_with_a_gpu_the_image_is_the_one_for_it(name: str, tmp_path: Path) -> None:
    """In an overlay on top; an image for CPUs that has another name is refused."""
    parts = {"resources": [f"overlays/{name}"], "components": ["components/gpu"]}
    manifests = Manifests(of_one_run(kustomize(write_kustomization(tmp_path, **parts))))
    assert manifests.container["image"] == f"thaw:{__version__}"
    assert manifests.container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    mine = {"name": "thaw", "newName": "eu.gcr.io/ml/thaw", "newTag": "0a1b2c3-cpu"}
    refused = kustomize(write_kustomization(tmp_path, **parts, images=[mine]))
    with pytest.raises(CannotRender, match=r"eu\.gcr\.io/ml/thaw:0a1b2c3-cpu has no libraries for a GPU"):
        of_one_run(refused)


@pytest.mark.parametrize("resource", ["nvidia.com/mig-1g.10gb", "nvidia.com/gpu.shared"])
def test_a_part_of_a_gpu_needs_the_image_for_it_too(resource: str, tmp_path: Path) -> None:
    """It has a name of its own in the place of `nvidia.com/gpu`."""
    whole = "/spec/template/spec/containers/0/resources/limits/nvidia.com~1gpu"
    change = {"op": "move", "from": whole, "path": whole.replace("nvidia.com~1gpu", resource.replace("/", "~1"))}
    patches = [{"target": {"kind": "Job", "name": "thaw"}, "patch": yaml.safe_dump([change])}]
    images = [{"name": "thaw", "newTag": "0a1b2c3-cpu"}]
    parts = {"resources": ["base"], "components": ["components/gpu"]}
    refused = kustomize(write_kustomization(tmp_path, **parts, patches=patches, images=images))
    assert [name for name in Manifests(refused).container["resources"]["limits"] if "/" in name] == [resource]
    with pytest.raises(CannotRender, match="thaw:0a1b2c3-cpu has no libraries for a GPU"):
        of_one_run(refused)


def test_the_taints_of_nodes_with_gpus_are_tolerated() -> None:
    """Any value of NVIDIA's, as Google and Karpenter set it; on AKS also the one of Microsoft's pages."""
    nvidia = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    microsoft = {"key": "sku", "operator": "Equal", "value": "gpu", "effect": "NoSchedule"}
    tolerated = {name: overlay(name).pod["tolerations"] for name in ("gke", "eks", "aks")}
    assert tolerated == {"gke": [nvidia], "eks": [nvidia], "aks": [nvidia, microsoft]}


@pytest.mark.parametrize(
    "components",
    [
        ["openshift"],
        *slowly(["pvc-store", "openshift"], ["openshift", "pvc-store"]),
    ],
)
def test_on_openshift_the_cluster_assigns_user_and_groups(components: list[str], tmp_path: Path) -> None:
    """The pod names none, and is still not root."""
    parts = [f"components/{name}" for name in components]
    pod = Manifests(kustomize(write_kustomization(tmp_path, resources=["base"], components=parts))).pod
    assert pod["securityContext"] == {
        "runAsNonRoot": True, "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip


def test_on_openshift_names_are_found_and_its_prometheus_reads_the_metrics() -> None:
    """The pods of its DNS listen at 5353, and that is what a policy of egress is compared with."""
    policies = component("openshift").of_kind("NetworkPolicy")
    (policy,) = (it["spec"] for it in policies if it["metadata"]["name"] == "thaw-openshift")
    places = {
        direction: rules[0][peers][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        for direction, peers, rules in (("out", "to", policy["egress"]), ("in", "from", policy["ingress"]))
    }
    assert places == {"out": "openshift-dns", "in": "openshift-user-workload-monitoring"}
    assert policy["egress"][0]["ports"] == [{"protocol": name, "port": 5353} for name in ("UDP", "TCP")]
    assert policy["ingress"][0]["ports"] == [{"protocol": "TCP", "port": "metrics"}]


def test_gke_is_the_recipe_on_one_l4() -> None:
    """On Spot capacity it is the same run, which commits more often."""
    gke, spot = overlay("gke"), overlay("gke-spot")
    assert gke.settings.fingerprint() == Settings().fingerprint()
    assert gke.container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert gke.pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert spot.settings.resolved_run_id() == gke.settings.resolved_run_id()
    assert spot.settings.checkpoint_every_seconds < gke.settings.checkpoint_every_seconds
    assert spot.pod["nodeSelector"].items() > gke.pod["nodeSelector"].items()
    tolerations = [[it["key"] for it in part.pod["tolerations"]] for part in (gke, spot)]
    assert tolerations == [["nvidia.com/gpu"], ["nvidia.com/gpu", "cloud.google.com/gke-spot"]]


def test_own_images_come_from_a_bucket_or_a_claim_that_stays_as_it_is() -> None:
    """All of them are used; a claim is mounted so that neither the program nor Kubernetes changes a file."""
    bucket, claim = overlay("own-data"), overlay("own-data-pvc")
    assert is_bucket(bucket.settings.dataset)
    assert bucket.pod == overlay("gke").pod | {"containers": bucket.pod["containers"]}
    assert claim.settings.dataset == "/data/photos"
    (mount,) = [mount for mount in claim.container["volumeMounts"] if mount["mountPath"] == "/data"]
    (volume,) = [volume for volume in claim.pod["volumes"] if volume["name"] == mount["name"]]
    assert mount["readOnly"] is volume["persistentVolumeClaim"]["readOnly"] is True
    assert bucket.settings.specs() == claim.settings.specs()
    assert list(claim.settings.specs().values()) == ["train[:80%]", "train[80%:90%]", "train[90%:]"]
    assert volume["persistentVolumeClaim"]["claimName"] not in {name for _, name in claim.names}


def test_ci_is_smaller_and_has_a_gate() -> None:
    """A result within the hour."""
    settings, job = overlay("ci").settings, overlay("ci").job
    assert settings.min_test_accuracy is not None
    assert settings.head_epochs + settings.fine_tune_epochs < 4
    assert (job["activeDeadlineSeconds"], job["backoffLimit"]) == (3600, 1)


def test_a_slot_of_the_schedule_is_a_run_of_the_job_of_gke() -> None:
    """All pods of a slot have one run id, and slots never overlap; all else is as in `gke`."""
    cron, gke = overlay("cron"), overlay("gke")
    assert cron.workload["spec"]["concurrencyPolicy"] == "Forbid"
    assert cron.fields["THAW_RUN_ID"] == "metadata.labels['batch.kubernetes.io/job-name']"
    assert "THAW_RUN_ID" not in cron.config
    # Kubernetes adds eleven characters to make the Job's name, and a label has 63 at most.
    assert len(cron.name) <= 52
    labels = cron.workload["spec"]["jobTemplate"]["metadata"]["labels"]
    assert labels == cron.job["template"]["metadata"]["labels"]
    for part in (cron, gke):
        part.container["env"] = [entry for entry in part.container["env"] if entry["name"] != "THAW_RUN_ID"]
        part.container.pop("envFrom")
        part.job["template"]["metadata"]["labels"].pop(INSTANCE)
    assert cron.job == gke.job


def test_a_mirror_is_where_the_command_puts_it_and_replaces_the_internet() -> None:
    """Without one HTTPS is open; with one, each way out is to addresses of the cloud, or to DNS."""
    manifests, uri = component("mirror"), "gs://thaw.example.com/mirror"
    settings = manifests.settings
    assert settings.data_dir == f"{uri}/{DATA}"
    name = f"{settings.backbone}_imagenet_{settings.image_size}px_notop-[0-9a-f]{{{DIGEST_DIGITS}}}.weights.h5"
    assert re.fullmatch(re.escape(f"{uri}/{WEIGHTS}/") + name, settings.weights)
    rules, rules_without = (
        [rule for policy in part.of_kind("NetworkPolicy") for rule in policy["spec"]["egress"]]
        for part in (manifests, base())
    )
    assert {"ports": [{"protocol": "TCP", "port": 443}]} in rules_without
    for rule in rules:
        blocks = [peer["ipBlock"]["cidr"] for peer in rule.get("to", [])]
        assert blocks or {port["port"] for port in rule["ports"]} == {53}
        assert all(block.startswith(("199.36.153.", "169.254.", "fd00:ec2::")) for block in blocks)


@pytest.mark.parametrize(("name", "variable"), [("minio", "AWS_ENDPOINT_URL"), ("pushgateway", "THAW_PUSHGATEWAY_URL")])
def test_the_way_to_a_server_in_the_cluster_is_open(name: str, variable: str) -> None:
    """To the port and the namespace of its URL, and for nothing else than without it."""
    manifests = component(name)
    match = re.fullmatch(r"http://[a-z-]+\.([a-z-]+)\.svc:(\d+)", manifests.config[variable])
    assert match
    names = {policy["metadata"]["name"] for policy in base().of_kind("NetworkPolicy")}
    (policy,) = [it for it in manifests.of_kind("NetworkPolicy") if it["metadata"]["name"] not in names]
    assert policy["spec"] == {
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "thaw"}},
        "policyTypes": ["Egress"],
        "egress": [{
            "ports": [{"protocol": "TCP", "port": int(match[2])}],
            "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": match[1]}}}],
        }],
    }  # fmt: skip


def test_labels_and_annotations_are_those_that_other_programs_read() -> None:
    """Kueue's on the Job and not on its pods, which it would queue by themselves; that of GKE on the account."""
    job, key = component("kueue").workload, "kueue.x-k8s.io/queue-name"
    assert key in job["metadata"]["labels"]
    assert key not in job["spec"]["template"]["metadata"]["labels"]
    (account,) = component("workload-identity").of_kind("ServiceAccount")
    ((key, name),) = account["metadata"]["annotations"].items()
    assert key == "iam.gke.io/gcp-service-account"
    assert re.fullmatch(r"[a-z][a-z0-9-]+@[a-z0-9-]+\.iam\.gserviceaccount\.com", name)


def test_every_place_to_change_is_in_a_reserved_domain() -> None:
    """A manifest that was not adapted reaches no bucket or registry of a stranger."""
    names = ("gke", "gke-spot", "ci", "cron", "own-data", "eks", "minio")
    text = "".join(yaml.safe_dump_all(list(overlay(name))) for name in names)
    assert {uri.split("/")[2] for uri in re.findall(r"(?:gs|s3)://\S+", text)} == {"thaw.example.com"}
    assert set(re.findall(r"image: (\S+?)/", text)) == {"registry.example.com"}
