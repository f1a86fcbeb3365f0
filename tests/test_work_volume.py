"""The program knows the limit of the volume that it writes to: above it, the kubelet evicts the pod."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.pods import WORK_BYTES
from k8s.render import kustomize, of_one_run, shared_by_runs
from tests.manifests import OVERLAYS, Manifests, needs_kustomize, overlay, run_part, write_kustomization

pytestmark = needs_kustomize

PATH = "/work"


def limit(manifests: Manifests) -> str:
    """Of the volume that is mounted at /work, where the program writes."""
    (mount,) = [it for it in manifests.container["volumeMounts"] if it["mountPath"] == PATH]
    (volume,) = [it for it in manifests.pod["volumes"] if it["name"] == mount["name"]]
    assert manifests.config["THAW_CACHE_DIR"].startswith(PATH)
    return str(volume["emptyDir"]["sizeLimit"])


def told(manifests: Manifests) -> list[str]:
    """What the program is told, once at most."""
    return [it["value"] for it in manifests.container["env"] if it["name"] == WORK_BYTES]


def run_with(folder: Path, patch: list[dict[str, Any]], **parts: list[str]) -> Manifests:
    """overlays/gke or another with a patch of the Job in an overlay on top."""
    target = {"target": {"kind": "Job", "name": "thaw"}, "patch": json.dumps(patch)}
    write_kustomization(folder, **({"resources": ["overlays/gke"]} | parts), patches=[target])
    return Manifests(of_one_run(kustomize(folder)))


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_limit_of_an_overlay_is_told_to_the_program(name: str) -> None:
    """As the volume has it, in the template of the pods, which can no more change than the volume."""
    manifests = overlay(name)
    assert told(manifests) == [limit(manifests)]


def test_another_limit_is_told_too(tmp_path: Path) -> None:
    """A person changes the volume alone."""
    change = [{"op": "replace", "path": "/spec/template/spec/volumes/0/emptyDir/sizeLimit", "value": "200Gi"}]
    for part in ("overlays/gke", "overlays/cron", "overlays/jobset"):
        manifests = run_with(tmp_path, change, resources=[part])
        assert told(manifests) == [limit(manifests)] == ["200Gi"]


def test_without_a_limit_nothing_is_told(tmp_path: Path) -> None:
    """With a volume of another kind neither: the program sees the free space of both."""
    path = "/spec/template/spec/volumes/0/emptyDir"
    assert told(run_with(tmp_path, [{"op": "remove", "path": f"{path}/sizeLimit"}])) == []
    claim = {"claimName": "scratch"}
    add = {"op": "add", "path": path.replace("emptyDir", "persistentVolumeClaim"), "value": claim}
    assert told(run_with(tmp_path, [{"op": "remove", "path": path}, add])) == []


def test_a_train_job_leaves_the_limit_to_its_runtime(tmp_path: Path) -> None:
    """The volume is in the runtime, so one of the run would be wrong."""
    (train_job,) = run_part("overlays/kubeflow-one").of_kind("TrainJob")
    assert WORK_BYTES not in yaml.safe_dump(train_job)
    shared = tmp_path / "shared"
    shared.mkdir()
    change = [{"op": "replace", "path": "/spec/template/spec/volumes/0/emptyDir/sizeLimit", "value": "200Gi"}]
    target = {"target": {"kind": "Job", "name": "thaw"}, "patch": json.dumps(change)}
    write_kustomization(shared, resources=["overlays/kubeflow-one/shared"], patches=[target])
    manifests = Manifests([*shared_by_runs(tmp_path), train_job])
    assert told(manifests) == [limit(manifests)] == ["200Gi"]
