"""Data and weights in object storage: fetched whole or not at all, verified, and resumed after a kill."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.data import mirror
from job.data.mirror import Fetching
from job.data.prepared import files_of_dataset
from job.errors import (
    DataUnavailable,
    ExitCode,
    InputError,
    Interrupted,
    ScratchUnavailable,
    StorageError,
    WeightsUnusable,
)
from job.observe import events
from job.storage import LocalStore, cache_folder, digest_of, open_store, scratch
from tests.conftest import REPOSITORY, Recorder, job
from tests.gcs_server import BUCKET, HALF_AND_STALL, GcsServer
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
    reader, scratch = Recorder(), tmp_path / "cache" / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    return Fetching(tmp_path / "cache", scratch=scratch, observer=reader, check_stop=check_stop), reader


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_data_set_is_fetched_file_by_file_and_no_other(filled: GcsServer, prepared: Path, tmp_path: Path) -> None:
    """Under the names that TFDS reads them by."""
    fetch, reader = fetching(tmp_path)
    folder = fetch.dataset(DATA, "two_shapes")
    assert contents(folder) == {f"two_shapes/{name}": data for name, data in contents(prepared / "two_shapes").items()}
    assert reader.of(events.Fetched)[0].num_files == len(contents(folder))


def test_what_is_here_is_not_fetched_again(filled: GcsServer, tmp_path: Path) -> None:
    """A later attempt on the same disk reads no more than whether it is still the same."""
    fetching(tmp_path)[0].dataset(DATA, "two_shapes")
    filled.requests.clear()
    fetching(tmp_path)[0].dataset(DATA, "two_shapes")
    assert "read" not in {operation for operation, _ in filled.requests}
    assert ("stat", f"mirror/tfds/{mirror.MANIFEST}") in filled.requests


def test_a_fetch_that_was_stopped_goes_on_where_it_was(filled: GcsServer, tmp_path: Path) -> None:
    """No file has its name before it is complete."""
    asked = iter(range(100))

    def stop() -> None:
        if next(asked) == 1:
            raise Interrupted("now")

    filled.fail("stall", at=2, operation="read")
    with pytest.raises(Interrupted):
        fetching(tmp_path, check_stop=stop)[0].dataset(DATA, "two_shapes")
    # Outside of tests the process ends now. Here its threads would make their last requests in the next test.
    for thread in threading.enumerate():
        if thread.name.startswith("fetch"):
            thread.join()
    folder = fetching(tmp_path)[0].dataset(DATA, "two_shapes")
    assert len(contents(folder)) == len([name for name in filled.objects if "/two_shapes/" in name])


def test_an_object_that_was_changed_is_fetched_again(filled: GcsServer, tmp_path: Path) -> None:
    """Its generation tells, where no manifest does."""
    uri = f"gs://{BUCKET}/mirror/weights/tiny.weights.h5"
    fetching(tmp_path)[0].weights(uri)
    filled.put("mirror/weights/tiny.weights.h5", b"changed", None)
    fetch, reader = fetching(tmp_path)
    assert fetch.weights(uri).read_bytes() == b"changed"
    fetch.weights(uri)
    assert [facts.num_files for facts in reader.of(events.Fetched)] == [1, 0]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("harm", ["copy", "note", "note missing", "copy a pipe", "note a pipe", "copy a link"])
def test_a_copy_that_was_damaged_is_fetched_again(filled: GcsServer, tmp_path: Path, harm: str) -> None:
    """Or one of which is not known any more what it should be."""
    path = fetching(tmp_path)[0].weights(f"gs://{BUCKET}/mirror/weights/tiny.weights.h5")
    (note,) = (tmp_path / "cache").rglob("*.json")
    place = path if harm.startswith("copy") else note
    if harm in ("copy", "note"):
        place.write_bytes(b"damaged")
    else:
        place.rename(tmp_path / "elsewhere")
    if harm.endswith("pipe"):
        os.mkfifo(place)
    if harm.endswith("link"):
        place.symlink_to(tmp_path / "elsewhere")
    fetch, reader = fetching(tmp_path)
    fetch.weights(f"gs://{BUCKET}/mirror/weights/tiny.weights.h5")
    assert path.read_bytes() == b"weights"
    assert reader.of(events.Fetched)[0].num_files == 1


FETCH = """
import sys
from pathlib import Path
from job.storage import scratch
from job.data.mirror import Fetching
with scratch.folder(Path(sys.argv[1])) as folder:
    Fetching(Path(sys.argv[1]), scratch=folder, observer=None, check_stop=lambda: None).weights(sys.argv[2])
