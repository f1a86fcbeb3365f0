"""A mirror that an attacker has written to: nothing leaves the cache folder, and nothing of it runs."""

import contextlib
import json
import sys
import tempfile
from pathlib import Path

import keras
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from job.cli import checks
from job.data import filling
from job.data.manifest import MANIFEST
from job.data.tfds import prepared
from job.data.tfds.builders import find_builder
from job.errors import InputError, WeightsUnusable
from job.observe import data_events
from job.settings.settings import Settings
from job.storage import open_store
from tests.classifiers import build
from tests.gcs_server import BUCKET, GcsServer
from tests.test_mirror import contents, fetching, send

DATA = f"gs://{BUCKET}/m"
FILES = ("dataset_info.json", "features.json", "label.labels.txt", "LICENSE", "set-train.tfrecord-00000-of-00001")


@pytest.fixture
def bucket(gcs: GcsServer) -> GcsServer:
    """A data set as a mirror has it, without a manifest."""
    for name in FILES:
        gcs.put(f"m/set/1.0.0/{name}", b"{}", None)
    return gcs


def test_what_a_data_set_needs_is_fetched(bucket: GcsServer, tmp_path: Path) -> None:
    """Also beside the empty objects that a console shows as folders."""
    bucket.put("m/set/1.0.0/", b"", None)
    assert set(contents(fetching(tmp_path)[0].dataset(DATA, "set"))) == {f"set/1.0.0/{name}" for name in FILES}


@pytest.mark.parametrize(
    "name",
    [
        "set/../../../../victim/dataset_info.json", "set/1.0.0/../../x.json", "set//1.0.0/x.json", "set/./x.json",
        "set/2.0.0/..", "set/../", "set/1.0.0/a\nb.json", f"set/1.0.0/{'x' * 300}.json",
        "set/1.0.0/dataset_info.json/dataset_info.json",
        *(f"set/1.0.0/{name}" for name in ("card.py", "x.so", ".pth", "run.sh", "tfrecord", "a.json.py")),
    ],
)  # fmt: skip
def test_one_name_of_no_file_of_a_data_set_refuses_the_whole_mirror(
    bucket: GcsServer, tmp_path: Path, name: str
) -> None:
    """A path that leads elsewhere, or a program. It is named, and nothing is fetched."""
    bucket.put(f"m/{name}", b"{}", None)
    bucket.requests.clear()
    with pytest.raises(InputError) as caught:
        fetching(tmp_path)[0].dataset(DATA, "set")
    assert repr(name.removesuffix("/"))[1:-1] in caught.value.message
    assert contents(tmp_path) == {}
    assert [operation for operation, _ in bucket.requests if operation == "read"] == []


@pytest.mark.parametrize(
    "name",
    [
        "../../../victim.jpg", "a/../../x.jpg", "a//x.jpg", "a/./x.jpg", "/x.jpg", "a\nb.jpg", "1.jpg/x.jpg",
        f"{'x' * 300}.jpg",
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["m", "m/labels.csv"])
def test_one_name_of_no_image_file_refuses_all_images(gcs: GcsServer, tmp_path: Path, place: str, name: str) -> None:
    """In a bucket, or in a table there. It is named, and no image is fetched."""
    gcs.put("m/1.jpg", b"1", None)
    if place == "m":
        gcs.put(f"m/{name}", b"2", None)
    else:
        gcs.put(place, f'path,label\n1.jpg,a\n"{name}",b\n'.encode(), None)
    gcs.requests.clear()
    with pytest.raises(InputError) as caught:
        fetching(tmp_path)[0].images(f"gs://{BUCKET}/{place}")
    assert repr(name)[1:-1] in caught.value.message
    assert [path for operation, path in gcs.requests if operation == "read" and path.endswith("jpg")] == []


def test_a_file_that_the_manifest_does_not_name_refuses_the_whole_mirror(gcs: GcsServer, tmp_path: Path) -> None:
    """Until the mirror is filled again: what a killed command had sent is taken over. The description is sent last."""
    files = {}
    for name in FILES:
        files[f"set/1.0.0/{name}"] = tmp_path / name
        (tmp_path / name).write_bytes(b"{}")
    cut_short = "set/1.0.0/set-train.tfrecord-00000-of-00001"
    send(open_store(DATA), {name: path for name, path in files.items() if name != cut_short})
    gcs.put(f"m/{cut_short}", b"half sent", None)
    with pytest.raises(InputError, match=f"{cut_short} is not in the manifest") as caught:
        fetching(tmp_path)[0].dataset(DATA, "set")
    assert "thaw mirror" in caught.value.hint
    assert contents(tmp_path / "cache") == {}
    observer = send(open_store(DATA), files)
    assert observer.of(data_events.Mirrored)[-1].file == "set/1.0.0/dataset_info.json"
    assert (fetching(tmp_path)[0].dataset(DATA, "set") / cut_short).read_bytes() == b"{}"


def test_weights_that_the_manifest_does_not_name_are_refused(gcs: GcsServer, tmp_path: Path) -> None:
    """As files of data are."""
    filling.probe(open_store(f"{DATA}/weights"))
    gcs.put("m/weights/x.h5", b"", None)
    with pytest.raises(InputError, match=r"x\.h5 is not in the manifest"):
        fetching(tmp_path)[0].weights(f"{DATA}/weights/x.h5")


LISTED = {"size": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"{", "Invalid JSON"), *((json.dumps({"files": {name: LISTED}}).encode(), "not a safe name")
                               for name in ("../x.json", "/etc/passwd", "a//b"))],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(bucket: GcsServer, tmp_path: Path, content: bytes, reason: str) -> None:
    """Also for the name of a file that is not wanted."""
    bucket.put(f"m/{MANIFEST}", content, None)
    with pytest.raises(InputError, match=rf"{DATA}/{MANIFEST} is not the manifest .*{reason}") as caught:
        fetching(tmp_path)[0].dataset(DATA, "set")
    assert "delete it" in caught.value.hint


