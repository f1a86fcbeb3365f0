"""Data: every example once an epoch, in an order that is the same after a restart, and errors with names."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from job.data import tfds_source
from job.data.splits import Split, Splits, epoch_order, load_splits, train_batches
from job.errors import DataCorrupt, DataUnavailable, InputError, Interrupted, InvalidSettings
from tests import shapes
from tests.runs import never
from tests.shapes import draw, encode


@pytest.fixture
def load(prepared: Path, tmp_path: Path) -> Callable[..., Splits]:
    def load_with(*, check_stop: Callable[[], None] = never, **changes: Any) -> Splits:
        request = shapes.request(prepared, **({"image_size": 24, "cache_dir": tmp_path} | changes))
        return load_splits(request, check_stop=check_stop)

    return load_with


def epoch_of(split: Split, *, seed: int = 0, epoch: int = 0, skip_batches: int = 0) -> Any:
    """The batches of 16 of an epoch of the head phase."""
    order = epoch_order(len(split), seed=seed, phase="head", epoch=epoch)
    return train_batches(split, order, batch_size=16, skip_batches=skip_batches)


def read(dataset: Any) -> tuple[np.ndarray, np.ndarray, list[int]]:
    images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels), [len(batch) for batch in labels]


def test_splits_have_the_sizes_and_classes_that_were_asked_for(load: Callable[..., Splits]) -> None:
    """And identify the data they came from."""
    splits = load()
    assert [len(split) for split in (splits.train, splits.validation, splits.test)] == [40, 16, 24]
    assert splits.class_names == ("disc", "bar")
    assert splits.identity["dataset"] == "two_shapes/1.0.0"
    assert splits.identity["splits"] == {"train": 40, "validation": 16, "test": 24}


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_images_are_those_of_the_data_set_under_every_cache(load: Callable[..., Splits], cache: str) -> None:
    """Pixel for pixel at their own size, with the right labels, in the order of the split."""
    images, labels, _ = read(load(cache=cache).validation.batches(5))
    assert images.dtype == np.uint8
    assert labels.tolist() == [index % 2 for index in range(40, 56)]
    for image, index in zip(images, range(40, 56), strict=True):
        np.testing.assert_array_equal(image, draw(index % 2, index))


@pytest.mark.parametrize("cache", ["disk", "none"])
def test_an_epoch_is_the_same_under_every_cache(load: Callable[..., Splits], cache: str) -> None:
    """The cache is not part of the fingerprint: it must not change the result."""
    epochs = [read(epoch_of(load(cache=kind, image_size=16).train, seed=1)) for kind in ("memory", cache)]
    np.testing.assert_array_equal(epochs[0][0], epochs[1][0])
    np.testing.assert_array_equal(epochs[0][1], epochs[1][1])


def test_images_are_resized_bilinearly_to_uint8(load: Callable[..., Splits]) -> None:
    """As `tf.image.resize` does it, rounded."""
    import tensorflow as tf

    images, _, _ = read(load(image_size=37).validation.batches(16))
    expected = tf.image.resize(draw(0, 40), (37, 37)).numpy()
    assert np.abs(images[0] - expected).max() <= 0.5


def test_the_last_partial_batch_is_kept(load: Callable[..., Splits]) -> None:
    """40 examples in batches of 16 are three batches."""
    assert read(epoch_of(load().train))[2] == [16, 16, 8]
    assert read(load().test.batches(16))[2] == [16, 8]


@pytest.mark.parametrize("num_examples", [1, 2, 17, 1000])
def test_an_epoch_has_every_example_once(num_examples: int) -> None:
    """The order is a permutation."""
    assert sorted(epoch_order(num_examples, seed=3, phase="head", epoch=2)) == list(range(num_examples))


def test_the_order_differs_by_seed_phase_and_epoch() -> None:
    """No two epochs of a run see the examples in the same order."""
    base = {"seed": 0, "phase": "head", "epoch": 0}
    orders = [
        tuple(epoch_order(100, **(base | change))) for change in ({}, {"seed": 1}, {"phase": "fine_tune"}, {"epoch": 1})
    ]
    assert len(set(orders)) == 4


def test_the_order_is_fixed_for_all_time() -> None:
    """A run may be continued by another version of NumPy: these numbers must never change."""
    assert epoch_order(10, seed=0, phase="head", epoch=0).tolist() == [3, 7, 6, 4, 1, 9, 5, 2, 0, 8]


@pytest.mark.parametrize("skip", [0, 1, 2, 3])
def test_a_restart_in_the_middle_sees_the_rest_of_the_epoch(load: Callable[..., Splits], skip: int) -> None:
    """What was seen before it and what is seen after it are the epoch, nothing twice."""
    split: Split = load().train
    whole = list(epoch_of(split, epoch=1).as_numpy_iterator())
    rest = list(epoch_of(split, epoch=1, skip_batches=skip).as_numpy_iterator())
    assert len(rest) == 3 - skip
    for (images, labels), (expected_images, expected_labels) in zip(rest, whole[skip:], strict=True):
        np.testing.assert_array_equal(images, expected_images)
        np.testing.assert_array_equal(labels, expected_labels)


@pytest.mark.parametrize(
    ("file_format", "cache"), [("array_record", "memory"), ("array_record", "none"), ("parquet", "memory")]
)
def test_other_formats_of_files_are_read_as_tfrecords_are(
    load: Callable[..., Splits], prepared_as: Callable[[str], Path], file_format: str, cache: str
) -> None:
    """The same images and labels in the same order, which the digest shows, and the same epoch."""
    found, expected = load(data_dir=str(prepared_as(file_format)), cache=cache), load(cache=cache)
    assert found.identity == expected.identity
    for images, expected_images in zip(read(epoch_of(found.train)), read(epoch_of(expected.train)), strict=True):
        np.testing.assert_array_equal(images, expected_images)


def test_damaged_images_of_array_records_are_named(
    load: Callable[..., Splits], prepared_as: Callable[[str], Path]
) -> None:
    """By their file name; TFDS knows no place there."""
    splits = load(data_dir=str(prepared_as("array_record")), dataset="damaged_shapes")
    with pytest.raises(DataCorrupt, match=r"1 of the images of train\[:40\] cannot be decoded:\n  shape-7\.png"):
        splits.wait()


@pytest.mark.parametrize("size", [0, 70_000, 10_000])
def test_array_records_that_were_copied_in_part_are_an_error_of_the_data(
    load: Callable[..., Splits], prepared_as: Callable[[str], Path], tmp_path: Path, size: int
) -> None:
    """Whatever the library raises."""
    folder = shutil.copytree(prepared_as("array_record"), tmp_path / "copied")
    shard = next(folder.glob("two_shapes/1.0.0/*array_record-*"))
    shard.write_bytes(shard.read_bytes()[:size])
    with pytest.raises(DataCorrupt, match="ends or is damaged at example"):
        load(data_dir=str(folder))


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record", "parquet"])
def test_files_with_fewer_examples_than_their_description_says_are_an_error_of_the_data(
    load: Callable[..., Splits], prepared_as: Callable[[str], Path], tmp_path: Path, file_format: str
) -> None:
    """The first that is not there is named."""
    folder = shutil.copytree(prepared_as(file_format), tmp_path / "copied")
    description = folder / "two_shapes/1.0.0/dataset_info.json"
    description.write_text(description.read_text().replace('"96"', '"100"'))
    with pytest.raises(DataCorrupt, match=r"ends or is damaged at example (16 of 20|96 of 100)"):
        load(data_dir=str(folder), specs=("train[:40]", "train[40:56]", "train[80:]"))


def test_damaged_images_are_named_by_file_and_place(load: Callable[..., Splits]) -> None:
    """All of a split at once, whichever image is waited for."""
    splits = load(dataset="damaged_shapes", specs=("train[:60]", "train[60:70]", "train[70:80]"))
    with pytest.raises(DataCorrupt) as caught:
        splits.validation.wait()
    message = caught.value.message
    assert "2 of the images of train[:60] cannot be decoded" in message
    assert "shape-7.png at damaged_shapes-train.tfrecord-00000-of-00001__7" in message
    assert "shape-50.png" in message
    assert "damaged_shapes" in caught.value.hint


@pytest.mark.parametrize("cache", ["disk", "none"])
def test_damaged_images_are_found_under_every_cache(load: Callable[..., Splits], cache: str) -> None:
    """Also where nothing is kept, every image is decoded once to know."""
    splits = load(dataset="damaged_shapes", cache=cache)
    with pytest.raises(DataCorrupt, match=r"shape-7\.png"):
        splits.wait()


@pytest.fixture
def copied(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the prepared data that a test may damage."""
    return Path(shutil.copytree(prepared, tmp_path / "copied"))


