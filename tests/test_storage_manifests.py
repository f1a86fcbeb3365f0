"""The components for S3, MinIO and Azure: who a pod is to the store, where the store is, and the way to it."""

import os
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

from job.settings.settings import Settings
from k8s.pods import WORK_BYTES
from k8s.render import examples_in, kustomize, of_one_run, shared_by_runs
from tests.conftest import REPOSITORY, slowly
from tests.manifests import Manifests, base, component, needs_kustomize, overlay, shared_part, write_kustomization
from tests.test_manifests import NEWEST, OLDEST, validate

pytestmark = needs_kustomize

OF_SECRETS = {
    "s3-secret": {"AWS_ACCESS_KEY_ID": "thaw-s3", "AWS_SECRET_ACCESS_KEY": "thaw-s3"},
    "minio": {"AWS_ACCESS_KEY_ID": "thaw-s3", "AWS_SECRET_ACCESS_KEY": "thaw-s3"},
    "azure-secret": {"AZURE_STORAGE_ACCOUNT_KEY": "thaw-azure"},
}
"""The variables that a component takes from a Secret of a person, and the name of that Secret."""


def added(manifests: Manifests) -> list[Any]:
    """The variables of the container that the base has not, nor any run."""
    known = [*base().container["env"], *(it for it in overlay("gke").container["env"] if it["name"] == WORK_BYTES)]
    return [entry for entry in manifests.container["env"] if entry not in known]


def keys(manifests: Manifests) -> dict[str, Any]:
    """The variables of the container that are from a Secret, with its name and key."""
    sources = {entry["name"]: entry.get("valueFrom", {}) for entry in manifests.container["env"]}
    return {name: source["secretKeyRef"] for name, source in sources.items() if "secretKeyRef" in source}


def secret_keys(name: str) -> dict[str, Any]:
    """What `keys` should be with this component."""
    return {key: {"name": secret, "key": key} for key, secret in OF_SECRETS[name].items()}


def rendered(folder: Path, on: list[str], name: str) -> Manifests:
    """The run of the base with the other components and then this one, as it is applied."""
    parts = [f"components/{part}" for part in [*on, name]]
    rows = [{"name": "thaw-sweep", "literals": ["rows=THAW_SEED=0\nTHAW_SEED=1\n"]}] if "sweep" in on else []
    write_kustomization(folder, resources=["base"], components=parts, configMapGenerator=rows)
    return Manifests(of_one_run(kustomize(folder)))


@pytest.mark.parametrize("on", [[], *slowly(["cron"], ["workers"], ["sweep"])])
@pytest.mark.parametrize("name", sorted(OF_SECRETS))
def test_keys_come_from_a_secret_of_a_person(name: str, on: list[str], tmp_path: Path) -> None:
    """By name and key, and nothing else of the Secret; beside what other components add to the list."""
    manifests = rendered(tmp_path, on, name)
    for version in (OLDEST, NEWEST):
        validate(manifests, version)
    assert keys(manifests) == secret_keys(name)
    of_others = {"cron": {"THAW_RUN_ID"}, "workers": {"THAW_WORKER_HOST", "THAW_WORKERS"}, "sweep": {"THAW_SWEEP"}}
    assert {it["name"] for it in added(manifests)} - keys(manifests).keys() == of_others.get("".join(on), set())
    assert manifests.of_kind("Secret") == []


