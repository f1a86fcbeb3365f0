"""What each overlay and component is there for."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from job.cli.mirror import DATA, WEIGHTS
from job.model.backbones import BACKBONES
from job.settings.settings import Settings
from tests.conftest import REPOSITORY
from tests.manifests import (
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
)

pytestmark = pytest.mark.usefixtures("kustomize_is_there")


def test_local_is_the_demo() -> None:
    """The same run as `make demo`, but for where things are kept."""
    makefile = (REPOSITORY / "Makefile").read_text().replace("\\\n", " ")
    (assignment,) = re.findall(r"^DEMO := (.*)$", makefile, re.MULTILINE)
    demo = dict(word.split("=", 1) for word in shlex.split(assignment))
    demo_settings = Settings(**{name.removeprefix("THAW_").lower(): text for name, text in demo.items()})  # type: ignore[arg-type]
    assert settings(overlay("local")).fingerprint() == demo_settings.fingerprint()


def test_local_needs_neither_gpu_nor_bucket() -> None:
    """Any cluster with a StorageClass will do."""
    (claim,) = of_kind(overlay("local"), "PersistentVolumeClaim")
    claimed = [volume["persistentVolumeClaim"]["claimName"] for volume in pod_spec(overlay("local"))["volumes"]
               if "persistentVolumeClaim" in volume]  # fmt: skip
    assert claimed == [claim["metadata"]["name"]]
    assert not [kind for kind in container(overlay("local"))["resources"]["limits"] if "/" in kind]
    assert pod_spec(overlay("local"))["securityContext"]["fsGroup"] > 0


def test_gke_is_the_recipe_on_one_l4() -> None:
    """The fingerprint of the defaults, on a node with the GPU that is asked for."""
    manifests = overlay("gke")
    assert settings(manifests).fingerprint() == Settings().fingerprint()
    assert container(manifests)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod_spec(manifests)["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert [toleration["key"] for toleration in pod_spec(manifests)["tolerations"]] == ["nvidia.com/gpu"]


def test_gke_spot_differs_in_where_it_runs_alone() -> None:
    """The run is the same, and may go on from one to the other."""
    spot, on_demand = overlay("gke-spot"), overlay("gke")
    assert settings(spot).resolved_run_id() == settings(on_demand).resolved_run_id()
    assert settings(spot).checkpoint_every_seconds < settings(on_demand).checkpoint_every_seconds
    assert pod_spec(spot)["nodeSelector"].items() > pod_spec(on_demand)["nodeSelector"].items()
    assert {toleration["key"] for toleration in pod_spec(spot)["tolerations"]} == {
        "nvidia.com/gpu", "cloud.google.com/gke-spot",
    }  # fmt: skip


def test_ci_is_smaller_and_has_a_gate() -> None:
    """An answer within the hour, from a part of the splits of the recipe."""
    values, spec = settings(overlay("ci")), job_spec(overlay("ci"))
    assert values.min_test_accuracy is not None
    assert values.head_epochs + values.fine_tune_epochs < 4
    assert spec["activeDeadlineSeconds"] <= 3600
    assert spec["backoffLimit"] == 1


def test_a_slot_of_the_schedule_is_a_run() -> None:
    """All pods of a slot have one run id, and pods of two slots have two; slots never overlap."""
    (cron_job,) = of_kind(overlay("cron"), "CronJob")
    assert not of_kind(overlay("cron"), "Job")
    assert cron_job["spec"]["concurrencyPolicy"] == "Forbid"
    env = {entry["name"]: entry["valueFrom"]["fieldRef"]["fieldPath"] for entry in container(overlay("cron"))["env"]}
    assert env["THAW_RUN_ID"] == "metadata.labels['batch.kubernetes.io/job-name']"
    assert "THAW_RUN_ID" not in config(overlay("cron"))
    # Kubernetes adds eleven characters to make the Job's name, and a label has 63 at most.
    assert len(cron_job["metadata"]["name"]) <= 52


def test_the_scheduled_job_is_the_one_of_gke() -> None:
    """There is one Job spec; the schedule adds the run id and nothing else."""
    scheduled, once = job_spec(overlay("cron")), job_spec(overlay("gke"))
    for spec in (scheduled, once):
        (box,) = spec["template"]["spec"]["containers"]
        box["env"] = [entry for entry in box["env"] if entry["name"] != "THAW_RUN_ID"]
        box.pop("envFrom")
        spec["template"]["metadata"]["labels"].pop("app.kubernetes.io/instance")
    assert scheduled == once
    (cron_job,) = of_kind(overlay("cron"), "CronJob")
    labels = cron_job["spec"]["jobTemplate"]["metadata"]["labels"]
    assert labels.pop("app.kubernetes.io/instance") == cron_job["metadata"]["name"]
    assert labels == scheduled["template"]["metadata"]["labels"]


def test_a_mirror_is_where_the_mirror_command_puts_it(tmp_path: Path) -> None:
    """Folders and file name are the command's."""
    values = settings(component("mirror", tmp_path))
    mirror = "gs://thaw.example.com/mirror"
    assert values.data_dir == f"{mirror}/{DATA}"
    assert values.weights == (f"{mirror}/{WEIGHTS}/{values.backbone}_imagenet_{values.image_size}px_notop.weights.h5")
    assert values.backbone in BACKBONES