def change(shard: Path, index: int, changed: Callable[[Any], None]) -> None:
    """Change one example of a shard."""
    import tensorflow as tf

    records = [record.numpy() for record in tf.data.TFRecordDataset(str(shard))]
    example = tf.train.Example.FromString(records[index])
    changed(example.features.feature)
    records[index] = example.SerializeToString()
    with tf.io.TFRecordWriter(str(shard)) as writer:
        for record in records:
            writer.write(record)


def swap_label(feature: Any) -> None:
    feature["label"].int64_list.value[0] ^= 1


def touch_image(feature: Any) -> None:
    """The last byte of a PNG is of its checksum, which decoders pass over."""
    image = feature["image"].bytes_list.value[0]
    feature["image"].bytes_list.value[0] = image[:-1] + bytes([image[-1] ^ 1])


@pytest.mark.parametrize("cache", ["memory", "none"])
@pytest.mark.parametrize("changed", [swap_label, touch_image])
def test_another_label_or_byte_is_other_data(
    load: Callable[..., Splits], copied: Path, changed: Callable[[Any], None], cache: str
) -> None:
    """In its split alone, though no size differs."""
    shard = next(copied.glob("two_shapes/1.0.0/*.tfrecord*"))
    before = load(data_dir=str(copied), cache=cache).identity
    assert before == load(cache="disk").identity
    size = shard.stat().st_size
    change(shard, 60, changed)
    assert shard.stat().st_size == size
    after = load(data_dir=str(copied), cache=cache).identity
    assert {name for name in after if after[name] != before[name]} == {"split_sha256", "sha256"}
    digests = after["split_sha256"]
    assert {name for name in digests if digests[name] != before["split_sha256"][name]} == {"test"}


