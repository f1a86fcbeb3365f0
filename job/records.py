"""Random access to the examples of a prepared TFDS split.

TFRecord files are a sequence of (length: uint64, checksum: uint32, bytes, checksum: uint32). Reading the lengths
once gives the place of every example; after that any order of examples costs one read each.
Source of the format: tensorflow/core/lib/io/record_writer.h.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

_HEADER = struct.Struct("<QI")
_FOOTER_BYTES = 4


class ShardSlice(Protocol):
    """A part of one file, as TFDS names it (`SplitInfo.file_instructions`); `take` is -1 for the rest."""

    @property
    def filename(self) -> str: ...
    @property
    def skip(self) -> int: ...
    @property
    def take(self) -> int: ...


class RecordReader:
    """The serialized examples of a split by index, in the order in which TFDS reads the split."""

    def __init__(self, slices: Sequence[ShardSlice]) -> None:
        self._paths: list[Path] = []
        places: list[np.ndarray] = []
        for number, part in enumerate(slices):
            path = Path(part.filename)
            stop = None if part.take == -1 else part.skip + part.take
            chosen = _offsets(path, stop)[part.skip :]
            places.append(np.column_stack([np.full(len(chosen), number), chosen]))
            self._paths.append(path)
        self._places = np.concatenate(places).astype(np.int64)

    def __len__(self) -> int:
        return len(self._places)

    def read(self, index: int) -> bytes:
        """The serialized `tf.train.Example` of one index. Safe to call from several threads."""
        number, offset, length = (int(value) for value in self._places[index])
        # Opened for each read: a data set may have more shards than a process may have open files.
        with self._paths[number].open("rb") as file:
            file.seek(offset)
            return file.read(length)


def _offsets(path: Path, stop: int | None) -> np.ndarray:
    """Offset and length in bytes of the first `stop` records of a file, or of all: int64 [records, 2]."""
    places: list[tuple[int, int]] = []
    size = path.stat().st_size
    with path.open("rb") as file:
        offset = 0
        while offset < size and (stop is None or len(places) < stop):
            file.seek(offset)
            length, _ = _HEADER.unpack(file.read(_HEADER.size))
            places.append((offset + _HEADER.size, length))
            offset += _HEADER.size + length + _FOOTER_BYTES
    return np.array(places, dtype=np.int64).reshape(-1, 2)
