"""Data: every example once an epoch, in an order that is the same after a restart, and errors with names."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from job.data.order import epoch_order
from job.data.resizing import Resizing
from job.data.splits import Split, Splits, load_splits
from job.errors import DataCorrupt, DataUnavailable, InputError, Interrupted, InvalidSettings
from tests import shapes
from tests.conftest import slowly
from tests.runs import never

Load = Callable[..., Splits]


@pytest.fixture
def load(prepared: Path, tmp_path: Path) -> Load:
    def load_with(*, check_stop: Callable[[], None] = never, **changes: Any) -> Splits:
        request = shapes.request(prepared, **({"resizing": Resizing(24), "cache_dir": tmp_path} | changes))
        return load_splits(request, check_stop=check_stop)

    return load_with


def epoch_of(split: Split, *, skip_batches: int = 0) -> Any:
    """The batches of 16 of an epoch of the head phase."""
    order = epoch_order(len(split), batch_size=16, seed=0, phase="head", epoch=0)
    return split.worker_batches(order, batch_size=16, skip_batches=skip_batches)


@pytest.mark.parametrize(
    ("file_format", "cache"),
    [
        ("tfrecord", "memory"),
        *slowly(
            *(("tfrecord", "disk"), ("tfrecord", "none"), ("parquet", "disk")),
            *(("array_record", "memory"), ("array_record", "none")),
        ),
    ],
)
def test_an_epoch_is_the_same_whatever_the_format_and_the_cache(
    load: Load, prepared_as: Callable[[str], Path], file_format: str, cache: str
) -> None:
    """Pixel for pixel, with the right labels, in the order of the epoch; the last partial batch is kept."""
    splits = load(cache=cache, data_dir=str(prepared_as(file_format)))
    assert splits.class_names == ("disc", "bar")
    assert splits.identity["dataset"] == "two_shapes/1.0.0"
    assert splits.identity["splits"] == {"train": 40, "validation": 16, "test": 24}
    assert splits.identity == load().identity
    images, labels = zip(*epoch_of(splits.train).as_numpy_iterator(), strict=True)
    assert [len(batch) for batch in labels] == [16, 16, 8]
    order = epoch_order(40, batch_size=16, seed=0, phase="head", epoch=0)
    assert np.concatenate(labels).tolist() == (order % 2).tolist()
    np.testing.assert_array_equal(np.concatenate(images), shapes.pictures(order))
    _, images, _ = next(splits.validation.evaluation_batches(16))
    np.testing.assert_array_equal(images, shapes.pictures(np.arange(40, 56)))


def test_a_restart_in_the_middle_sees_the_rest_of_the_epoch(load: Load) -> None:
    """What was seen before it and what is seen after it are the epoch, nothing twice."""
    split = load().train
    whole = list(epoch_of(split).as_numpy_iterator())
    for skip in range(4):
        rest = list(epoch_of(split, skip_batches=skip).as_numpy_iterator())
        for (images, labels), (expected_images, expected_labels) in zip(rest, whole[skip:], strict=True):
            np.testing.assert_array_equal(images, expected_images)
            np.testing.assert_array_equal(labels, expected_labels)


# Other data, and damaged data


@pytest.fixture
def copied(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the prepared data that a test may damage."""
    return Path(shutil.copytree(prepared / "two_shapes", tmp_path / "copied" / "two_shapes")).parent


def change(folder: Path, index: int, changed: Callable[[Any], None]) -> None:
    """Change one example."""
    shard = next(folder.glob("two_shapes/1.0.0/*.tfrecord*"))
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


@pytest.mark.parametrize(
    ("changed", "cache"), [(swap_label, "memory"), pytest.param(touch_image, "none", marks=pytest.mark.slow)]
)
def test_another_label_or_byte_is_other_data(
    load: Load, copied: Path, changed: Callable[[Any], None], cache: str
) -> None:
    """In its split alone, though no size differs."""
    before = load(data_dir=str(copied), cache=cache).identity
    change(copied, 60, changed)
    after = load(data_dir=str(copied), cache=cache).identity
    assert {name for name in after if after[name] != before[name]} == {"split_sha256", "sha256"}
    digests = after["split_sha256"]
    assert {name for name in digests if digests[name] != before["split_sha256"][name]} == {"test"}


