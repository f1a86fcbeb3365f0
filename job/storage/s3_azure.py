"""An S3 bucket or an Azure container as an object store, and every server of the S3 protocol with conditional writes.

Credentials and the address come from the provider's own variables (s3_azure_access.py); never from a setting. Each
method makes one attempt: see `RetryingStore`. Every write is conditional on an ETag, so of two that race one is
refused; whether a refused write was an earlier try of the same call, `holds` tells.

The version of an object is its ETag without quotes. On S3 that is a checksum of the bytes: it is new for other bytes,
but writing the same bytes again leaves it as it is.

Every object is verified in both directions:

- It is written with its SHA-256 as metadata. S3 also compares what arrives with a SHA-256 of the request. A write is
  confirmed when the ETag in its answer is the MD5 of what was sent; otherwise (Azure, keys of KMS) it is read back.
  Azure takes what was altered on its way: if the process is killed before it has read it back, the object stays so.
- What is received is hashed, and compared with that metadata. An object of another program has none: then with the ETag
  where that is the MD5; otherwise it is fetched twice, and both must be the same.
"""

import contextlib
import hashlib
import io
import mmap
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import obstore

from job.errors import AnswerMalformed, ObjectDamaged, ObjectMissing, PreconditionFailed, StorageRefused
from job.paths import UnsafeName, checked_name
from job.storage import scratch
from job.storage.protocol import MISSING, Digest, StoredObject, digest_of, digested
from job.storage.retrying import PASSING, RemoteStore
from job.storage.s3_azure_access import PROVIDERS, Client, connect
from job.storage.s3_azure_errors import explained

if TYPE_CHECKING:
    # Not there when the program runs (obstore 0.12).
    from obstore import GetResult

LARGEST_BYTES = 5_000_000_000
"""What both providers take in one request; only one request can be conditional."""
SLOWEST_BYTES_PER_SECOND = 1 << 20
CHUNK_BYTES = 1 << 20
NO_LIMIT = timedelta(days=1)
SHA256 = "sha256"


@dataclass(frozen=True)
class Checksums:
    """Of the same bytes: size and SHA-256, and the MD5 that may be an ETag."""

    digest: Digest
    md5: str

    @classmethod
    def of(cls, chunks: Iterable[Any], file: IO[bytes] | None = None) -> "Checksums":
        """Of bytes that come in pieces, which are also written to a file."""
        md5 = hashlib.md5(usedforsecurity=False)
        digest = digested(chunks, md5.update, *([file.write] if file else []))
        return cls(digest, md5.hexdigest())


