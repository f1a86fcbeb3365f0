"""Random access to prepared examples: every one, at its place."""

from pathlib import Path
from types import SimpleNamespace

import tensorflow as tf
import tensorflow_datasets as tfds

from job.records import RecordReader


def write(path: Path, records: list[bytes]) -> Path:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path


def part(path: Path, skip: int = 0, take: int = -1) -> SimpleNamespace:
    return SimpleNamespace(filename=str(path), skip=skip, take=take)


def test_records_are_read_by_index_in_any_order(tmp_path: Path) -> None:
    """As TensorFlow's own writer wrote them, empty ones included."""
    records = [b"", b"a", b"b" * 100_000, b"c" * 3]
    reader = RecordReader([part(write(tmp_path / "one", records))])
    assert len(reader) == 4
    assert [reader.read(index) for index in (2, 0, 3, 1, 2)] == [records[index] for index in (2, 0, 3, 1, 2)]


def test_slices_of_several_files_follow_each_other(tmp_path: Path) -> None:
    """A split is parts of shards; a part is `skip` and `take`."""
    files = [write(tmp_path / f"{name}", [f"{name}{i}".encode() for i in range(5)]) for name in "ab"]
    reader = RecordReader([part(files[0], skip=3), part(files[1], skip=1, take=2)])
    assert [reader.read(index) for index in range(len(reader))] == [b"a3", b"a4", b"b1", b"b2"]


def test_the_examples_are_those_that_tfds_reads(prepared: Path) -> None:
    """In the same order, for a slice of a real prepared data set."""
    builder = tfds.builder("two_shapes", data_dir=prepared)
    reader = RecordReader(builder.info.splits["train[10:20]"].file_instructions)
    read = [builder.info.features.deserialize_example_np(reader.read(index)) for index in range(len(reader))]
    expected = list(builder.as_dataset(split="train[10:20]").as_numpy_iterator())
    assert [example["image/filename"] for example in read] == [example["image/filename"] for example in expected]
    assert len(read) == 10