def test_an_image_that_two_splits_share_is_found(load: Load, copied: Path) -> None:
    """By its bytes; the data is read all the same."""

    def copy_of_the_first(feature: Any) -> None:
        feature["image"].bytes_list.value[0] = shapes.encode(shapes.draw(0, 0))

    change(copied, 60, copy_of_the_first)
    composition = load(data_dir=str(copied)).composition
    assert composition.duplicates == {"train_validation": 0, "train_test": 1, "validation_test": 0}


@pytest.mark.parametrize(
    ("file_format", "size", "cache", "expected"),
    [
        ("tfrecord", None, "memory", "tfrecord"),
        ("tfrecord", 20_000, "memory", "ends or is damaged at example"),
        ("tfrecord", 20_000, "none", "ends or is damaged at example"),
        ("array_record", 0, "memory", "ends or is damaged at example"),
        ("array_record", 10_000, "none", "ends or is damaged at example"),
        ("array_record", 70_000, "memory", "ends or is damaged at example"),
    ],
)
def test_files_that_were_copied_in_part_are_an_error_of_the_data(
    load: Load, prepared_as: Callable[[str], Path], tmp_path: Path,
    file_format: str, size: int | None, cache: str, expected: str,
) -> None:  # fmt: skip
    """Whatever the library raises; without a size the file is missing."""
    folder = shutil.copytree(prepared_as(file_format), tmp_path / "copied")
    shard = next(folder.glob(f"two_shapes/1.0.0/*{file_format}*"))
    content = shard.read_bytes()
    shard.unlink()
    if size is not None:
        shard.write_bytes(content[:size])
    with pytest.raises(DataCorrupt, match=expected):
        load(data_dir=str(folder), cache=cache)


@pytest.mark.parametrize("file_format", ["tfrecord", *slowly("array_record", "parquet")])
def test_files_with_fewer_examples_than_their_description_says_are_an_error_of_the_data(
    load: Load, prepared_as: Callable[[str], Path], tmp_path: Path, file_format: str
) -> None:
    """The first that is not there is named."""
    folder = shutil.copytree(prepared_as(file_format), tmp_path / "copied")
    description = folder / "two_shapes/1.0.0/dataset_info.json"
    description.write_text(description.read_text().replace('"96"', '"100"'))
    with pytest.raises(DataCorrupt, match=r"ends or is damaged at example (16 of 20|96 of 100)"):
        load(data_dir=str(folder), specs=("train[:40]", "train[40:56]", "train[80:]"))


def test_a_broken_description_is_an_error_of_the_data(load: Load, copied: Path) -> None:
    """Whatever the parser of it raises."""
    (copied / "two_shapes/1.0.0/dataset_info.json").write_text('{"na')
    with pytest.raises(InputError) as caught:
        load(data_dir=str(copied))
    assert str(copied) in caught.value.message
    assert "THAW_DATA_DIR" in caught.value.hint


def test_the_error_of_an_unknown_data_set_says_where_it_was_looked_for(load: Load, tmp_path: Path) -> None:
    """And three ways to go on."""
    with pytest.raises(DataUnavailable, match=f"'no_such_data': not in {tmp_path}") as caught:
        load(dataset="no_such_data", data_dir=str(tmp_path))
    assert all(hint in caught.value.hint for hint in ("THAW_DATA_DIR", "network", "make demo"))


def fail(error: Exception) -> Callable[..., None]:
    def raises(*_: Any) -> None:
        raise error

    return raises


def test_a_disk_without_space_for_the_cache_is_an_error(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Space is reserved before it is used: a full disk does not crash the program."""
    monkeypatch.setattr(os, "posix_fallocate", fail(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    with pytest.raises(InvalidSettings, match=r"THAW_CACHE_DIR=.*No space left"):
        load(cache="disk")


def test_loading_stops_at_a_signal(load: Load) -> None:
    """While labels are read."""
    with pytest.raises(Interrupted):
        load(check_stop=fail(Interrupted("now")))
