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

from job.cli.mirror import Options, answer
from job.data import filling
from job.data.files.names import is_place
from job.data.manifest import MANIFEST
from job.data.mirror import Fetcher
from job.data.tfds.prepared import files_of_dataset
from job.errors import DataUnavailable, ExitCode, InputError, Interrupted, ScratchUnavailable, WeightsUnusable
from job.observe import data_events, events
from job.settings.settings import Settings
from job.storage import LocalStore, cache_folder, digest_of, open_store, scratch
from tests import shapes
from tests.classifiers import other_weights
from tests.conftest import REPOSITORY, Recorder, job, slowly
from tests.gcs_server import BUCKET, HALF_AND_STALL, GcsServer
from tests.processes import begin, contents, run_without, wait_for
from tests.runs import CrashOn, Small, never, record_of, start
from tests.stores import Crash
from tests.test_places import NFC, NFD

DATA = f"gs://{BUCKET}/mirror/tfds"
WEIGHTS = f"gs://{BUCKET}/mirror/weights/tiny.weights.h5"


@pytest.fixture
def filled(gcs: GcsServer, prepared: Path) -> GcsServer:
    """A mirror of a small data set and of a file of weights, as `gcloud storage cp` fills it: without a manifest."""
    for name, content in contents(prepared / "two_shapes").items():
        gcs.put(f"mirror/tfds/two_shapes/{name}", content, None)
    gcs.put("mirror/tfds/three_shapes/1.0.0/dataset_info.json", b"{}", None)
    gcs.put("mirror/weights/tiny.weights.h5", b"weights", None)
    return gcs


@pytest.fixture
def listed(filled: GcsServer, prepared: Path) -> GcsServer:
    """The same with a manifest, as `send` leaves it."""
    paths = [path for path in (prepared / "two_shapes").rglob("*") if path.is_file()]
    send(open_store(DATA), {path.relative_to(prepared).as_posix(): path for path in paths})
    return filled


def send(store: Any, files: dict[str, Path]) -> Recorder:
    observer = Recorder()
    filling.send(store, files, observer=observer, check_stop=never)
    return observer


def fetching(tmp_path: Path, *, check_stop: Callable[[], None] = never) -> tuple[Fetcher, Recorder]:
    observer, scratch = Recorder(), tmp_path / "cache" / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    return Fetcher(tmp_path / "cache", scratch=scratch, observer=observer, check_stop=check_stop), observer


@pytest.mark.parametrize(
    "kind",
    [
        *(None, "corrupt"),
        *slowly("503 before", "reset after", "truncated", "429"),
    ],
)
def test_a_data_set_is_fetched_file_by_file_and_no_other(
    filled: GcsServer, prepared: Path, tmp_path: Path, kind: str | None
) -> None:
    """Under the names that TFDS reads them by; a fault that passes is survived, and every byte is verified."""
    if kind:
        filled.fail(kind, at=1, times=2, operation="read")
    fetch, observer = fetching(tmp_path)
    found = contents(fetch.dataset(DATA, "two_shapes"))
    assert found == {f"two_shapes/{name}": data for name, data in contents(prepared / "two_shapes").items()}
    assert observer.of(data_events.Fetched)[0].num_files == len(found)


def test_what_is_here_is_not_fetched_again(filled: GcsServer, tmp_path: Path) -> None:
    """A later attempt on the same disk reads no more than whether it is still the same."""
    fetching(tmp_path)[0].dataset(DATA, "two_shapes")
    filled.requests.clear()
    fetching(tmp_path)[0].dataset(DATA, "two_shapes")
    assert "read" not in {operation for operation, _ in filled.requests}
    assert ("stat", f"mirror/tfds/{MANIFEST}") in filled.requests


@pytest.mark.slow
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
        if thread.name.startswith("task"):
            thread.join()
    folder = fetching(tmp_path)[0].dataset(DATA, "two_shapes")
    assert len(contents(folder)) == len([name for name in filled.objects if "/two_shapes/" in name])


def test_an_object_that_was_changed_is_fetched_again(filled: GcsServer, tmp_path: Path) -> None:
    """Its version shows it, where no manifest does; the file keeps its name, whose ending is its kind."""
    fetching(tmp_path)[0].weights(WEIGHTS)
    filled.put("mirror/weights/tiny.weights.h5", b"changed", None)
    fetch, observer = fetching(tmp_path)
    path = fetch.weights(WEIGHTS)
    assert (path.name, path.read_bytes()) == ("tiny.weights.h5", b"changed")
    fetch.weights(WEIGHTS)
    assert [event.num_files for event in observer.of(data_events.Fetched)] == [1, 0]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("harm", ["copy", "note", "note missing", "copy a pipe", "note a pipe", "copy a link"])