PARTS = st.sampled_from(
    ["..", ".", "", "1.0.0", "set", "dataset_info.json", "x.json", "x.jpg", "a.py", "\0", "猫.json", "~"]
)
NAMES = st.lists(PARTS, max_size=6).map(lambda parts: "/".join(["set", *parts]))


@given(st.lists(st.one_of(NAMES, NAMES.map(lambda name: f"{name}/dataset_info.json")), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_is_written_outside_of_the_cache_folder(gcs: GcsServer, tmp_path: Path, names: list[str]) -> None:
    """Whatever a listing has."""
    gcs.objects.clear()
    for name in names:
        gcs.put(f"m/{name}", b"{}", None)
    folder = Path(tempfile.mkdtemp(dir=tmp_path)) / "a" / "folder"
    # InputError of a name, DataUnavailable of none that is wanted: never that a disk or the store is at fault.
    with contextlib.suppress(InputError):
        fetching(folder)[0].dataset(DATA, "set")
    with contextlib.suppress(InputError):
        fetching(folder)[0].images(DATA)
    assert all("/a/folder/cache/" in name for name in contents(tmp_path))


# What TFDS would open


def write(folder: Path, name: str, content: object) -> Path:
    path = folder / "set" / "1.0.0" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return folder


IMAGE = {"pythonClassName": "tensorflow_datasets.core.features.image_feature.Image", "image": {}}
EVIL = "thaw_evil.Image"


@pytest.mark.parametrize(
    "content",
    [
        {"pythonClassName": EVIL, "image": {}},
        {"python_class_name": EVIL},
        {"featuresDict": {"features": {"image": {"pythonClassName": EVIL}}}},
        {"type": EVIL, "content": {}},
        {"type": f"{prepared.TRUSTED_CLASSES}x.Y", "content": {"a": {"type": EVIL, "content": "{}"}}},
        {**IMAGE, "jsonFeature": {"json": json.dumps({"a": {"type": EVIL, "content": {}}})}},
        {"splits": [{"name": "train", "filepathTemplate": "../../etc/{SPLIT}"}]},
        {"splits": [{"name": "train", "filepath_template": "/etc/passwd"}]},
    ],
)  # fmt: skip
@pytest.mark.parametrize("linked", [False, True])
def test_a_description_that_names_code_or_files_of_elsewhere_is_refused(
    tmp_path: Path, content: object, linked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every spelling that TFDS reads, before it reads any, behind a link too; by `plan` as by a start."""
    (tmp_path / "thaw_evil.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "features.json" if linked else "dataset_info.json"
    folder = write(tmp_path, name, content)
    if linked:
        folder = tmp_path / "links"
        (folder / "set").mkdir(parents=True)
        (folder / "set" / "1.0.0").symlink_to(tmp_path / "set" / "1.0.0")
    with pytest.raises(InputError, match=f"{name}.*({EVIL}|outside)"):
        find_builder("set", str(folder))
    with pytest.raises(InputError, match=name):
        checks.data(Settings(dataset="set", data_dir=str(folder)))
    assert "thaw_evil" not in sys.modules


def test_a_statistic_is_no_class(tmp_path: Path) -> None:
    """TFDS's schema of a data set has types too."""
    prepared.check(
        write(tmp_path, "dataset_info.json", {"schema": {"feature": [{"name": "a", "type": "BYTES"}]}}), "set"
    )


def test_a_model_with_a_function_in_it_gives_no_weights(tmp_path: Path) -> None:
    """Keras would run it: a Lambda layer is code."""
    network = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Lambda(lambda x: x), keras.layers.Flatten()])
    network.save(tmp_path / "lambda.keras")
    with pytest.raises(WeightsUnusable, match="lambda"):
        build(weights=str(tmp_path / "lambda.keras"))
