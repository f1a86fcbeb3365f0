"""Random access to the examples of a prepared TFDS split.

TFRecord files are a sequence of (length: uint64, checksum: uint32, bytes, checksum: uint32). Reading the lengths
once gives the place of every example; after that any order of examples costs one read each. A length that leads out of
its file is found here, before TensorFlow reads the file: TensorFlow 2.21 believes it, and the process is killed.
Source of the format: tensorflow/core/lib/io/record_writer.h.
"""

import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from job import memory
from job.errors import DataCorrupt

_HEADER = struct.Struct("<QI")
_FOOTER_BYTES = 4


class RecordReader:
    """The serialized examples of a split by index, in the order in which TFDS reads the split.

    `slices` are TFDS's `SplitInfo.file_instructions`: of each file how many examples to `skip`, and how many to `take`,
    -1 for the rest. Raises DataCorrupt when a file is missing, or does not have these examples.
    """

    def __init__(self, slices: Sequence[Any]) -> None:
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


def cut_short(place: str, reason: object) -> BaseException:
    """The error of data that ends, or cannot be read, at an example; when memory is exhausted, the data is not why."""
    if isinstance(reason, BaseException) and memory.is_exhausted(reason):
        return reason
    return DataCorrupt(
        f"the prepared data ends or is damaged at example {place}: {reason}", hint="prepare or copy the data set again"
    )


def _offsets(path: Path, stop: int | None) -> np.ndarray:
    """Offset and length in bytes of the first `stop` records of a file, or of all: int64 [records, 2]."""
    places: list[tuple[int, int]] = []

    def broken(reason: object) -> BaseException:
        return cut_short(f"{len(places)}{'' if stop is None else f' of {stop}'} of {path}", reason)

    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise broken("it is not a regular file")
        with path.open("rb") as file:
            offset, size = 0, status.st_size
            while offset < size and (stop is None or len(places) < stop):
                file.seek(offset)
                header = file.read(_HEADER.size)
                length = _HEADER.unpack(header)[0] if len(header) == _HEADER.size else size
                end = offset + _HEADER.size + length + _FOOTER_BYTES
                if end > size:
                    raise broken(f"a record leads to byte {end:,} of {size:,}")
                places.append((offset + _HEADER.size, length))
                offset = end
    except OSError as error:
        raise broken(error.strerror or error) from error
    if stop is not None and len(places) < stop:
        raise broken("the file has no more")
    return np.array(places, dtype=np.int64).reshape(-1, 2)