def test_a_copy_that_was_damaged_is_fetched_again(filled: GcsServer, tmp_path: Path, harm: str) -> None:
    """Also when it is not known any more what it should be."""
    path = fetching(tmp_path)[0].weights(WEIGHTS)
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
    fetch, observer = fetching(tmp_path)
    fetch.weights(WEIGHTS)
    assert path.read_bytes() == b"weights"
    assert observer.of(data_events.Fetched)[0].num_files == 1


def test_a_copy_that_is_not_what_the_manifest_says_is_fetched_again(listed: GcsServer, tmp_path: Path) -> None:
    """No note is needed for that."""
    folder = fetching(tmp_path)[0].dataset(DATA, "two_shapes")
    shard = next(folder.rglob("*tfrecord*"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    fetching(tmp_path)[0].dataset(DATA, "two_shapes")
    assert shard.read_bytes() == whole


def test_an_object_that_is_not_what_the_manifest_says_is_refused(listed: GcsServer, tmp_path: Path) -> None:
    """The store's own checksum cannot know that a wrong file was put there."""
    listed.put(next(name for name in listed.objects if "tfrecord" in name), b"another file", None)
    with pytest.raises(InputError, match="not what the manifest of the mirror says"):
        fetching(tmp_path)[0].dataset(DATA, "two_shapes")
    assert not any("tfrecord" in path.name for path in (tmp_path / "cache").rglob("*"))


FETCH = """
import sys
from pathlib import Path
from job.data.manifest import MANIFEST
from job.data.mirror import Fetcher
from job.observe.observer import Observer
from job.storage import scratch
with scratch.folder(Path(sys.argv[1])) as folder:
    Fetcher(Path(sys.argv[1]), scratch=folder, observer=Observer(), check_stop=lambda: None).weights(sys.argv[2])
"""


def test_what_a_killed_fetch_left_is_swept_at_once_and_what_a_living_one_has_is_not(
    gcs: GcsServer, tmp_path: Path
) -> None:
    """Half a file is as big as half a file; another process on the same disk keeps its own."""
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


def test_what_is_missing_is_named_with_the_command_that_fills_a_mirror(filled: GcsServer, tmp_path: Path) -> None:
    """Data by its name, weights by the whole name of the object."""
    fetch, _ = fetching(tmp_path)
    with pytest.raises(DataUnavailable, match="no_such_data") as no_data:
        fetch.dataset(DATA, "no_such_data")
    with pytest.raises(WeightsUnusable, match=r"gs://bucket/mirror/weights/none\.h5") as no_weights:
        fetch.weights(f"gs://{BUCKET}/mirror/weights/none.h5")
    for error in (no_data.value, no_weights.value):
        assert f"thaw mirror --to gs://{BUCKET}/mirror" in error.hint


def test_a_cache_that_cannot_be_made_is_named_by_its_path(filled: GcsServer, tmp_path: Path) -> None:
    """The store is not to blame; test_disks.py has real disks that are full."""
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
    assert {name.rpartition("/")[0] for name in files_of_dataset(NAMES, dataset)} == folders


# Own images

PHOTOS = f"gs://{BUCKET}/photos"
CATS = {"cat/1.jpg": b"1", "cat/deep/2.PNG": b"2", "dog/3.heic": b"", "dog/\N{CAT FACE}.webp": b"4"}
TABLE = {"labels.csv": "path,label\ncat/1.jpg,a\ndog/\N{CAT FACE}.webp,b\nnone.jpg,b\n".encode()}


@pytest.fixture
def photos(gcs: GcsServer) -> GcsServer:
    """Three places in a bucket, among other objects."""
    others = {"": b"", "cat/": b"", "cat/.DS_Store": b"", "notes.txt": b"", "../other.txt": b"", "cat.zip": b"zip"}
    for name, content in (CATS | TABLE | others).items():
        gcs.put(f"photos/{name}", content, None)
    return gcs


@pytest.mark.parametrize(
    ("place", "files"),
    [
        ("", CATS | TABLE), ("/cat", {"1.jpg": b"1", "deep/2.PNG": b"2"}), ("/cat.zip", {"cat.zip": b"zip"}),
        ("/labels.csv", TABLE | {name: CATS[name] for name in ("cat/1.jpg", "dog/\N{CAT FACE}.webp")}),
    ],
)  # fmt: skip
def test_own_images_are_fetched_once(photos: GcsServer, tmp_path: Path, place: str, files: dict[str, bytes]) -> None:
    """A folder's images and tables, an archive, a table and what it names; later the bucket is only listed."""
    fetched = Path(fetching(tmp_path)[0].images(PHOTOS + place))
    folder = fetched if fetched.is_dir() else fetched.parent
    assert contents(folder) == files
    assert fetched == folder or f"/{fetched.name}" == place
    photos.requests.clear()
    assert fetching(tmp_path)[0].images(PHOTOS + place) == str(fetched)
    assert [operation for operation, _ in photos.requests if operation not in ("list", "stat")] == []
    assert len([operation for operation, _ in photos.requests if operation == "stat"]) <= 3


@pytest.mark.parametrize(("in_bucket", "in_table"), [(NFC, NFD), (NFD, NFC), (NFD, NFD)])
def test_a_table_and_a_bucket_may_have_two_forms_of_the_same_letters(
    photos: GcsServer, tmp_path: Path, in_bucket: str, in_table: str
) -> None:
    """Also in a folder that all images are in."""
    photos.put(f"photos/{in_bucket}/1.jpg", b"1", None)
    table = f"path,label\n{in_table}/1.jpg,a\n".encode()
    photos.put("photos/cafe.csv", table, None)
    place = Path(fetching(tmp_path)[0].images(f"{PHOTOS}/cafe.csv"))
    assert contents(place.parent) == {"cafe.csv": table, f"{in_bucket}/1.jpg": b"1"}


def test_a_copy_is_a_place_also_where_the_cache_has_a_relative_path(
    photos: GcsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not taken for a data set of TFDS."""
    monkeypatch.chdir(tmp_path)
    place = fetching(Path())[0].images(PHOTOS)
    assert is_place(place)
    assert contents(Path(place)) == CATS | TABLE


def test_the_copy_of_a_folder_follows_the_bucket(photos: GcsServer, tmp_path: Path) -> None:
    """What was changed is fetched; what was deleted is no image and no class any more; a file may become a folder."""
    fetching(tmp_path)[0].images(PHOTOS)
    photos.put("photos/cat/1.jpg", b"changed", None)
    photos.put("photos/dog/3.heic/5.jpg", b"5", None)
    for name in ("cat/deep/2.PNG", "dog/3.heic", "labels.csv"):
        del photos.objects[f"photos/{name}"]
    fetch, observer = fetching(tmp_path)
    folder = Path(fetch.images(PHOTOS))
    cat = "dog/\N{CAT FACE}.webp"
    assert contents(folder) == {"cat/1.jpg": b"changed", "dog/3.heic/5.jpg": b"5", cat: CATS[cat]}
    assert not (folder / "cat" / "deep").exists()
    assert observer.of(data_events.Fetched)[0].num_files == 2


@pytest.mark.parametrize("place", ["photo", "photos/dogs", "photos/dog.zip", "photos/dog.csv", "photos/notes.txt"])
def test_a_place_without_images_is_named(photos: GcsServer, tmp_path: Path, place: str) -> None:
    """With the command that puts some into a bucket."""
    with pytest.raises(DataUnavailable, match=f"no images at gs://{BUCKET}/{place}: ") as caught:
        fetching(tmp_path)[0].images(f"gs://{BUCKET}/{place}")
    assert "thaw mirror" in caught.value.hint


def test_a_place_on_this_machine_is_not_copied(tmp_path: Path) -> None:
    """Neither is a data set of TFDS' own folder."""
    fetch, _ = fetching(tmp_path)
    assert fetch.images("file:///data/my%20photos") == "/data/my photos"
    inputs = fetch.inputs(dataset="file:///data/photos.zip", data_dir=None, weights="none")
    assert (inputs.dataset, inputs.data_dir, inputs.weights) == ("/data/photos.zip", None, "none")
    assert fetch.inputs(dataset="two_shapes", data_dir="/data", weights="none").data_dir == "/data"
    for own_images in ("./photos", "/data/photos"):
        inputs = fetch.inputs(dataset=own_images, data_dir="gs://bucket/tfds", weights="none")
        assert (inputs.dataset, inputs.data_dir) == (own_images, "gs://bucket/tfds")


# Filling one


def test_what_is_sent_is_listed_with_its_digest_and_sent_once(tmp_path: Path) -> None:
    """A second filling sends what is new, what is other, and what was overwritten in the mirror."""
    store, files = LocalStore(tmp_path / "mirror"), {}
    for number in range(3):
        files[f"a/{number}"] = tmp_path / str(number)
        files[f"a/{number}"].write_bytes(b"sent")
    send(store, files)
    files["a/1"].write_bytes(b"changed")
    store.write("a/2", b"overwritten", if_version=store.version("a/2"))
    observer = send(store, files)
    assert observer.of(data_events.MirrorFilled)[0].bytes_sent == len(b"changed") + len(b"sent")
    assert [store.read(name).data for name in sorted(files)] == [b"sent", b"changed", b"sent"]
    assert set(json.loads(store.read(MANIFEST).data)["files"]) == set(files)


# The program


@pytest.mark.slow
def test_a_run_reads_data_and_weights_from_a_bucket_that_the_command_has_filled(
    gcs: GcsServer, environment: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    """The two settings that it prints are all that a cluster without a network needs."""
    weights = other_weights(tmp_path)
    done = job("mirror", "--to", f"gs://{BUCKET}/m", env=environment(weights=str(weights)))
    assert done.returncode == ExitCode.COMPLETE, done.stdout + done.stderr
    printed = json.loads(done.stdout.splitlines()[-1])
    assert (printed["event"], printed["THAW_DATA_DIR"]) == (data_events.MirrorSettings.name, f"gs://{BUCKET}/m/tfds")
    sha256 = digest_of(weights).sha256
    assert printed["THAW_WEIGHTS"] == f"gs://{BUCKET}/m/weights/weights-{sha256[:12]}.weights.h5"
    places: dict[str, Any] = {"data_dir": printed["THAW_DATA_DIR"], "weights": printed["THAW_WEIGHTS"]}
    done = job(env=environment(storage_uri=f"gs://{BUCKET}/runs", head_epochs=1, fine_tune_epochs=0, **places))
    assert done.returncode == ExitCode.COMPLETE, done.stdout + done.stderr
    log = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["num_files"] for event in log if event["event"] == data_events.Fetched.name][1:] == [1]
    shutil.rmtree(cache_folder.place(tmp_path) / "mirror")


@pytest.mark.slow
def test_a_mirror_command_that_was_killed_goes_on_where_it_was(
    gcs: GcsServer, environment: Callable[..., dict[str, str]], prepared: Path, tmp_path: Path
) -> None:
    """What is there and listed is not sent again; the termination message says what was done."""
    env = environment(termination_log=tmp_path / "log")
    with begin(env, "mirror", "--to", f"gs://{BUCKET}/m") as process:
        wait_for(process, data_events.Mirrored.name, number=2)
        process.kill()
    sent = {name for operation, name in gcs.requests if operation == "write"} - {f"m/tfds/{MANIFEST}"}
    gcs.requests.clear()
    assert job("mirror", "--to", f"gs://{BUCKET}/m", env=env).returncode == ExitCode.COMPLETE
    source = contents(prepared / "two_shapes")
    assert {name: gcs.objects[f"m/tfds/two_shapes/{name}"].data for name in source} == source
    listed = json.loads(gcs.objects[f"m/tfds/{MANIFEST}"].data)["files"]
    assert set(listed) == {f"two_shapes/{name}" for name in source}
    again = {name for operation, name in gcs.requests if operation == "write"}
    assert len(sent & again) <= 1 <= len(sent)
    assert json.loads((tmp_path / "log").read_text())["reason"] == f"complete: the mirror at gs://{BUCKET}/m is filled"


@pytest.mark.slow
def test_a_run_on_images_in_a_bucket_is_that_on_the_same_folder(gcs: GcsServer, small: Small, tmp_path: Path) -> None:
    """The same data, and a model of the same losses."""
    folder = shapes.write_images(tmp_path / "photos")
    for name, content in contents(folder).items():
        gcs.put(f"photos/{name}", content, None)
    results = []
    for number, place in enumerate((str(folder), PHOTOS)):
        store = LocalStore(tmp_path / str(number))
        with pytest.raises(Crash):
            start(small(dataset=place, head_epochs=1, fine_tune_epochs=0), store, observer=CrashOn(events.Committed))
        record = record_of(store)
        results.append((record.inputs, [(epoch.train_loss, epoch.validation_loss) for epoch in record.history]))
    assert results[0] == results[1]


def photo_folder(folder: Path, num_images: int) -> dict[str, bytes]:
    """Images of two classes with a table, among other files; returns those that a run needs."""
    images = {f"{'cat' if number % 2 else 'dog'}/{number}.jpg": b"%d" % number for number in range(num_images)}
    rows = "".join(f"{name},{name[:3]}\n" for name in images if "cat" in name)
    files = images | {"labels.csv": f"path,label\n{rows}".encode()}
    for name, content in (files | {".hidden.jpg": b"", "notes.txt": b""}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return files


@pytest.mark.slow
def test_own_images_are_mirrored_and_a_mirror_that_was_cut_short_is_refused(
    gcs: GcsServer, environment: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    """Until the command that was killed is started again, and goes on where it was."""
    files = photo_folder(tmp_path / "my photos", 120)
    env = environment(dataset=tmp_path / "my photos", labels="folder", weights="none")
    with begin(env, "mirror", "--to", f"gs://{BUCKET}/m") as process:
        wait_for(process, data_events.Mirrored.name, number=20)
        process.kill()
    place, manifest = f"gs://{BUCKET}/m/images/my-photos", f"m/images/my-photos/{MANIFEST}"
    with pytest.raises(InputError, match="cut short"):
        fetching(tmp_path)[0].images(place)
    listed = json.loads(gcs.objects[manifest].data)["files"]
    sent = {name for name, entry in listed.items() if entry["version"]}
    assert (len(listed), 10 <= len(sent) < len(files)) == (len(files), True)
    gcs.requests.clear()
    done = job("mirror", "--to", f"gs://{BUCKET}/m", env=env)
    assert done.returncode == ExitCode.COMPLETE, done.stdout + done.stderr
    printed = json.loads(done.stdout.splitlines()[-1])
    assert {name: text for name, text in printed.items() if name.startswith("THAW")} == {"THAW_DATASET": place}
    written = [name for operation, name in gcs.requests if operation == "write"]
    assert not {f"m/images/my-photos/{name}" for name in sent} & set(written)
    assert written.count(manifest) <= 23
    assert contents(Path(fetching(tmp_path)[0].images(place))) == files


@pytest.mark.parametrize("place", ["", "labels.csv", "../photos.zip"])
def test_a_mirror_gives_the_same_images_as_the_place(gcs: GcsServer, tmp_path: Path, place: str) -> None:
    """What a run needs of it, and no more; what was there before and is not any more is not mixed in."""
    files, folder, observer = photo_folder(tmp_path / "photos", 8), tmp_path / "photos", Recorder()
    shutil.make_archive(str(folder), "zip", folder)
    settings = Settings(
        dataset=str(folder / place), labels="auto" if place.endswith("csv") else "folder", weights="none"
    )

    def fill() -> None:
        answer(Options(settings=settings, to=f"gs://{BUCKET}/m"), observer=observer, check_stop=never)

    fill()
    (printed,) = observer.of(data_events.MirrorSettings)
    fetched = Path(fetching(tmp_path)[0].images(printed.THAW_DATASET))
    if place == "../photos.zip":
        assert fetched.read_bytes() == (tmp_path / "photos.zip").read_bytes()
        return
    wanted = {name for name in files if not place or not name.startswith("dog")}
    assert contents(fetched if not place else fetched.parent) == {name: files[name] for name in wanted}
    (folder / "dog" / "0.jpg").unlink()
    if not place:
        with pytest.raises(InputError, match=r"has 'dog/0\.jpg', and they are not here"):
            fill()
    del gcs.objects["m/images/photos/cat/1.jpg"]
    with pytest.raises(InputError, match=r"cat/1\.jpg is in the manifest of the mirror and does not exist"):
        fetching(tmp_path)[0].images(printed.THAW_DATASET)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "fault", "reason"),
    [
        pytest.param(["--to", "gs://no-such-bucket/m"], None, "bucket does not exist", marks=pytest.mark.slow),
        (["--to", f"gs://{BUCKET}/m"], "403", "does not have storage.objects"),
        pytest.param(["--to", "gs://"], None, "--to='gs://': expected gs://bucket/prefix", marks=pytest.mark.slow),
        pytest.param(["--to", "ftp://bucket/m"], None, "ftp:// is not a store", marks=pytest.mark.slow),
        pytest.param(["--to", "/proc/mirror"], None, "/proc/mirror", marks=pytest.mark.slow),
        ([], None, "--to: is missing (where to: gs://bucket/prefix"),
    ],
)
def test_a_place_that_cannot_be_filled_is_refused_before_anything_is_prepared(
    gcs: GcsServer, environment: Callable[..., dict[str, str]], tmp_path: Path,
    arguments: list[str], fault: str | None, reason: str,
) -> None:  # fmt: skip
    """In about a second, without TensorFlow, and without a download."""
    if fault is not None:
        gcs.fail(fault, at=0, times=1000, operation="write")
    done = run_without("tensorflow", "mirror", *arguments, env=environment(data_dir=tmp_path / "nothing"))
    assert done.returncode in (ExitCode.BAD_INPUT, ExitCode.STORAGE_UNAVAILABLE, ExitCode.INVALID_SETTINGS), (
        done.stdout + done.stderr
    )
    assert reason in done.stdout + done.stderr
    assert not (tmp_path / "nothing").exists()
