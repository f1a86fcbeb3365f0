"""Data and weights in object storage: fetched whole or not at all, verified, and resumed after a kill."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job import events, mirror
from job.errors import (
    DataUnavailable,
    ExitCode,
    InputError,
    Interrupted,
    ScratchUnavailable,
    StorageError,
    WeightsUnusable,
)
from job.mirror import Fetching, files_of_dataset
from job.storage import LocalStore, open_store
from tests.conftest import Recorder, job
from tests.gcs_server import BUCKET, GcsServer
from tests.test_end_to_end import begin, wait_for

DATA = f"gs://{BUCKET}/mirror/tfds"


def never() -> None:
    pass


@pytest.fixture
def filled(gcs: GcsServer, prepared: Path) -> GcsServer:
    """A mirror of the small data sets and of a file of weights, as `gcloud storage cp` fills it: without a manifest."""
    for path in prepared.rglob("*"):
        if path.is_file():
            gcs.put(f"mirror/tfds/{path.relative_to(prepared).as_posix()}", path.read_bytes(), None)
    gcs.put("mirror/weights/tiny.weights.h5", b"weights", None)
    return gcs


def fetching(tmp_path: Path, *, check_stop: Callable[[], None] = never) -> tuple[Fetching, Recorder]:
    reader = Recorder()
    return Fetching(tmp_path / "cache", reader=reader, check_stop=check_stop), reader


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_data_set_is_fetched_file_by_file_and_no_other(filled: GcsServer, prepared: Path, tmp_path: Path) -> None:
    """Under the names that TFDS reads them by."""
    fetch, reader = fetching(tmp_path)
    folder = fetch.dataset(DATA, "two_shapes")
    assert contents(folder) == {f"two_shapes/{name}": data for name, data in contents(prepared / "two_shapes").items()}
    assert reader.of(events.FETCHED)[0]["num_files"] == len(contents(folder))


def test_what_is_here_is_not_fetched_again(filled: GcsServer, tmp_path: Path) -> None:
    """A later attempt on the same disk reads nothing but the list."""
    fetching(tmp_path)[0].dataset(DATA, "two_shapes")
    filled.requests.clear()
    fetching(tmp_path)[0].dataset(DATA, "two_shapes")
    assert [name for operation, name in filled.requests if operation == "read"] == [f"mirror/tfds/{mirror.MANIFEST}"]


def test_a_fetch_that_was_stopped_goes_on_where_it_was(filled: GcsServer, tmp_path: Path) -> None:
    """No file has its name before it is complete."""
    asked = iter(range(100))

    def stop() -> None:
        if next(asked) == 1:
            raise Interrupted("now")

    filled.fail("stall", at=2, operation="read")
    with pytest.raises(Interrupted):
        fetching(tmp_path, check_stop=stop)[0].dataset(DATA, "two_shapes")
    folder = fetching(tmp_path)[0].dataset(DATA, "two_shapes")
    complete = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(mirror.PART)]
    assert len(complete) == len([name for name in filled.objects if "/two_shapes/" in name])


def test_what_killed_fetches_left_is_removed(filled: GcsServer, tmp_path: Path) -> None:
    """When it is old enough to be nobody's."""
    folder = fetching(tmp_path)[0].dataset(DATA, "two_shapes")
    old, young = folder / f"{mirror.PART}old", folder / f"{mirror.PART}young"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    fetching(tmp_path)[0].dataset(DATA, "two_shapes")
    assert (old.exists(), young.exists()) == (False, True)


@pytest.mark.parametrize("kind", ["503 before", "reset after", "truncated", "corrupt", "429"])
def test_a_fault_that_passes_is_survived(filled: GcsServer, prepared: Path, tmp_path: Path, kind: str) -> None:
    """Every byte is verified."""
    filled.fail(kind, at=1, times=2, operation="read")
    folder = fetching(tmp_path)[0].dataset(DATA, "two_shapes")
    assert contents(folder / "two_shapes") == contents(prepared / "two_shapes")


