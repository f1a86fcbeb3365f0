"""Random access to prepared examples: every one, at its place."""

import os
import struct
from pathlib import Path
from types import SimpleNamespace

import google_crc32c
import pytest
import tensorflow as tf

from job.data.tfds.records import RecordReader
from job.errors import DataCorrupt


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


def with_length(path: Path, length: int) -> Path:
    """The first record says that it is so long, with the checksum that makes a reader believe it."""
    header = struct.pack("<Q", length)
    checksum = google_crc32c.value(header)
    masked = ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF
    path.write_bytes(header + struct.pack("<I", masked) + path.read_bytes()[12:])
    return path


@pytest.mark.parametrize("length", [1000, 2**40, 2**62, 2**63, 2**64 - 1])
def test_a_length_that_leads_out_of_the_file_is_damage(tmp_path: Path, length: int) -> None:
    """TensorFlow 2.21 is killed by some of these: they must never come as far."""
    with pytest.raises(DataCorrupt, match=r"example 0 of 3 of .*one"):
        RecordReader([part(with_length(write(tmp_path / "one", [b"a"] * 3), length), take=3)])


@pytest.mark.parametrize("size", [0, 5, 17, 18, 50])
def test_a_file_that_ends_early_is_damage(tmp_path: Path, size: int) -> None:
    """In a header, in a record, or between two: records of one byte take 17."""
    path = write(tmp_path / "one", [b"a"] * 3)
    os.truncate(path, size)
    with pytest.raises(DataCorrupt, match=f"example {size // 17} of 3 of .*one"):
        RecordReader([part(path, take=3)])


@pytest.mark.parametrize("name", ["pipe", "missing", "."])
def test_what_is_no_file_is_damage(tmp_path: Path, name: str) -> None:
    """A pipe is not waited for."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataCorrupt, match="example 0 of 3"):
        RecordReader([part(tmp_path / name, take=3)])
