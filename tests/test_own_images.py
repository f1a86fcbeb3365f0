"""Image files as data: the same images give the same run wherever they lie, and what cannot be read is named."""

import csv
import io
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from job.data import image_table
from job.data.splits import DataRequest, Splits, load_splits
from job.errors import DataCorrupt, InputError, InvalidSettings
from job.observe import data_events, events
from job.observe.sentences import sentence
from job.run.inputs import compare_data
from job.storage import MISSING, LocalStore
from tests import shapes
from tests.recorded import INPUTS
from tests.runs import CrashOn, Small, never, record_of, start
from tests.stores import HOSTILE_TABLES, Crash

NUM_IMAGES = 96
SHORT = {"head_epochs": 1, "fine_tune_epochs": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes.write_images(tmp_path_factory.mktemp("images") / "photos")


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """Images that a test may change."""
    return Path(shutil.copytree(folder, tmp_path / "photos"))


@pytest.fixture
def load(tmp_path: Path, load_and_close: Callable[..., Splits]) -> Callable[..., Splits]:
    def load_with(place: Path, **changes: Any) -> Splits:
        request: DataRequest = shapes.request(
            tmp_path, **({"dataset": str(place), "specs": ("train[:40%]", "train[40%:50%]", "train[50%:]")} | changes)
        )
        splits = load_and_close(request)
        splits.wait()
        return splits

    return load_with


def as_kaggle_has_them(folder: Path, to: Path) -> Path:
    """dogs-vs-cats.zip, which has train.zip, which has train/DISC.0.png and so on."""
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        for path in folder.rglob("*.png"):
            archive.write(path, f"train/{path.parent.name.upper()}.{path.stem}.png")
    with zipfile.ZipFile(to / "shapes.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.zip", inner.getvalue())
        archive.writestr("sampleSubmission.csv", "id,label\n1,0\n")
    return to / "shapes.zip"


def as_table(folder: Path, to: Path) -> Path:
    """One folder with all images under other names, and a table."""
    (to / "all").mkdir()
    with (to / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "label"])
        for number, path in enumerate(sorted(folder.rglob("*.png"), reverse=True)):
            shutil.copyfile(path, to / "all" / f"x{number}.png")
            writer.writerow([f"all/x{number}.png", path.parent.name])
    return to / "metadata.csv"


@pytest.mark.slow
@pytest.mark.parametrize("lay_out", [as_kaggle_has_them, as_table])
def test_the_same_images_are_the_same_data_wherever_they_lie(
    load: Any, folder: Path, tmp_path: Path, lay_out: Any
) -> None:
    """Identity, classes, splits and pixels; without a cache too."""
    expected, found = load(folder), load(lay_out(folder, tmp_path), cache="none")
    assert found.identity == expected.identity
    assert tuple(name.lower() for name in found.class_names) == expected.class_names == ("bar", "disc")
    for split in ("train", "validation", "test"):
        batches = [next(iter(getattr(splits, split).batches(96))) for splits in (expected, found)]
        for a, b in zip(*batches, strict=True):
            np.testing.assert_array_equal(a, b)
    assert expected.identity["splits"] == {"train": 38, "validation": 10, "test": 48}
    assert all(abs(counts[0] - counts[1]) <= 1 for counts in expected.composition.counts.values())


@pytest.mark.slow
def test_splits_that_the_data_brings_stay_as_they_are(load: Any, folder: Path, tmp_path: Path) -> None:
    """Unless slices of them are asked for; duplicates across them are named."""
    for number, split in enumerate(("train", "val", "test")):
        for path in sorted(folder.rglob("*.png"))[number::3]:
            target = tmp_path / "own" / split / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    again = tmp_path / "own/test/disc/again.png"
    shutil.copyfile(next((tmp_path / "own/train/disc").iterdir()), again)
    defaults = ("train[:40%]", "train[40%:50%]", "train[50%:60%]")
    splits = load(tmp_path / "own", specs=defaults)
    assert splits.identity["splits"] == {"train": 32, "validation": 32, "test": 33}
    (finding,) = (finding for finding in splits.findings() if isinstance(finding, data_events.Duplicates))
    assert (finding.train_test, "test/disc/again.png (test)" in finding.images[0]) == (1, True)
    sliced = load(tmp_path / "own", specs=("train[:50%]", "train[50%:]", "test"))
    assert sliced.identity["splits"] == {"train": 16, "validation": 16, "test": 33}
    shutil.rmtree(tmp_path / "own/test")
    with pytest.raises(InvalidSettings, match="and no test") as caught:
        load(tmp_path / "own", specs=defaults)
    hinted = dict(re.findall(r"THAW_(\w+)_SPLIT=(\S+?)(?:,|$| )", caught.value.hint))
    cut = load(tmp_path / "own", specs=tuple(hinted[name] for name in ("TRAIN", "VALIDATION", "TEST")))
    assert cut.identity["splits"] == {"train": 26, "validation": 32, "test": 6}