def test_weights_are_fetched(filled: GcsServer, tmp_path: Path) -> None:
    """One object, to a file of the same name: its ending tells its kind."""
    path = fetching(tmp_path)[0].weights(f"gs://{BUCKET}/mirror/weights/tiny.weights.h5")
    assert (path.name, path.read_bytes()) == ("tiny.weights.h5", b"weights")


def test_data_that_is_not_in_the_mirror_is_told_with_the_way_out(filled: GcsServer, tmp_path: Path) -> None:
    """The command that fills it."""
    with pytest.raises(DataUnavailable, match="no_such_data") as caught:
        fetching(tmp_path)[0].dataset(DATA, "no_such_data")
    assert f"python -m job mirror --to {DATA}" in caught.value.hint


def test_weights_that_are_not_there_are_told(filled: GcsServer, tmp_path: Path) -> None:
    """By the whole name."""
    with pytest.raises(WeightsUnusable, match=r"gs://bucket/mirror/weights/none\.h5"):
        fetching(tmp_path)[0].weights(f"gs://{BUCKET}/mirror/weights/none.h5")


def test_a_full_disk_is_told_by_the_path_and_leaves_no_half_file(
    filled: GcsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the store is to blame."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "thaw-mirror").write_text("in the way")
    with pytest.raises(ScratchUnavailable, match="thaw-mirror") as caught:
        fetching(tmp_path)[0].dataset(DATA, "two_shapes")
    assert "THAW_CACHE_DIR" in caught.value.hint


NAMES = [
    "a/1.0.0/dataset_info.json", "a/1.0.0/a-train.tfrecord", "a/1.2.0/dataset_info.json", "a/1.2.0/a-train.tfrecord",
    "a/1.10.0/dataset_info.json", "a/1.10.0/a-train.tfrecord", "b/x/1.0.0/dataset_info.json", "b/x/1.0.0/f",
    "b/y/2.0.0/dataset_info.json", "b/y/2.0.0/f", "ab/1.0.0/dataset_info.json", "a/1.0.0/incomplete/extra",
]  # fmt: skip


@pytest.mark.parametrize(
    ("dataset", "folders"),
    [
        ("a", {"a/1.10.0"}), ("a:1.2.0", {"a/1.2.0"}), ("a:1.*.*", {"a/1.10.0"}), ("b", {"b/x/1.0.0", "b/y/2.0.0"}),
        ("b/x", {"b/x/1.0.0"}), ("b/y:2.0.0", {"b/y/2.0.0"}), ("b/z", set()), ("a:3.0.0", set()),
    ],
)  # fmt: skip
def test_the_files_of_a_data_set_are_those_of_its_configuration_and_version(dataset: str, folders: set[str]) -> None:
    """The highest version when none is asked for."""
    names = files_of_dataset(NAMES, dataset)
    assert {name.rpartition("/")[0] for name in names} == folders


# Filling one


def fill(tmp_path: Path, files: dict[str, bytes]) -> tuple[LocalStore, Recorder, dict[str, Path]]:
    store, reader, paths = LocalStore(tmp_path / "mirror"), Recorder(), {}
    for name, data in files.items():
        paths[name] = tmp_path / "source" / name
        paths[name].parent.mkdir(parents=True, exist_ok=True)
        paths[name].write_bytes(data)
    mirror.send(store, paths, reader=reader, check_stop=never)
    return store, reader, paths


def test_what_is_sent_is_listed_with_its_digest_and_sent_once(tmp_path: Path) -> None:
    """A second filling sends only what is new or other."""
    store, _, paths = fill(tmp_path, {"a/1": b"1", "a/2": b"2"})
    paths["a/2"].write_bytes(b"changed")
    reader = Recorder()
    mirror.send(store, paths, reader=reader, check_stop=never)
    assert reader.of(events.MIRROR_FILLED)[0]["bytes_sent"] == len(b"changed")
    assert store.read("a/2").data == b"changed"
    assert set(json.loads(store.read(mirror.MANIFEST).data)["files"]) == {"a/1", "a/2"}


def test_a_file_that_is_not_what_the_manifest_says_is_refused(
    filled: GcsServer, prepared: Path, tmp_path: Path
) -> None:
    """The store's own checksum cannot know that a wrong file was put there."""
    store = open_store(DATA)
    files = {
        path.relative_to(prepared).as_posix(): path for path in (prepared / "two_shapes").rglob("*") if path.is_file()
    }
    mirror.send(store, files, reader=Recorder(), check_stop=never)
    name = next(name for name in filled.objects if "two_shapes" in name and "tfrecord" in name)
    filled.put(name, b"another file", None)
    with pytest.raises(InputError, match="not what the manifest of the mirror says"):
        fetching(tmp_path)[0].dataset(DATA, "two_shapes")
    assert not any("tfrecord" in path.name for path in (tmp_path / "cache").rglob("*"))


def test_a_local_copy_that_was_changed_is_fetched_again(filled: GcsServer, prepared: Path, tmp_path: Path) -> None:
    """Where the manifest tells what it should be."""
    files = {
        path.relative_to(prepared).as_posix(): path for path in (prepared / "two_shapes").rglob("*") if path.is_file()
    }
    mirror.send(open_store(DATA), files, reader=Recorder(), check_stop=never)
    folder = fetching(tmp_path)[0].dataset(DATA, "two_shapes")
    shard = next(folder.rglob("*tfrecord*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    fetching(tmp_path)[0].dataset(DATA, "two_shapes")
    assert shard.read_bytes() == whole


# The program


def test_a_run_reads_data_and_weights_from_a_bucket_that_the_command_has_filled(
    gcs: GcsServer, environment: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    """The two settings that it prints are all that a cluster without a network needs."""
    from tests.test_model import other_weights

    weights = other_weights(tmp_path)
    done = job("mirror", "--to", f"gs://{BUCKET}/m", env=environment(weights=str(weights)))
    assert done.returncode == ExitCode.COMPLETE, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["event"], told["THAW_DATA_DIR"]) == (events.MIRROR_SETTINGS, f"gs://{BUCKET}/m/tfds")
    places: dict[str, Any] = {"data_dir": told["THAW_DATA_DIR"], "weights": told["THAW_WEIGHTS"]}
    done = job(env=environment(storage_uri=f"gs://{BUCKET}/runs", head_epochs=1, fine_tune_epochs=0, **places))
    assert done.returncode == ExitCode.COMPLETE, done.stdout + done.stderr
    log = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["num_files"] for event in log if event["event"] == events.FETCHED][1:] == [1]
    shutil.rmtree(tmp_path / "thaw-mirror")


def test_a_mirror_command_that_was_killed_goes_on_where_it_was(
    gcs: GcsServer, environment: Callable[..., dict[str, str]], prepared: Path
) -> None:
    """What is there and listed is not sent again."""
    env = environment()
    with begin(env, "mirror", "--to", f"gs://{BUCKET}/m") as process:
        wait_for(process, events.MIRRORED, number=2)
        process.kill()
    sent = {name for operation, name in gcs.requests if operation == "write"} - {f"m/tfds/{mirror.MANIFEST}"}
    gcs.requests.clear()
    assert job("mirror", "--to", f"gs://{BUCKET}/m", env=env).returncode == ExitCode.COMPLETE
    files = contents(prepared / "two_shapes")
    assert {name: gcs.objects[f"m/tfds/two_shapes/{name}"].data for name in files} == files
    listed = json.loads(gcs.objects[f"m/tfds/{mirror.MANIFEST}"].data)["files"]
    assert set(listed) == {f"two_shapes/{name}" for name in files}
    again = {name for operation, name in gcs.requests if operation == "write"}
    assert len(sent & again) <= 1 <= len(sent)


def test_the_command_says_where_to() -> None:
    """It has no default."""
    done = job("mirror", env=dict(os.environ))
    assert done.returncode == ExitCode.INVALID_SETTINGS
    assert "--to gs://bucket/prefix" in done.stderr


def test_a_store_that_refuses_is_told(filled: GcsServer, tmp_path: Path) -> None:
    """As everywhere."""
    filled.fail("403", at=0, times=1000)
    with pytest.raises(StorageError, match="403"):
        fetching(tmp_path)[0].dataset(DATA, "two_shapes")
