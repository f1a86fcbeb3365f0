"""Deleting a run deletes nothing of another: what a namespace shares is rendered and applied apart from it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from k8s.render import CannotRender, Manifest, kustomize, of_one_run
from tests.conftest import REPOSITORY
from tests.manifests import (
    COMPONENTS,
    K8S,
    PLACES,
    kustomize_is_there,  # noqa: F401
    of_kind,
    overlay,
    pod_spec,
    render,
    run_part,
    shared_part,
)

pytestmark = pytest.mark.usefixtures("kustomize_is_there")

every_place = pytest.mark.parametrize("place", PLACES)
INSTANCE = "app.kubernetes.io/instance"
ACCOUNT_AND_POLICIES = {("ServiceAccount", "thaw"), ("NetworkPolicy", "thaw"), ("NetworkPolicy", "thaw-https")}


def write_kustomization(folder: Path, **parts: list[str]) -> None:
    """In `folder`, of parts that are named as in k8s."""
    relative = {key: [os.path.relpath(K8S / it, folder.resolve()) for it in items] for key, items in parts.items()}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(relative))


def names(manifests: list[Manifest]) -> set[tuple[str, str]]:
    return {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}


@every_place
def test_a_run_is_a_workload_and_its_settings(place: str) -> None:
    """All that `make undeploy` deletes."""
    assert {kind for kind, _ in names(run_part(place))} in ({"ConfigMap", "Job"}, {"ConfigMap", "CronJob"})
    assert len(run_part(place)) == 2


@every_place
def test_the_label_of_a_run_is_on_all_of_it_and_on_nothing_shared(place: str) -> None:
    """`kubectl delete job,cronjob,configmap --selector` deletes this run, and no more."""
    (workload,) = [manifest for manifest in run_part(place) if manifest["kind"] != "ConfigMap"]
    labels = [manifest["metadata"]["labels"].get(INSTANCE) for manifest in run_part(place)]
    assert labels == [workload["metadata"]["name"]] * 2
    assert INSTANCE not in yaml.safe_dump(shared_part(place))


@pytest.mark.parametrize(
    ("place", "more"),
    [
        ("overlays/gke", set()),
        ("overlays/gke-spot", set()),
        ("overlays/ci", set()),
        ("overlays/cron", set()),
        ("overlays/local", {("PersistentVolumeClaim", "thaw-runs")}),
        ("cloud", {("Role", "thaw-workflow"), ("RoleBinding", "thaw-workflow")}),
    ],
)
def test_what_runs_share_is_complete(place: str, more: set[tuple[str, str]]) -> None:
    """Account and policies; the claim where runs are kept on one; the rights of the workflow that starts them."""
    assert names(shared_part(place)) == ACCOUNT_AND_POLICIES | more


@every_place
def test_what_a_pod_refers_to_is_in_one_of_the_parts(place: str) -> None:
    """Its account and its claim are shared."""
    pod, shared = pod_spec(run_part(place)), names(shared_part(place))
    assert ("ServiceAccount", pod["serviceAccountName"]) in shared
    claims = [volume["persistentVolumeClaim"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
    assert all(("PersistentVolumeClaim", claim["claimName"]) in shared for claim in claims)


def test_runs_of_one_namespace_agree_on_what_they_share() -> None:
    """Applying one of them does not change it for the others."""
    shared = [shared_part(f"overlays/{name}") for name in ("gke", "gke-spot", "ci", "cron")]
    assert all(other == shared[0] for other in shared)


def test_what_runs_share_is_of_no_run() -> None:
    """It has no run id, so a run id beside it is a mistake."""
    done = render("ci", "--shared", "--run-id", "a")
    assert done.returncode == 2
    assert "not allowed with" in done.stderr


def test_neither_argo_cd_nor_flux_deletes_the_claim() -> None:
    """By their own annotations."""
    (claim,) = of_kind(overlay("local"), "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"] == {
        "argocd.argoproj.io/sync-options": "Prune=false,Delete=false",
        "kustomize.toolkit.fluxcd.io/prune": "disabled",
    }


def test_a_run_with_something_shared_in_it_is_refused(tmp_path: Path) -> None:
    """Nothing is printed that would delete it for others."""
    write_kustomization(tmp_path, resources=["overlays/local", "overlays/local/shared"])
    done = render(str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert "PersistentVolumeClaim thaw-runs" in done.stderr
    assert "hint: what must stay when one run is deleted belongs in the overlay's folder 'shared'" in done.stderr


def test_an_overlay_without_a_shared_part_says_how_to_make_one(tmp_path: Path) -> None:
    """Its run can be rendered all the same."""
    write_kustomization(tmp_path, resources=["overlays/gke"])
    assert render(str(tmp_path)).returncode == 0
    done = render(str(tmp_path), "--shared")
    assert (done.returncode, done.stdout) == (1, "")
    assert "has no folder 'shared'" in done.stderr
    assert "hint: make shared/kustomization.yaml" in done.stderr


@pytest.mark.parametrize("name", [name for name in COMPONENTS if (K8S / "components" / name / "shared").is_dir()])
def test_a_shared_part_of_a_component_in_a_run_is_refused(name: str, tmp_path: Path) -> None:
    """It would be deleted with the run, or have no effect."""
    write_kustomization(tmp_path, resources=["base"], components=[f"components/{name}/shared"])
    with pytest.raises(CannotRender):
        of_one_run(kustomize(tmp_path))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., tuple[str, str, list[Manifest]]]:
    """Runs a target that calls kubectl; returns what it says, and the arguments and manifests that kubectl gets."""
    kubectl, arguments, manifests = tmp_path / "kubectl", tmp_path / "arguments", tmp_path / "manifests"
    render_command = "kubectl kustomize" if shutil.which("kubectl") else "kustomize build"
    kubectl.write_text(
        f'#!/bin/sh\n[ "$1" != kustomize ] || PATH=${{PATH#*:}} exec {render_command} "$2"\n'
        f'echo "$*" > {arguments}\ncat > {manifests}\n'
    )
    kubectl.chmod(0o755)

    def run(*argv: str) -> tuple[str, str, list[Manifest]]:
        # The tests may be run by make themselves, whose sub-makes announce the folder.
        words = ["make", "--no-print-directory", "--old-file=setup", f"BIN={Path(sys.executable).parent}", *argv]
        env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(words, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout, arguments.read_text().strip(), list(yaml.safe_load_all(manifests.read_text()))

    return run


def test_undeploy_deletes_one_run(make: Callable[..., tuple[str, str, list[Manifest]]]) -> None:
    """The Job and the ConfigMap that have the name of this run id."""
    said, arguments, manifests = make("undeploy", "OVERLAY=local", "RUN_ID=seven")
    assert arguments == "delete --ignore-not-found -f -"
    run = list(yaml.safe_load_all(render("local", "--run-id", "seven").stdout))
    assert manifests == run
    assert names(run).isdisjoint(names(run_part("overlays/local")))
    assert said.startswith("nothing to delete"), "this kubectl has found nothing"


def test_deploy_applies_what_runs_share_and_then_the_run(make: Callable[..., tuple[str, str, list[Manifest]]]) -> None:
    """In this order, since a pod needs its account and its claim."""
    _, arguments, manifests = make("deploy", "OVERLAY=local")
    assert arguments == "apply -f -"
    assert manifests == shared_part("overlays/local") + run_part("overlays/local")