def test_images_that_no_split_has_are_counted(load: Any, folder: Path) -> None:
    """Of the 96, by default all but 40, 10 and 10 per cent; of splits that have all, none."""
    defaults = load(folder, specs=("train[:40%]", "train[40%:50%]", "train[50%:60%]"))
    (finding,) = defaults.findings()
    assert finding == data_events.ImagesUnused(96 - sum(defaults.identity["splits"].values()))
    assert "images are not used" in sentence(finding)
    assert list(load(folder).findings()) == []


def test_the_same_image_is_in_one_split_only(load: Any, copied: Path) -> None:
    """Under however many names."""
    for path in list(copied.rglob("*.png"))[:20]:
        for number in range(3):
            shutil.copyfile(path, path.with_name(f"copy-{number}-{path.name}"))
    assert not any(load(copied).composition.duplicates.values())


def damage(folder: Path) -> None:
    """One image of each kind that cannot be read."""
    (folder / "disc/0.png").write_bytes((folder / "disc/0.png").read_bytes()[:200])
    (folder / "disc/2.png").write_bytes(b"")
    (folder / "bar/1.png").write_text("<svg/>")
    (folder / "bar/photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (folder / "disc/link.png").symlink_to("nothing")


def test_all_that_cannot_be_read_is_named_at_once(load: Any, copied: Path) -> None:
    """Of every split and kind."""
    damage(copied)
    with pytest.raises(DataCorrupt, match="5 of the 98 images cannot be read") as caught:
        load(copied)
    for line in (
        "disc/0.png: cannot be decoded", "disc/2.png: is empty", "bar/1.png: is SVG", "bar/photo.heic: is HEIC",
        "disc/link.png: is not a file, or a link to none",
    ):  # fmt: skip
        assert line in caught.value.message
    assert "THAW_ON_UNREADABLE=skip" in caught.value.hint


@pytest.mark.parametrize("cache", ["memory", pytest.param("none", marks=pytest.mark.slow)])
def test_what_is_skipped_is_counted_and_identifies_the_data(load: Any, folder: Path, copied: Path, cache: str) -> None:
    """The other images stay in their splits."""
    damage(copied)
    whole, rest = load(folder), load(copied, on_unreadable="skip", cache=cache)
    assert sum(rest.identity["splits"].values()) == NUM_IMAGES - 3
    assert sorted(image.name for image in rest.composition.skipped) == [
        "bar/1.png", "bar/photo.heic", "disc/0.png", "disc/2.png", "disc/link.png"
    ]  # fmt: skip
    (finding,) = (finding for finding in rest.findings() if isinstance(finding, data_events.ImagesSkipped))
    assert (finding.num_images, sum(finding.kinds.values())) == (5, 5)
    images = np.concatenate([next(iter(split.batches(96)))[0] for split in (rest.train, rest.validation, rest.test)])
    known = {image.tobytes() for split in (whole.train, whole.validation, whole.test)
             for image in next(iter(split.batches(96)))[0].numpy()}  # fmt: skip
    assert len(images) == NUM_IMAGES - 3
    assert all(image.tobytes() in known for image in images)
    (copied / "bar/1.png").write_text("<svg></svg>")
    assert load(copied, on_unreadable="skip").identity["sha256"] != rest.identity["sha256"]


def test_a_file_that_changes_while_a_run_reads_it_counts_as_damaged(tmp_path: Path, copied: Path) -> None:
    """By name; what was read for the digest is what is trained on, or nothing is."""
    request = shapes.request(tmp_path, dataset=str(copied), cache="none")
    splits = load_splits(request, check_stop=never)
    splits.wait()
    changed, gone = (row["name"] for row in image_table.rows(splits.table or b"")[:2])
    (copied / changed).write_bytes(shapes.encode(shapes.draw(0, 1000)))
    (copied / gone).unlink()
    list(splits.train.batches(1).ignore_errors())
    with pytest.raises(DataCorrupt) as caught, splits:
        next(iter(splits.train.batches(1)))
    assert f"\n  train: {changed}: has changed since it was first read\n" in caught.value.message
    assert f"\n  train: {gone}: is not a file, or a link to none" in caught.value.message


def test_what_cannot_be_opened_is_named_by_that(load: Any, copied: Path) -> None:
    """Its bytes are missing, and not those of an image that is damaged."""
    names = [f"bar/{number}.png" for number in (1, 3, 5, 7, 9)]

    def hide(name: str) -> None:
        (copied / name).unlink()
        (copied / name).symlink_to("nowhere")

    for name in names:
        hide(name)
    specs = ("train[:80%]", "train[80%:90%]", "train[90%:]")
    with pytest.raises(DataCorrupt, match=r"5 of the 96 images cannot be read") as caught:
        load(copied, specs=specs)
    assert all(f"{name}: is not a file, or a link to none" in caught.value.message for name in names)
    skipped = load(copied, specs=specs, on_unreadable="skip").composition.skipped
    assert {(image.name, image.reason) for image in skipped} == {
        (name, "is not a file, or a link to none") for name in names
    }
    for path in (copied / "disc").iterdir():
        hide(f"disc/{path.name}")
    with pytest.raises(DataCorrupt, match=r"53 of the 96 images are empty, or cannot be read \('bar/1\.png', .*\), so"):
        load(copied, specs=specs)


@pytest.mark.slow
def test_a_run_names_the_images_that_changed(small: Small, store: LocalStore, copied: Path) -> None:
    """A changed label is other data: exit code 4, and the run goes on with what it began with."""
    settings = small(dataset=str(copied), data_dir=None, **SHORT)
    with pytest.raises(Crash):
        start(settings, store, observer=CrashOn(events.Committed))
    assert store.list("data/") == [record_of(store).inputs["images"]]
    (copied / "bar/1.png").rename(copied / "disc/1.png")
    (copied / "bar/3.png").write_bytes(shapes.encode(shapes.draw(1, 1000)))
    with pytest.raises(InputError, match="not what the run began with") as caught:
        start(settings, store)
    assert "1 have other bytes: bar/3.png" in caught.value.message
    assert "1 are gone: bar/1.png" in caught.value.message
    (store.root / record_of(store).inputs["images"]).write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"other images or labels, or in another order\Z"):
        start(settings, store)
    shutil.rmtree(copied)
    shapes.write_images(copied)
    with pytest.raises(Crash):
        start(settings, store, observer=CrashOn(events.Restored))


