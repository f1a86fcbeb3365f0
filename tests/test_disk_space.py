"""What will not fit is known before it is written: by `plan` and by a start, in the same words."""

import json
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from job.cli import mirror, plan
from job.errors import DiskTooSmall, ExitCode
from job.observe import data_events
from job.run import disk_space
from job.settings.resources import estimate
from job.settings.settings import Settings
from job.storage import LocalStore, cache_folder
from tests.conftest import Recorder
from tests.gcs_server import BUCKET, GcsServer
from tests.runs import Small, record_of, start

MIB = 1 << 20


def wide(tmp_path: Path, **values: object) -> Settings:
    """A run whose temporary files and objects are in one folder."""
    return Settings(storage_uri=str(tmp_path / "runs"), cache_dir=tmp_path, run_id="r", **values)  # type: ignore[arg-type]


def write(path: Path, num_bytes: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(num_bytes))


def test_the_limit_of_the_volume_counts_what_is_there_and_what_is_still_to_come(tmp_path: Path) -> None:
    """Temporary files with the exported model, what is fetched, and the run, but for what the run has kept so far."""
    settings = wide(tmp_path, work_bytes=4000 * MIB, cache="disk")
    need = estimate(settings, num_examples=1000, precision="float32")
    written = need.scratch + need.model + need.storage + 7

    def needed_and_left() -> tuple[int | None, int]:
        (found,) = [found for found in disk_space.spaces(settings, need, to_fetch=7) if found.name == "work volume"]
        return found.needed, found.left

    assert needed_and_left() == (written, 4000 * MIB)
    write(tmp_path / "thaw-0/mirror/data", 3 * MIB)
    assert needed_and_left() == (written, 3997 * MIB)
    write(tmp_path / "runs/r/checkpoints/a", 2 * MIB)
    assert needed_and_left() == (written - 2 * MIB, 3995 * MIB)


def test_a_folder_that_is_a_link_is_on_the_volume_of_its_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is on it counts, and the run too, under either name; paths are shown as they were given."""
    volume, link = tmp_path / "volume", tmp_path / "link"
    write(volume / "other", 3 * MIB)
    (volume / "folder").mkdir()
    link.symlink_to(volume / "folder")
    mounts = [SimpleNamespace(mountpoint=str(path)) for path in ("/", volume)]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: mounts)
    for runs in (volume / "runs", link / "runs"):
        settings = wide(link, work_bytes=4000 * MIB).model_copy(update={"storage_uri": str(runs)})
        need = estimate(settings, num_examples=1000, precision="float32")
        scratch, _, found = disk_space.spaces(settings, need)
        assert scratch.where == f"free in {cache_folder.place(link)}"
        assert (found.needed, found.left) == (need.scratch + need.model + need.storage, 3997 * MIB)
        assert found.where.startswith(f"left in {volume} of the ")
    assert disk_space.is_with_the_cache(settings, volume / "data")
    assert not disk_space.is_with_the_cache(settings, tmp_path / "data")


@pytest.mark.parametrize(("worker", "exported", "exported_on_host"), [(0, 1, 1), (1, 0, 1), (3, 0, 0)])
def test_a_limit_is_for_all_processes_of_a_host(
    tmp_path: Path, worker: int, exported: int, exported_on_host: int
) -> None:
    """What both workers of this host are going to write; worker 0 alone exports, and data is fetched once."""
    several = {"workers": 4, "worker": worker, "worker_host": "a,a,b,b", "worker_port": 7000}
    settings = wide(tmp_path / "cache", work_bytes=4000 * MIB, cache="disk", **several)
    settings = settings.model_copy(update={"storage_uri": "gs://bucket"})
    need = estimate(settings, num_examples=1000, precision="float32")
    found = {space.name: space.needed for space in disk_space.spaces(settings, need, to_fetch=7)}
    assert found == {
        "scratch disk": need.scratch + exported * need.model + 7,
        "work volume": 2 * need.scratch + exported_on_host * need.model + 7,
    }


def test_a_worker_that_writes_nothing_needs_nothing(tmp_path: Path) -> None:
    """With images in memory, and a checkpoint of a head alone; that is not the same as a need that is not known."""
    several = {"workers": 2, "worker": 1, "worker_host": "a,b", "worker_port": 7000, "fine_tune_epochs": 0}
    settings = wide(tmp_path / "cache", work_bytes=MIB, **several).model_copy(update={"storage_uri": "gs://bucket"})
    need = estimate(settings, num_examples=1000, precision="float32")
    assert [space.needed for space in disk_space.spaces(settings, need)] == [0, 0]
    assert [space.needed for space in disk_space.spaces(settings, None)] == [None, None]


def test_a_volume_that_is_over_its_limit_is_too_small_for_anything(tmp_path: Path) -> None:
    """As while data comes whose size nobody knew."""
    write(tmp_path / "data", MIB)
    disk_space.check(wide(tmp_path, work_bytes=2 * MIB), None)
    with pytest.raises(
        DiskTooSmall, match=f"work volume is too small: it is over its limit; 0 B left in {tmp_path}"
    ) as caught:
        disk_space.check(wide(tmp_path, work_bytes=MIB // 2), None)
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    assert "sizeLimit" in caught.value.hint


def test_a_start_ends_before_it_writes_what_does_not_fit_and_plan_says_so(
    small: Small, store: LocalStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """80 images of 32 pixels are 0.2 MB, more than the volume takes; the record says how it ended."""
    settings = small(cache="disk", work_bytes="200k", storage_uri=store.uri.rpartition("/")[0])
    with pytest.raises(DiskTooSmall, match=r"work volume is too small: about .* needed, 200.0 kB left") as caught:
        start(settings, store)
    record = record_of(store)
    assert record.attempts[-1].exit_code == caught.value.exit_code == ExitCode.BAD_INPUT
    assert not record.checkpoints
    assert plan.answer(plan.Options(settings=settings, as_json=True)) == ExitCode.BAD_INPUT
    (check,) = [one for one in json.loads(capsys.readouterr().out)["checks"] if one["name"] == "work volume"]
    assert (check["outcome"], check["text"] in caught.value.message) == ("failed", True)


def test_data_that_does_not_fit_is_not_fetched(
    small: Small, store: LocalStore, gcs: GcsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A manifest has the sizes; what is here already is not counted again."""
    folder = store.root.parent / "images"
    for number in range(80):
        write(folder / ("cat", "dog")[number % 2] / f"{number}.png", 30_000 + number)
    options = mirror.Options(settings=small(dataset=str(folder), data_dir=None), to=f"gs://{BUCKET}/own")
    mirror.answer(options, observer=Recorder(), check_stop=lambda: None)
    capsys.readouterr()
    settings = small(dataset=f"gs://{BUCKET}/own/images/images", data_dir=None, work_bytes=MIB)
    recorder = Recorder()
    with pytest.raises(DiskTooSmall, match=r"about 2\.4 MB needed"):
        start(settings, store, observer=recorder)
    assert data_events.Fetched not in recorder.kinds()
    assert plan.answer(plan.Options(settings=settings)) == ExitCode.BAD_INPUT