def test_an_image_that_two_splits_share_is_found(load: Callable[..., Splits], copied: Path) -> None:
    """By its bytes; the data is read all the same."""
    first = encode(draw(0, 0))

    def copy_of_the_first(feature: Any) -> None:
        feature["image"].bytes_list.value[0] = first

    shard = next(copied.glob("two_shapes/1.0.0/*.tfrecord*"))
    change(shard, 60, copy_of_the_first)
    composition = load(data_dir=str(copied)).composition
    assert composition.duplicates == {"train_validation": 0, "train_test": 1, "validation_test": 0}


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_a_missing_shard_is_an_error_of_the_data(load: Callable[..., Splits], copied: Path, cache: str) -> None:
    """It was not copied along."""
    next(copied.glob("two_shapes/1.0.0/*.tfrecord*")).unlink()
    with pytest.raises(DataCorrupt, match="tfrecord"):
        load(data_dir=str(copied), cache=cache)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_a_truncated_shard_is_an_error_of_the_data(load: Callable[..., Splits], copied: Path, cache: str) -> None:
    """It was copied in part."""
    shard = next(copied.glob("two_shapes/1.0.0/*.tfrecord*"))
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 3])
    with pytest.raises(DataCorrupt, match="ends or is damaged at example"):
        load(data_dir=str(copied), cache=cache)