class S3AzureStore(RemoteStore):
    """Objects under s3://bucket/prefix or az://container/prefix, one attempt a request.

    A small request without an answer after `timeout_seconds` is given up; one that receives a file when nothing more
    arrives for `file_timeout_seconds`; one that sends a file after so long and the time that 1 MiB/s would take.
    Raises StorageRefused without credentials.
    """

    def __init__(self, uri: str, *, timeout_seconds: float = 60.0, file_timeout_seconds: float = 300.0) -> None:
        self.uri = uri.rstrip("/")
        self._scheme, _, place = self.uri.partition("://")
        self._bucket, _, prefix = place.partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._provider = PROVIDERS[self._scheme]
        self._file_timeout_seconds = file_timeout_seconds
        timeout = timedelta(seconds=timeout_seconds)
        self.client = connect(self._scheme, self._bucket, timeout=timeout, read_timeout=timeout)
        self._receiving = connect(
            self._scheme, self._bucket, timeout=NO_LIMIT, read_timeout=timedelta(seconds=file_timeout_seconds)
        )
        self._sending: dict[int, Client] = {}

    def read(self, name: str) -> StoredObject:
        file = io.BytesIO()
        version, _ = self._received(self.client, name, file)
        return StoredObject(file.getvalue(), version)

    def write(self, name: str, data: bytes, *, if_version: str) -> str:
        return self._sent(self.client, name, data, Checksums.of([data]), if_version)

    def upload(self, name: str, source: Path, *, if_version: str, may_move: bool = False) -> Digest:
        meant = Checksums.of(scratch.chunks(source))
        size = meant.digest.size
        if size > LARGEST_BYTES:
            raise StorageRefused(
                f"{self.uri}/{name} would have {size} bytes: expected at most {LARGEST_BYTES}, for one request",
                hint="use a smaller model, or a store of another kind (see docs/storage.md)",
            )
        with scratch.explained(source), source.open("rb") as file:
            # Mapped, so that its bytes are not held in memory; an empty file cannot be. It is not closed here: after an
            # error a connection that is closing may still hold it.
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
            self._sent(self._sending_client(size), name, data, meant, if_version)
        return meant.digest

    def download(self, name: str, target: Path) -> Digest:
        with scratch.explained(target), target.open("wb") as file:
            return self._received(self._receiving, name, file)[1]

    def holds(self, name: str, source: bytes | Path) -> str | None:
        """The version of the object if it has exactly these bytes, otherwise None: it is fetched, and compared."""
        meant = Checksums.of([source]).digest if isinstance(source, bytes) else digest_of(source)
        with contextlib.suppress(ObjectMissing, ObjectDamaged):
            version, held = self._received(self._receiving, name, None, only_if_size=meant.size)
            return version if held == meant else None
        return None

    def version(self, name: str) -> str:
        with contextlib.suppress(ObjectMissing), self._explained("read", name):
            return self._version(name, obstore.head(self.client, self._path(name)))
        # An answer without a body does not say whether the bucket is missing.
        with contextlib.suppress(ObjectMissing):
            return self._version(name, self._opened(self.client, name).meta)
        return MISSING

    def age_seconds(self, name: str) -> None:
        if self.version(name) == MISSING:
            raise ObjectMissing(f"there is no object {self.uri}/{name}")

    def folders(self) -> list[str]:
        with self._explained("list", ""):
            found = obstore.list_with_delimiter(self.client, self._prefix)["common_prefixes"]
        return sorted(name.rstrip("/") for name in self._relative(found))

    def versions(self, prefix: str) -> dict[str, str]:
        # obstore lists folders, and not what begins with any text.
        folder = f"{self._prefix}{prefix}".rpartition("/")[0]
        with self._explained("list", prefix):
            found = obstore.list(self.client, folder or None, chunk_size=1000).collect()
        names = [*self._relative(meta["path"] for meta in found)]
        above = {parent for name in names for parent in _parents(name)}
        # A folder of a console may be an object without bytes whose name ends with a slash, which obstore cuts off.
        return {
            name: self._version(name, meta)
            for name, meta in sorted(zip(names, found, strict=True), key=lambda named: named[0])
            if name.startswith(prefix) and not (name in above and meta["size"] == 0)
        }

    def delete(self, name: str) -> None:
        with contextlib.suppress(ObjectMissing), self._explained("delete", name):
            obstore.delete(self.client, self._path(name))

    def _explained(self, action: str, name: str) -> contextlib.AbstractContextManager[None]:
        return explained(action, f"{self.uri}/{name}".rstrip("/"), self._provider.hints)

    def _path(self, name: str) -> str:
        """The key of an object. Raises StorageRefused for a name that would be another one's."""
        try:
            return self._prefix + checked_name(name)
        except UnsafeName as error:
            raise StorageRefused(f"{self.uri}: {error}", hint="correct the name") from error

    def _relative(self, paths: Iterable[str]) -> Iterator[str]:
        """Names relative to this store. Raises AnswerMalformed for one that was not requested."""
        for path in paths:
            if not path.startswith(self._prefix):
                raise AnswerMalformed(f"the listing of {self.uri} has {path!r}, which is not under it", hint=PASSING)
            yield path.removeprefix(self._prefix)

    def _version(self, name: str, meta: Any) -> str:
        """The ETag without its quotes: Azure leaves them out in a listing."""
        etag: str = meta["e_tag"] or ""
        if not etag.strip('"'):
            raise AnswerMalformed(f"an answer about {self.uri}/{name} has no ETag", hint=PASSING)
        return etag.strip('"')

    def _opened(self, client: Client, name: str, *, if_version: str = MISSING) -> "GetResult":
        options: Any = {"if_match": f'"{if_version}"'} if if_version else None
        with self._explained("read", name):
            return obstore.get(client, self._path(name), options=options)

    def _chunks(self, name: str, result: "GetResult") -> Iterator[Any]:
        with self._explained("read", name):
            yield from result.stream(min_chunk_size=CHUNK_BYTES)

    def _received(
        self, client: Client, name: str, file: IO[bytes] | None, *, only_if_size: int | None = None
    ) -> tuple[str, Digest]:
        """Receive an object, into a file if one is given; returns its version, and the digest of what arrived.

        Raises ObjectDamaged. With `only_if_size` an object of another size is not received, and has no digest.
        """
        result = self._opened(client, name)
        version, size = self._version(name, result.meta), result.meta["size"]
        if only_if_size not in (None, size):
            return version, Digest(size, "")
        arrived = Checksums.of(self._chunks(name, result), file)
        stated = result.attributes.get(SHA256, "").lower()
        if re.fullmatch("[0-9a-f]{64}", stated):
            if arrived.digest.sha256 != stated:
                shown = _shown(arrived.digest)
                damaged = ObjectDamaged(
                    f"{self.uri}/{name} is damaged: {shown} arrived, it was written with {stated}", hint=PASSING
                )
                damaged.stored = (file.getvalue(), version) if isinstance(file, io.BytesIO) else None
                raise damaged
        elif arrived.md5 != version and self._again(client, name, version) != arrived:
            raise ObjectDamaged(f"{self.uri}/{name} has no checksum, and arrived in two ways", hint=PASSING)
        return version, arrived.digest

    def _again(self, client: Client, name: str, version: str) -> Checksums:
        try:
            result = self._opened(client, name, if_version=version)
        except PreconditionFailed as error:
            raise ObjectDamaged(f"{self.uri}/{name} changes while it is being read", hint=PASSING) from error
        return Checksums.of(self._chunks(name, result))

    def _sending_client(self, size: int) -> Client:
        """A client with the time that a file of this size may take."""
        steps = 1 + int(size // (SLOWEST_BYTES_PER_SECOND * self._file_timeout_seconds))
        if steps not in self._sending:
            # Also as the limit of silence: until a request is sent nothing is received (obstore 0.12).
            limit = timedelta(seconds=(1 + steps) * self._file_timeout_seconds)
            self._sending[steps] = connect(self._scheme, self._bucket, timeout=limit, read_timeout=limit)
        return self._sending[steps]

    def _sent(self, client: Client, name: str, data: bytes | mmap.mmap, meant: Checksums, if_version: str) -> str:
        """Send an object, and verify that the server holds it; returns its version."""
        kind = "application/json" if name.endswith(".json") else "application/octet-stream"
        with self._explained("write", name):
            answer = obstore.put(
                client,
                self._path(name),
                data,
                attributes={SHA256: meant.digest.sha256, "Content-Type": kind},
                mode={"e_tag": f'"{if_version}"'} if if_version else "create",
                use_multipart=False,
            )
        version = self._version(name, answer)
        if self._provider.states_md5 and version == meant.md5:
            return version
        try:
            now, held = self._received(self._receiving, name, None, only_if_size=meant.digest.size)
        except ObjectMissing:
            now, held = MISSING, None
        except ObjectDamaged as error:
            error.written = version
            raise
        if held == meant.digest:
            return now
        if now not in (version, MISSING):
            # Another process, which has read what was sent here, has written since.
            return version
        damaged = ObjectDamaged(
            f"{self.uri}/{name} is not what was sent: the store holds {_shown(held)}, sent were {_shown(meant.digest)}",
            hint="check the disk of THAW_CACHE_DIR, and start the run again: nothing is lost",
        )
        damaged.written = now
        raise damaged


def _parents(name: str) -> Iterator[str]:
    while name := name.rpartition("/")[0]:
        yield name


def _shown(digest: Digest | None) -> str:
    return f"{digest.size} bytes with SHA-256 {digest.sha256 or 'of others'}" if digest else "nothing"
