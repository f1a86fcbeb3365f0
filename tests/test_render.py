"""`make render`: a run is a name, so Job and ConfigMap are named by it."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.render import Manifest, folder_of, kustomize, of_one_run
from tests.manifests import (
    K8S,
    config,
    container,
    kustomize_is_there,  # noqa: F401
    of_kind,
    overlay,
    render,
    settings,
)


def rendered(folder: str) -> list[Manifest]:
    """The same in this process."""
    return of_one_run(kustomize(folder_of(folder)))


def job_name(manifests: list[Manifest]) -> str:
    (job,) = of_kind(manifests, "Job")
    return job["metadata"]["name"]  # type: ignore[no-any-return]


@pytest.fixture
def overlay_with(tmp_path: Path, kustomize_is_there: None) -> Any:  # noqa: F811
    """Makes an overlay of one's own, outside of the repository: overlays/gke with other settings."""

    def make(*literals: str, **more: Any) -> str:
        folder = tmp_path / re.sub(r"\W+", "-", " ".join(literals) or "plain")
        folder.mkdir()
        content = {
            "resources": [os.path.relpath(K8S / "overlays" / "gke", folder.resolve())],
            "configMapGenerator": [{"name": "thaw-settings", "behavior": "merge", "literals": list(literals)}],
            **more,
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
        return str(folder)

    return make


@pytest.mark.usefixtures("kustomize_is_there")
def test_the_same_settings_have_the_same_manifests() -> None:
    """Byte for byte, whatever is in the environment of who renders them: applied again, all is unchanged."""
    first = render("gke")
    again = render("gke", THAW_SEED="1", THAW_RUN_ID="mine", THAW_NO_SETTING="1", THAW_BATCH_SIZE="x")
    assert first.returncode == again.returncode == 0
    assert first.stdout == again.stdout


def test_job_and_config_map_are_named_by_the_run(overlay_with: Any) -> None:
    """By the fingerprint, which run.json has too; and the run has its name before it starts."""
    manifests = rendered(overlay_with())
    values = settings(manifests)
    name = job_name(manifests)
    assert re.fullmatch(rf"thaw-{values.fingerprint()}-[0-9a-f]{{6}}", name)
    assert [source["configMapRef"]["name"] for source in container(manifests)["envFrom"]] == [name]
    assert config(manifests)["THAW_RUN_ID"] == f"cats_vs_dogs-{values.fingerprint()}"
    (job,) = of_kind(manifests, "Job")
    for labelled in (job, job["spec"]["template"], *of_kind(manifests, "ConfigMap")):
        assert labelled["metadata"]["labels"]["app.kubernetes.io/instance"] == name
    assert len(name) <= 63 - len("-xxxxx")


@pytest.mark.parametrize(
    "setting", ["THAW_SEED=1", "THAW_RUN_ID=another", "THAW_STORAGE_URI=gs://other.example.com/runs"]
)
def test_another_run_is_another_job(overlay_with: Any, setting: str) -> None:
    """Other settings, another name, or another place to keep it."""
    assert job_name(rendered(overlay_with(setting))) != job_name(overlay("gke"))


def test_an_operational_setting_changes_the_config_map_of_the_same_job(overlay_with: Any) -> None:
    """The run goes on, and its next pod reads the new value."""
    changed, before = rendered(overlay_with("THAW_CHECKPOINT_EVERY_SECONDS=30")), overlay("gke")
    assert of_kind(changed, "Job") == of_kind(before, "Job")
    assert of_kind(changed, "ConfigMap") != of_kind(before, "ConfigMap")


@pytest.mark.usefixtures("kustomize_is_there")
def test_a_run_id_can_be_given() -> None:
    """For checks of a change: its commit names the run."""
    done = render("ci", "--run-id", "ci-0a1b2c3")
    assert done.returncode == 0, done.stderr
    manifests = list(yaml.safe_load_all(done.stdout))
    assert config(manifests)["THAW_RUN_ID"] == "ci-0a1b2c3"
    assert job_name(manifests) != job_name(overlay("ci"))


def test_wrong_settings_never_reach_the_cluster(overlay_with: Any) -> None:
    """Exit code 2 and the program's own message, with every problem; nothing to apply is printed."""
    done = render(overlay_with("THAW_BATCHSIZE=3", "THAW_SEED=x"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert "THAW_BATCHSIZE: no such setting; did you mean THAW_BATCH_SIZE?" in done.stderr
    assert "THAW_SEED='x': must be a whole number" in done.stderr


@pytest.mark.usefixtures("kustomize_is_there")
def test_a_schedule_has_no_run_id() -> None:
    """One for all slots would make every slot but the first do nothing."""
    done = render("cron", "--run-id", "weekly")
    assert done.returncode == 2
    assert "THAW_RUN_ID='weekly': each slot of a CronJob is a run of its own" in done.stderr


@pytest.mark.usefixtures("kustomize_is_there")
def test_a_schedule_keeps_its_name() -> None:
    """Applied with other settings it is the same CronJob, whose next slot has them."""
    (cron_job,) = of_kind(overlay("cron"), "CronJob")
    assert cron_job["metadata"]["name"] == "thaw"


def test_a_second_job_in_an_overlay_is_refused(overlay_with: Any, tmp_path: Path) -> None:
    """Two runs are two overlays."""
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "other"}, "spec": {}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    gke = os.path.relpath(K8S / "overlays" / "gke", tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": [gke, "job.yaml"]}))
    done = render(str(tmp_path))
    assert done.returncode == 1
    assert "an overlay is one Job or CronJob, and this one has 2" in done.stderr


def test_an_overlay_that_is_not_there_is_named_with_those_that_are() -> None:
    """Nothing is guessed."""
    done = render("gke-spto")
    assert done.returncode == 1
    assert "'gke-spto' is no overlay: there are ci, cron, gke, gke-spot, local" in done.stderr


def test_without_kustomize_it_is_said_what_is_missing(tmp_path: Path) -> None:
    """On a machine with neither kubectl nor kustomize."""
    done = render("local", PATH=str(tmp_path))
    assert done.returncode == 1
    assert "neither kubectl nor kustomize is there" in done.stderr
    assert "install kubectl" in done.stderr


def test_a_setting_that_looks_like_a_number_is_printed_as_text(kustomize_is_there: None) -> None:  # noqa: F811
    """Kubernetes refuses a ConfigMap with a number in it, and reads 2e-3 as one."""
    assert "THAW_FINE_TUNE_LEARNING_RATE: '2e-3'" in render("local").stdout.replace("  ", "")


@pytest.mark.parametrize("name", ["local", "cron"])
def test_no_list_is_empty(name: str, kustomize_is_there: None) -> None:  # noqa: F811
    """The server drops an empty one, and says of each apply after that something has changed."""
    assert ": []" not in render(name).stdout
