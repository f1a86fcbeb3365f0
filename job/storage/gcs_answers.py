"""What an answer of Cloud Storage says of an object, and what is known of bytes that are sent or received."""

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import google_crc32c
from google.cloud import storage

from job.storage import scratch
from job.storage.protocol import Digest


@dataclass(frozen=True)
class Content:
    """What is known of some bytes: their number, and their CRC32C in base64 as the API writes it. None is not known."""

    size: int | None
    crc32c: str | None

    def is_surely(self, other: "Content") -> bool:
        """Whether both have the same checksum, and no other size. Google's testbench leaves out sizes of 0."""
        same_size = self.size is None or other.size is None or self.size == other.size
        return same_size and self.crc32c is not None and self.crc32c == other.crc32c


class Sink(Protocol):
    """Where bytes that are received go."""

    def write(self, data: bytes, /) -> object: ...


class Checksum:
    """A sink that keeps nothing but what its content is known by."""

    def __init__(self) -> None:
        self._size, self._crc32c = 0, 0

    def write(self, data: bytes) -> None:
        self._crc32c = google_crc32c.extend(self._crc32c, data)
        self._size += len(data)

    @property
    def content(self) -> Content:
        return Content(self._size, base64.b64encode(self._crc32c.to_bytes(4, "big")).decode())


def generation_of(blob: storage.Blob) -> int:
    """Raises TypeError or ValueError when an answer has none."""
    return int(blob.generation)


def is_confirmed(blob: storage.Blob) -> bool:
    """Whether an answer names its generation twice: the id of an object is bucket/name/generation."""
    return str(blob.id).endswith(f"/{blob.generation}")


def told_of(blob: storage.Blob) -> Content:
    return Content(blob.size, blob.crc32c)


def content_of(data: bytes) -> Content:
    checksum = Checksum()
    checksum.write(data)
    return checksum.content


def checksums_of(path: Path) -> tuple[Digest, Content]:
    """The digest of a temporary file and its CRC32C, in one reading."""
    sha256, checksum, size = hashlib.sha256(), Checksum(), 0
    for chunk in scratch.chunks(path):
        sha256.update(chunk)
        checksum.write(chunk)
        size += len(chunk)
    return Digest(size, sha256.hexdigest()), checksum.content