"""


def test_what_a_killed_fetch_left_is_swept_at_once_and_what_a_living_one_has_is_not(
    gcs: GcsServer, tmp_path: Path
) -> None:
    """Half a file is as big as half a file; a sibling on the same disk keeps its own."""
    gcs.put("weights.h5", os.urandom(8 << 20), None)
    gcs.fail(HALF_AND_STALL, at=0, operation="read")
    with subprocess.Popen(
        [sys.executable, "-c", FETCH, str(tmp_path), f"gs://{BUCKET}/weights.h5"], cwd=REPOSITORY
    ) as fetch:
        while sizes_under(tmp_path) < 1 << 20:
            assert fetch.poll() is None
            time.sleep(0.05)
        with scratch.folder(tmp_path):
            assert sizes_under(tmp_path) >= 1 << 20
        fetch.kill()
    with scratch.folder(tmp_path):
        assert sizes_under(tmp_path) == 0


def sizes_under(folder: Path) -> int:
    """The bytes of all files, of which some may be going away."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


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
    assert f"python -m job mirror --to gs://{BUCKET}/mirror --dataset" in caught.value.hint


def test_weights_that_are_not_there_are_told(filled: GcsServer, tmp_path: Path) -> None:
    """By the whole name."""
    with pytest.raises(WeightsUnusable, match=r"gs://bucket/mirror/weights/none\.h5"):
        fetching(tmp_path)[0].weights(f"gs://{BUCKET}/mirror/weights/none.h5")


def test_a_cache_that_cannot_be_made_is_told_by_the_path(filled: GcsServer, tmp_path: Path) -> None:
    """Not the store is to blame; test_disks.py has real disks that are full."""
    (cache_folder.make(tmp_path / "cache") / "mirror").write_text("in the way")
    with pytest.raises(ScratchUnavailable, match="mirror") as caught:
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
    mirror.send(store, paths, observer=reader, check_stop=never)
    return store, reader, paths


def test_what_is_sent_is_listed_with_its_digest_and_sent_once(tmp_path: Path) -> None:
    """A second filling sends only what is new or other."""
    store, _, paths = fill(tmp_path, {"a/1": b"1", "a/2": b"2"})
    paths["a/2"].write_bytes(b"changed")
    reader = Recorder()
    mirror.send(store, paths, observer=reader, check_stop=never)
    assert reader.of(events.MirrorFilled)[0].bytes_sent == len(b"changed")
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
    mirror.send(store, files, observer=Recorder(), check_stop=never)
    name = next(name for name in filled.objects if "two_shapes" in name and "tfrecord" in name)
    filled.put(name, b"another file", None)
    with pytest.raises(InputError, match="not what the manifest of the mirror says"):
        fetching(tmp_path)[0].dataset(DATA, "two_shapes")
    assert not any("tfrecord" in path.name for path in (tmp_path / "cache").rglob("*"))


def test_a_file_that_was_overwritten_in_the_mirror_is_mended_by_filling_it_again(tmp_path: Path) -> None:
    """The manifest knows the generation of what was sent."""
    store, _, paths = fill(tmp_path, {"a": b"right"})
    store.write("a", b"wrong", if_generation=store.generation("a"))
    mirror.send(store, paths, observer=Recorder(), check_stop=never)
    assert store.read("a").data == b"right"


def test_a_manifest_that_is_none_is_told_with_the_way_out(filled: GcsServer, tmp_path: Path) -> None:
    """It is nobody's fault but a person's."""
    filled.put(f"mirror/tfds/{mirror.MANIFEST}", b"{", None)
    with pytest.raises(InputError, match=rf"{DATA}/{mirror.MANIFEST} is not the manifest of a mirror") as caught:
        fetching(tmp_path)[0].dataset(DATA, "two_shapes")
    assert "delete it" in caught.value.hint


