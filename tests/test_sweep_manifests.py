"""The manifests of a sweep: one Job with a pod for each row, which fails a row alone, and is another for other rows."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from job import cli
from job.errors import ExitCode, InvalidSettings
from job.settings.settings import Settings
from k8s.render import CannotRender, kustomize, of_one_run
from tests.manifests import K8S, Manifests, needs_kustomize, render, write_kustomization

pytestmark = needs_kustomize

ROWS = "THAW_SEED=1\n# a comment\nTHAW_SEED=2 THAW_DROPOUT=0.5\nTHAW_SEED=3\n"


def write_sweep(
    folder: Path, rows: str = ROWS, *literals: str, components: tuple[str, ...] = ("sweep",), **parts: Any
) -> Path:
    """A sweep of one's own on top of overlays/gke, or of other resources."""
    (folder / "rows").write_text(rows)
    generators: list[dict[str, Any]] = [{"name": "thaw-sweep", "files": ["rows"]}]
    if literals:
        generators.append({"name": "thaw-settings", "behavior": "merge", "literals": list(literals)})
    kustomization = {"resources": ["overlays/gke"], "configMapGenerator": generators} | parts
    return write_kustomization(folder, components=[f"components/{name}" for name in components], **kustomization)


def sweep_of(folder: Path) -> Manifests:
    return Manifests(of_one_run(kustomize(folder)))


def settings_of_pod(manifests: Manifests, index: int, tmp_path: Path) -> Settings:
    """What the program reads in the pod of an index: the rows are where the volume has them."""
    environ = manifests.config | manifests.literals
    (volume,) = [it for it in manifests.pod["volumes"] if "configMap" in it]
    (mount,) = [it for it in manifests.container["volumeMounts"] if it["name"] == volume["name"]]
    (rows,) = [
        it for it in manifests.of_kind("ConfigMap") if it["metadata"]["name"] == volume["configMap"]["name"]
    ]  # fmt: skip
    path = Path(environ["THAW_SWEEP"])
    assert str(path.parent) == mount["mountPath"]
    (tmp_path / path.name).write_text(rows["data"][path.name])
    environ |= {"THAW_SWEEP": str(tmp_path / path.name), "JOB_COMPLETION_INDEX": str(index)}
    settings: Settings = cli.read("run", [], environ).settings
    return settings


def test_each_pod_has_the_settings_of_its_row(tmp_path: Path) -> None:
    """As many completions as rows, each a run of its own; no more pods at a time than there are rows."""
    manifests = sweep_of(write_sweep(tmp_path, ROWS, "THAW_BATCH_SIZE=64"))
    assert (manifests.job["completionMode"], manifests.job["completions"]) == ("Indexed", 3)
    found = [settings_of_pod(manifests, index, tmp_path) for index in range(3)]
    assert [(it.seed, it.dropout, it.batch_size) for it in found] == [(1, 0.2, 64), (2, 0.5, 64), (3, 0.2, 64)]
    assert len({it.run_uri() for it in found}) == 3
    assert sweep_of(write_sweep(tmp_path, "THAW_SEED=1")).job["parallelism"] == 1


@pytest.mark.slow
def test_other_rows_are_another_job(tmp_path: Path) -> None:
    """The rows of a Job that runs never change under it; comments are none of them."""
    names = {
        sweep_of(write_sweep(tmp_path, rows)).name: rows
        for rows in (ROWS, "THAW_SEED=1", "THAW_SEED=2", ROWS + "THAW_SEED=4", "".join(reversed(ROWS.splitlines(True))))
    }
    assert len(names) == 5
    before = sweep_of(write_sweep(tmp_path))
    after = sweep_of(write_sweep(tmp_path, ROWS.replace("# a comment", "# another")))
    assert before.workload == after.workload
    single = write_kustomization(tmp_path, resources=["overlays/gke"], configMapGenerator=[
        {"name": "thaw-settings", "behavior": "merge", "literals": ["THAW_SEED=1"]}
    ])  # fmt: skip
    assert sweep_of(single).name not in names, "a sweep of one row is another Job than the run alone"


def test_everything_of_a_sweep_is_deleted_with_it(tmp_path: Path) -> None:
    """The rows too have the label and the name of the Job."""
    manifests = sweep_of(write_sweep(tmp_path))
    assert manifests.names == {
        ("Job", manifests.name), ("ConfigMap", manifests.name), ("ConfigMap", f"{manifests.name}-rows")
    }  # fmt: skip
    labels = [it["metadata"]["labels"] for it in manifests]
    assert {it["app.kubernetes.io/instance"] for it in labels} == {manifests.name}


def test_the_name_of_a_sweep_is_part_of_those_of_its_runs(tmp_path: Path) -> None:
    """The run id of the overlay, or of the command."""
    run = render(str(write_sweep(tmp_path, "THAW_SEED=1\nTHAW_SEED=2")), "--run-id", "seeds")
    manifests = Manifests(yaml.safe_load_all(run.stdout))
    names = [settings_of_pod(manifests, index, tmp_path).resolved_run_id() for index in range(2)]
    assert names == [f"seeds-{Settings(seed=seed).fingerprint()}" for seed in (1, 2)]


@pytest.mark.slow
def test_a_sweep_can_be_on_a_schedule(tmp_path: Path) -> None:
    """Each slot is a name for its runs; a row may not have another."""
    manifests = sweep_of(write_sweep(tmp_path, components=("sweep", "cron")))
    assert (manifests.workload["kind"], manifests.job["completions"]) == ("CronJob", 3)
    slot = {"THAW_RUN_ID": "thaw-29"}
    manifests.config.update(slot)
    assert settings_of_pod(manifests, 0, tmp_path).resolved_run_id() == f"thaw-29-{Settings(seed=1).fingerprint()}"
    with pytest.raises(InvalidSettings, match=r"row 1: .*THAW_RUN_ID: each slot of a CronJob is a run of its own"):
        sweep_of(write_sweep(tmp_path, "THAW_SEED=1\nTHAW_RUN_ID=a", components=("sweep", "cron")))


def test_wrong_rows_never_reach_the_cluster(tmp_path: Path) -> None:
    """The message is the program's own; the others are in test_sweep.py."""
    done = render(str(write_sweep(tmp_path, ROWS + "THAW_SEDE=1")))
    assert (done.returncode, done.stdout) == (ExitCode.INVALID_SETTINGS, "")
    assert done.stderr.count("rows:5: THAW_SEDE: no such setting; did you mean THAW_SEED?") == 1


def test_rows_and_workers_cannot_share_an_index(tmp_path: Path) -> None:
    """In either order of the components."""
    for components in (("sweep", "workers"), ("workers", "sweep")):
        with pytest.raises(InvalidSettings, match="leave out `components/workers`, or `components/sweep`"):
            sweep_of(write_sweep(tmp_path, components=components))


@pytest.mark.slow
def test_a_sweep_without_rows_is_explained(tmp_path: Path) -> None:
    """And one that is in another controller's Job."""
    folder = write_sweep(tmp_path, configMapGenerator=[])
    with pytest.raises(CannotRender, match="one ConfigMap that its pods mount, and there are 0"):
        sweep_of(folder)
    (tmp_path / "set").mkdir()
    job_set = tmp_path / "set" / "jobset.yaml"
    job_set.write_text((K8S / "overlays/jobset/jobset.yaml").read_text())
    folder = write_sweep(tmp_path)
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    kustomization["resources"].append("set/jobset.yaml")
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    with pytest.raises(CannotRender, match="a sweep is a Job, and this one is in a JobSet"):
        sweep_of(folder)
