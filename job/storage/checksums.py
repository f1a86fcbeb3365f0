"""Checksums of bytes that are sent to Cloud Storage or received from there."""

import base64
from dataclasses import dataclass
from pathlib import Path

import google_crc32c

from job.storage import scratch
from job.storage.protocol import Digest, digested


@dataclass(frozen=True)
class Content:
    """Size in bytes and CRC32C, in base64 as the API writes it; None where an answer has none."""

    size: int | None
    crc32c: str | None

    def is_surely(self, other: "Content") -> bool:
        """Whether both have the same checksum, and no other size. Google's testbench leaves out sizes of 0."""
        same_size = self.size is None or other.size is None or self.size == other.size
        return same_size and self.crc32c is not None and self.crc32c == other.crc32c

    def __str__(self) -> str:
        return f"{self.size} bytes with CRC32C {self.crc32c}"


class Checksum:
    """A file that keeps only the size and the checksum of what is written to it."""

    def __init__(self) -> None:
        self.size, self._crc32c = 0, 0

    def write(self, data: bytes) -> None:
        self._crc32c = google_crc32c.extend(self._crc32c, data)
        self.size += len(data)

    @property
    def content(self) -> Content:
        return Content(self.size, base64.b64encode(self._crc32c.to_bytes(4, "big")).decode())


def content_of(data: bytes) -> Content:
    checksum = Checksum()
    checksum.write(data)
    return checksum.content


def checksums_of(path: Path) -> tuple[Digest, Content]:
    """The digest of a temporary file and its CRC32C, in one reading. Raises ScratchUnavailable."""
    checksum = Checksum()
    return digested(scratch.chunks(path), checksum.write), checksum.content