@pytest.mark.parametrize("table", HOSTILE_TABLES)
def test_a_table_that_another_wrote_does_not_end_the_comparison_of_data(table: bytes, store: LocalStore) -> None:
    """A record may name any object, and its name be that of its content. The data differs, and no more is said."""
    name = image_table.name_of(table)
    store.write(name, table, if_version=MISSING)
    identity = {"dataset": None, "num_classes": None, "class_names_sha256": None, "splits": {"train": 1}}
    splits: Any = SimpleNamespace(identity=identity, table=b"name,split,label,sha256\n")
    of_run: Any = SimpleNamespace(content=SimpleNamespace(inputs=INPUTS | {"images": name}, checkpoints=["one"]))
    with pytest.raises(InputError, match=r"the run has 100 examples, this attempt 1\Z"):
        compare_data(splits, of_run, store)


def test_a_kept_table_is_read_as_far_as_it_is_whole(store: LocalStore) -> None:
    """A cell that is not there is empty. What is no object, or has another name, tells nothing."""
    table = b"name,split,label,sha256\na.jpg,train\n"
    name = image_table.name_of(table)
    (store.root / name).mkdir(parents=True)
    assert image_table.kept_rows(store, {"images": name}) is None
    (store.root / name).rmdir()
    assert image_table.kept_rows(store, {"images": name}) is None
    store.write(name, table, if_version=MISSING)
    (row,) = image_table.kept_rows(store, {"images": name}) or ()
    assert row == {"name": "a.jpg", "split": "train", "label": "", "sha256": ""}
    store.write("data/other.csv", table, if_version=MISSING)
    assert image_table.kept_rows(store, {"images": "data/other.csv"}) is None
    assert image_table.kept_rows(store, {}) is None


@pytest.mark.slow
def test_images_may_be_repaired_until_a_run_has_learned_something(
    small: Small, store: LocalStore, copied: Path
) -> None:
    """Its first checkpoint pins them. The hint on unreadable images would be of no use otherwise."""
    settings = small(dataset=str(copied), data_dir=None, **SHORT)
    with pytest.raises(Crash):
        start(settings, store, observer=CrashOn(events.PhaseStarted))
    before = record_of(store)
    for path in sorted((copied / "bar").iterdir())[:8]:
        path.unlink()
    with pytest.raises(Crash):
        start(settings, store, observer=CrashOn(events.Committed))
    after = record_of(store)
    assert after.checkpoints
    assert before.inputs["data"]["sha256"] != after.inputs["data"]["sha256"]
    assert before.inputs["images"] != after.inputs["images"]