@pytest.mark.parametrize(
    ("name", "key", "pattern"),
    [
        ("s3", "eks.amazonaws.com/role-arn", r"arn:aws:iam::\d{12}:role/[\w+=,.@-]+"),
        ("azure", "azure.workload.identity/client-id", r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    ],
)
def test_the_account_acts_as_one_of_the_cloud(name: str, key: str, pattern: str) -> None:
    """By the annotation that the webhook of the cloud reads; the pod names no key and no Secret."""
    manifests = component(name)
    (account,) = manifests.of_kind("ServiceAccount")
    ((found, value),) = account["metadata"]["annotations"].items()
    assert (found, bool(re.fullmatch(pattern, value))) == (key, True)
    assert manifests.pod["serviceAccountName"] == account["metadata"]["name"]
    assert added(manifests) == []


@pytest.mark.parametrize("on", [[], *slowly(["cron"])])
def test_entra_sees_the_pods_and_not_only_the_job(on: list[str], tmp_path: Path) -> None:
    """Its webhook selects pods by this label, which must be text."""
    key = "azure.workload.identity/use"
    manifests = rendered(tmp_path, on, "azure")
    assert manifests.labels[key] == "true"
    assert key not in manifests.workload["metadata"]["labels"]


def test_credentials_of_each_cloud_can_be_fetched() -> None:
    """From metadata servers and the agent of EKS Pod Identity; tokens of IRSA and of Entra are exchanged over HTTPS."""
    rules = [rule for policy in base().of_kind("NetworkPolicy") for rule in policy["spec"]["egress"]]
    open_ = {(peer["ipBlock"]["cidr"], rule["ports"][0]["port"]) for rule in rules for peer in rule.get("to", [])}
    assert open_ == {
        ("169.254.169.254/32", 80),
        ("169.254.170.23/32", 80),
        ("fd00:ec2::23/128", 80),
        ("169.254.169.252/32", 988),
    }
    assert {"ports": [{"protocol": "TCP", "port": 443}]} in rules


@pytest.mark.parametrize(
    ("name", "uri", "variables"),
    [
        ("eks", "s3://thaw.example.com/runs", {}),
        ("aks", "az://thaw/runs", {"AZURE_STORAGE_ACCOUNT_NAME": "example-project"}),
        ("minio", "s3://thaw.example.com/runs", {"AWS_ENDPOINT_URL": "http://minio.minio.svc:9000"}),
    ],
)
def test_an_overlay_of_each_platform_is_the_recipe_on_a_gpu(name: str, uri: str, variables: dict[str, str]) -> None:
    """The store is all that differs; its account cannot be one of a stranger."""
    manifests = overlay(name)
    assert manifests.settings.fingerprint() == Settings().fingerprint()
    assert manifests.settings.storage_uri == uri
    assert {key: it for key, it in manifests.config.items() if not key.startswith("THAW_")} == variables
    assert manifests.container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_a_component_of_an_account_goes_on_any_overlay(tmp_path: Path) -> None:
    """On what overlays share it adds its annotation to those that are there."""
    (tmp_path / "shared").mkdir()
    parts = {"resources": ["overlays/gke-workers/shared"], "components": ["components/s3/shared"]}
    write_kustomization(tmp_path / "shared", **parts)
    (account,) = Manifests(shared_by_runs(tmp_path)).of_kind("ServiceAccount")
    (before,) = shared_part("overlays/gke-workers").of_kind("ServiceAccount")
    annotations = account["metadata"].pop("annotations")
    role = {"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/thaw-run"}
    assert annotations == before["metadata"].pop("annotations") | role
    assert account == before


def test_kubeflow_has_the_keys_in_its_runtime(tmp_path: Path) -> None:
    """Named in `shared` too, as all that changes a pod."""
    (tmp_path / "shared").mkdir()
    for folder, shared in ((tmp_path, ""), (tmp_path / "shared", "/shared")):
        parts = {"resources": [f"overlays/kubeflow{shared}"], "components": ["components/s3-secret"]}
        write_kustomization(folder, **parts)
    manifests = Manifests(shared_by_runs(tmp_path) + of_one_run(kustomize(tmp_path)))
    refs = {
        it["name"]: it["valueFrom"]["secretKeyRef"] for it in manifests.container["env"] if "secretKeyRef" in str(it)
    }
    assert refs == {key: {"name": secret, "key": key} for key, secret in OF_SECRETS["s3-secret"].items()}


def test_the_examples_of_the_page_render(tmp_path: Path) -> None:
    """A server of one's own with its policy, and another region on EKS; nothing is left to change but names."""
    blocks = re.findall(r"^((?: {4}.*\n)+)", (REPOSITORY / "docs" / "storage.md").read_text(), re.MULTILINE)
    region, run, _, shared = blocks
    run = run.replace("0a1b2c3", "553640e6")  # to YAML a number, unless it is quoted
    here = os.path.relpath(REPOSITORY, tmp_path.resolve())
    on_eks = f"resources: [{here}/k8s/overlays/eks]\n{textwrap.dedent(region)}"
    folders = {tmp_path / "shared": shared, tmp_path / "eks": on_eks.replace(here, f"../{here}"), tmp_path: run}
    for folder, text in folders.items():
        folder.mkdir(exist_ok=True)
        (folder / "kustomization.yaml").write_text(textwrap.dedent(text).replace("../../thaw", here))
    manifests = Manifests(shared_by_runs(tmp_path) + of_one_run(kustomize(tmp_path)))
    assert manifests.settings.storage_uri == "s3://my-bucket/runs"
    assert manifests.config["AWS_ENDPOINT_URL"] == "http://minio.minio.svc:9000"
    assert examples_in(manifests) == []
    assert manifests.container["image"] == "registry.my-company.com/ml/thaw:553640e6"
    (policy,) = [it for it in manifests.of_kind("NetworkPolicy") if it["metadata"]["name"] == "thaw-minio"]
    assert policy["spec"]["egress"] == [{
        "ports": [{"protocol": "TCP", "port": 8080}],
        "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "rook-ceph"}}}],
    }]  # fmt: skip
    assert Manifests(of_one_run(kustomize(tmp_path / "eks"))).literals == {
        "AWS_REGION": "us-east-1", WORK_BYTES: "10Gi"
    }  # fmt: skip