def test_a_broken_description_is_an_error_of_the_data(load: Callable[..., Splits], copied: Path) -> None:
    """Whatever the parser of it raises."""
    (copied / "two_shapes/1.0.0/dataset_info.json").write_text('{"na')
    with pytest.raises(InputError) as caught:
        load(data_dir=str(copied))
    assert str(copied) in caught.value.message
    assert "THAW_DATA_DIR" in caught.value.hint


def test_a_split_that_names_examples_twice_is_refused(load: Callable[..., Splits]) -> None:
    """No example is seen twice in an epoch."""
    with pytest.raises(InvalidSettings, match="names some examples twice"):
        load(specs=("train[:20]+train[10:30]", "train[40:56]", "train[56:80]"))


def test_an_unknown_data_set_tells_what_was_looked_for_where_and_the_ways_out(
    load: Callable[..., Splits], tmp_path: Path
) -> None:
    """The three ways out are in the hint."""
    with pytest.raises(DataUnavailable) as caught:
        load(dataset="no_such_data", data_dir=str(tmp_path))
    assert "'no_such_data'" in caught.value.message
    assert str(tmp_path) in caught.value.message
    for way_out in ("THAW_DATA_DIR", "network", "make demo"):
        assert way_out in caught.value.hint


def test_data_that_cannot_be_downloaded_tells_the_same(
    load: Callable[..., Splits], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real download code runs and finds no network: its proxy is a closed port of this machine."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr(tfds_source, "REACH_BACKOFF_SECONDS", 0.0)
    with pytest.raises(DataUnavailable) as caught:
        load(dataset="cats_vs_dogs", data_dir=str(tmp_path))
    assert "cats_vs_dogs" in caught.value.message
    assert str(tmp_path) in caught.value.message
    assert "make demo" in caught.value.hint


def test_splits_that_do_not_fit_the_data_are_all_told(load: Callable[..., Splits]) -> None:
    """What could not be judged before the data was known is judged now, with the sizes."""
    with pytest.raises(InvalidSettings) as caught:
        load(specs=("train[:90%]", "train[80:90]", "nope"))
    lines = caught.value.message.splitlines()
    assert len(lines) == 3
    assert "THAW_VALIDATION_SPLIT='train[80:90]': overlaps THAW_TRAIN_SPLIT='train[:90%]'" in lines[1]
    assert "THAW_TEST_SPLIT='nope'" in lines[2]
    assert "two_shapes/1.0.0 has train (96)" in lines[2]


def test_a_split_that_has_no_examples_is_told(load: Callable[..., Splits]) -> None:
    """Also when only the size of the data shows it."""
    with pytest.raises(InvalidSettings, match="has no examples"):
        load(specs=("train[:50]", "train[60%:60%]", "train[70:80]"))


def test_a_data_set_without_images_and_labels_is_refused(load: Callable[..., Splits], tmp_path: Path) -> None:
    """The message shows its supervised keys."""
    import tensorflow_datasets as tfds

    class NoLabels(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> tfds.core.DatasetInfo:
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({"x": np.int64}))

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": iter([(0, {"x": 1})])}

        def _generate_examples(self) -> Any:
            raise NotImplementedError

    NoLabels(data_dir=tmp_path).download_and_prepare()
    with pytest.raises(InputError, match="not an image classification data set"):
        load(dataset="no_labels", data_dir=str(tmp_path))


def test_a_disk_without_room_for_the_cache_is_told(
    load: Callable[..., Splits], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Space is reserved before it is used: a full disk is an error and not a crash."""
    import errno
    import os

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InvalidSettings, match=r"THAW_CACHE_DIR=.*No space left"):
        load(cache="disk")


def test_loading_stops_when_told_to(load: Callable[..., Splits]) -> None:
    """A signal is honoured while labels are read."""

    def stop() -> None:
        raise Interrupted("now")

    with pytest.raises(Interrupted):
        load(check_stop=stop)