def test_a_mirror_shuts_the_internet_out(tmp_path: Path) -> None:
    """Each way out is to addresses of the cloud, or asks for a name."""
    for policy in of_kind(component("mirror", tmp_path), "NetworkPolicy"):
        for rule in policy["spec"]["egress"]:
            blocks = [peer["ipBlock"]["cidr"] for peer in rule.get("to", [])]
            is_dns = {port["port"] for port in rule["ports"]} == {53}
            assert is_dns or blocks
            assert all(block.startswith(("199.36.153.", "169.254.169.")) for block in blocks)


def test_without_a_mirror_https_is_open() -> None:
    """Data and weights are downloaded."""
    rules = [rule for policy in of_kind(base(), "NetworkPolicy") for rule in policy["spec"]["egress"]]
    assert {"ports": [{"protocol": "TCP", "port": 443}]} in rules


def test_the_pushgateway_can_be_reached(tmp_path: Path) -> None:
    """The policy lets out to the port and the namespace of the URL."""
    manifests = component("pushgateway", tmp_path)
    url = settings(manifests).pushgateway_url
    assert url is not None
    namespace, port = re.fullmatch(r"http://[a-z-]+\.([a-z-]+)\.svc:(\d+)", url).groups()  # type: ignore[union-attr]
    (policy,) = [item for item in of_kind(manifests, "NetworkPolicy") if "pushgateway" in item["metadata"]["name"]]
    (rule,) = policy["spec"]["egress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": int(port)}]
    assert rule["to"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}]


def test_kueue_finds_the_queue_on_the_job_and_not_on_its_pods(tmp_path: Path) -> None:
    """A pod with the label would be queued by itself."""
    (job,) = of_kind(component("kueue", tmp_path), "Job")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert "kueue.x-k8s.io/queue-name" not in job["spec"]["template"]["metadata"]["labels"]


def test_the_service_account_names_a_google_one(tmp_path: Path) -> None:
    """By the annotation that GKE reads."""
    (account,) = of_kind(component("workload-identity", tmp_path), "ServiceAccount")
    (name,) = account["metadata"]["annotations"].values()
    assert list(account["metadata"]["annotations"]) == ["iam.gke.io/gcp-service-account"]
    assert re.fullmatch(r"[a-z][a-z0-9-]+@[a-z0-9-]+\.iam\.gserviceaccount\.com", name)


def test_every_place_to_change_is_one_that_nobody_owns() -> None:
    """A manifest that was not adapted reaches no bucket or registry of a stranger: example.com is nobody's."""
    text = "".join(yaml.safe_dump_all(overlay(name)) for name in ("gke", "gke-spot", "ci", "cron"))
    assert {uri.split("/")[2] for uri in re.findall(r"gs://\S+", text)} == {"thaw.example.com"}
    assert set(re.findall(r"image: (\S+?)/", text)) == {"registry.example.com"}


def test_the_settings_of_the_base_are_few() -> None:
    """Only those that belong to a field of the Job: everything else is a default of the program."""
    values = config(base())
    assert set(values) == {"THAW_CACHE_DIR", "THAW_GRACE_SECONDS", "THAW_METRICS_PORT", "THAW_TERMINATION_LOG"}
    assert settings(base()).fingerprint() == Settings().fingerprint()
