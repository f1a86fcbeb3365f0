"""The interface of every store, and the values that it takes and returns."""

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Protocol

from job.storage import scratch

MISSING = ""
"""The version of an object that does not exist. Any other one is a token that only its store understands."""


@dataclass(frozen=True)
class StoredObject:
    """Bytes as read, with the version that a conditional write needs."""

    data: bytes
    version: str


@dataclass(frozen=True)
class Digest:
    """The size of a file in bytes, and its SHA-256 in hexadecimal."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Digest":
        """The digest of a file. Raises OSError."""
        with path.open("rb") as file:
            return cls.of_file(file)

    @classmethod
    def of_file(cls, file: BufferedReader) -> "Digest":
        """The digest of an open file from where it stands: at its beginning. Raises OSError."""
        return cls(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


class RequestObserver(Protocol):
    """Receives a report of each request, from several threads. `operation` is read, write, list or delete."""

    def request(self, operation: str, code: str, seconds: float) -> None:
        """A call has ended, of one request or several. `code` is ok, the HTTP status of a failure, or its kind."""

    def retry(self, operation: str) -> None:
        """A request is sent again."""

    def conflict(self, name: str) -> None:
        """A write was refused because another process had written the object."""

    def waiting(self, lock: str, at_most_seconds: float) -> None:
        """Another process has held a lock, a path, for a second; this one waits `at_most_seconds` in all."""

    def unanswered(self, reason: str, at_most_seconds: float) -> None:
        """A request has failed for some seconds; it is sent again for `at_most_seconds` in all."""


class Unobserved:
    """Ignores every report."""

    def request(self, operation: str, code: str, seconds: float) -> None: ...
    def retry(self, operation: str) -> None: ...
    def conflict(self, name: str) -> None: ...
    def waiting(self, lock: str, at_most_seconds: float) -> None: ...
    def unanswered(self, reason: str, at_most_seconds: float) -> None: ...


class ObjectStore(Protocol):
    """All that a run needs of storage. Every method raises StorageError when the store fails.

    Methods may be called from several threads.
    """

    uri: str
    """The root, as a person would write it."""

    def read(self, name: str) -> StoredObject:
        """The bytes and version of a small object. Raises ObjectMissing."""

    def peek(self, name: str) -> bytes:
        """The bytes of a small object, verified as by `read`, where no version is needed: in a bucket one request.

        Raises ObjectMissing.
        """
        return self.read(name).data

    def write(self, name: str, data: bytes, *, if_version: str) -> str:
        """Write a small object and return its new version.

        Raises PreconditionFailed, and writes nothing, unless the object's version is `if_version`. A write
        that was refused because an earlier try of the same call had succeeded is a success.
        """

    def upload(self, name: str, source: Path, *, if_version: str, may_move: bool = False) -> Digest:
        """Write a file of any size, under the same condition as `write`, and verify that the store holds it.

        With `may_move` the file may be gone afterwards: a store on the same disk takes it over and copies nothing.
        Returns the file's digest. Raises ObjectDamaged when the store does not hold the same bytes.
        """

    def download(self, name: str, target: Path) -> Digest:
        """Copy an object into a file; the digest is of the received bytes. Raises ObjectMissing, ObjectDamaged."""

    def version(self, name: str) -> str:
        """The current version, MISSING when the object does not exist."""

    def age_seconds(self, name: str) -> float | None:
        """Seconds since the object was last written, by the clock of the store; None where it has none.

        Raises ObjectMissing.
        """

    def folders(self) -> list[str]:
        """The first parts of the names that have a second one, sorted; fast, whatever the folders hold.

        An empty folder may be among them.
        """

    def list(self, prefix: str) -> list[str]:
        """The names that begin with `prefix`, sorted."""
        return [*self.versions(prefix)]

    def versions(self, prefix: str) -> dict[str, str]:
        """The same names, each with its current version, for one request where many would be needed."""

    def delete(self, name: str) -> None:
        """Remove an object; it is no error when the object does not exist."""


def digested(chunks: Iterable[Any], *also: Callable[[Any], object]) -> Digest:
    """The digest of bytes that come in pieces; each piece also goes to the functions of `also`."""
    size, sha256 = 0, hashlib.sha256()
    for chunk in chunks:
        sha256.update(chunk)
        size += len(chunk)
        for take in also:
            take(chunk)
    return Digest(size, sha256.hexdigest())


def digest_of(path: Path) -> Digest:
    """The digest of a temporary file. Raises ScratchUnavailable."""
    with scratch.explained(path):
        return Digest.of(path)