def test_a_local_copy_that_was_changed_is_fetched_again(filled: GcsServer, prepared: Path, tmp_path: Path) -> None:
    """Where the manifest tells what it should be."""
    files = {
        path.relative_to(prepared).as_posix(): path for path in (prepared / "two_shapes").rglob("*") if path.is_file()
    }
    mirror.send(open_store(DATA), files, observer=Recorder(), check_stop=never)
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
    from tests.classifiers import other_weights

    weights = other_weights(tmp_path)
    done = job("mirror", "--to", f"gs://{BUCKET}/m", env=environment(weights=str(weights)))
    assert done.returncode == ExitCode.COMPLETE, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["event"], told["THAW_DATA_DIR"]) == (events.MirrorSettings.name, f"gs://{BUCKET}/m/tfds")
    sha256 = digest_of(weights).sha256
    assert told["THAW_WEIGHTS"] == f"gs://{BUCKET}/m/weights/weights-{sha256[:12]}.weights.h5"
    places: dict[str, Any] = {"data_dir": told["THAW_DATA_DIR"], "weights": told["THAW_WEIGHTS"]}
    done = job(env=environment(storage_uri=f"gs://{BUCKET}/runs", head_epochs=1, fine_tune_epochs=0, **places))
    assert done.returncode == ExitCode.COMPLETE, done.stdout + done.stderr
    log = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["num_files"] for event in log if event["event"] == events.Fetched.name][1:] == [1]
    shutil.rmtree(cache_folder.place(tmp_path) / "mirror")


def test_a_mirror_command_that_was_killed_goes_on_where_it_was(
    gcs: GcsServer, environment: Callable[..., dict[str, str]], prepared: Path, tmp_path: Path
) -> None:
    """What is there and listed is not sent again; the termination message says what was done."""
    env = environment(termination_log=tmp_path / "log")
    with begin(env, "mirror", "--to", f"gs://{BUCKET}/m") as process:
        wait_for(process, events.Mirrored.name, number=2)
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
    assert json.loads((tmp_path / "log").read_text())["reason"] == f"complete: the mirror at gs://{BUCKET}/m is filled"


NO_TENSORFLOW = """
import sys
from job.__main__ import main
code = main(["mirror", "--to", sys.argv[1]])
sys.exit(99 if "tensorflow" in sys.modules else code)
"""


@pytest.mark.parametrize(
    ("to", "fault", "reason"),
    [
        ("gs://no-such-bucket/m", None, "bucket does not exist"),
        (f"gs://{BUCKET}/m", "403", "does not have storage.objects"),
        ("gs://", None, "--to='gs://': expected gs://bucket/prefix"),
        ("s3://bucket/m", None, "s3:// is not a store"),
        ("/proc/mirror", None, "/proc/mirror"),
    ],
)
def test_a_place_that_cannot_be_filled_is_told_before_anything_is_prepared(
    gcs: GcsServer, environment: Callable[..., dict[str, str]], tmp_path: Path, to: str, fault: str | None, reason: str
) -> None:
    """In about a second, without TensorFlow, and without a download."""
    if fault is not None:
        gcs.fail(fault, at=0, times=1000, operation="write")
    env = environment(data_dir=tmp_path / "nothing")
    done = subprocess.run(
        [sys.executable, "-c", NO_TENSORFLOW, to], env=env, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode in (ExitCode.STORAGE_UNAVAILABLE, ExitCode.INVALID_SETTINGS), done.stdout + done.stderr
    assert reason in done.stdout + done.stderr
    assert not (tmp_path / "nothing").exists()


def test_the_command_says_where_to() -> None:
    """It has no default."""
    done = job("mirror", env=dict(os.environ))
    assert done.returncode == ExitCode.INVALID_SETTINGS
    assert "--to: is missing (where to: gs://bucket/prefix" in done.stderr


def test_a_store_that_refuses_is_told(filled: GcsServer, tmp_path: Path) -> None:
    """As everywhere."""
    filled.fail("403", at=0, times=1000)
    with pytest.raises(StorageError, match="403"):
        fetching(tmp_path)[0].dataset(DATA, "two_shapes")
