"""A Google Cloud Storage bucket as an object store.

Credentials are the application default ones: Workload Identity in a cluster, `gcloud auth application-default login`
on a desk; never a setting. `STORAGE_EMULATOR_HOST` is honoured, without credentials. A run needs four permissions on
the bucket: storage.objects.create, storage.objects.get, storage.objects.list and storage.objects.delete; the role
Storage Object User (roles/storage.objectUser) has them.

Every write is conditional on a generation, so it may be sent again after an error whose outcome is not known.

Every object is verified in both directions, by size and CRC32C, and no single answer is trusted:

- A write is confirmed when its answer has the checksum of what was sent, and the same generation in two fields, or else
  when a second answer has them. Where both lack a checksum the object is read back and compared.
- What is received is of one generation, which two answers name, and has the checksum that the server states. From a
  server that states none the object is fetched twice, and both must be the same.
- An answer that cannot be understood, or that another contradicts, is a fault of the moment.
"""

import contextlib
import dataclasses
import io
import time
from collections.abc import Callable, Iterable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any, TypeVar

import requests
from google.cloud import storage

from job.errors import ObjectDamaged, ObjectMissing, PreconditionFailed
from job.storage import scratch
from job.storage.checksums import Checksum, Content, checksums_of, content_of
from job.storage.gcs_errors import MALFORMED, explained
from job.storage.protocol import MISSING, Digest, StoredObject
from job.storage.retrying import RemoteStore

T = TypeVar("T")

UPLOAD_CHUNK_BYTES = 16 << 20

MAX_CONNECTIONS = 64
"""That are kept open, for as many threads."""

NO_GENERATION = 0
"""The generation of an object that does not exist, in a condition."""


class GcsStore(RemoteStore):
    """Objects under gs://bucket/prefix.

    Each call is one try: see `RetryingStore`. A request without an answer after `timeout_seconds`, or
    `file_timeout_seconds` where it carries a file, is given up.
    """

    def __init__(
        self, *, bucket: str, prefix: str, timeout_seconds: float = 60.0, file_timeout_seconds: float = 60.0
    ) -> None:
        self.uri = f"gs://{bucket}/{prefix}".rstrip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._clock_skew_seconds = 0.0
        # No answer is read here: such an error is a fault of the program or of the client, and does not pass.
        with explained("open", self.uri, malformed=()):
            self._client = storage.Client(project=None)
            self._client._http.hooks["response"].append(self._note_clock)
            for adapter in self._client._http.adapters.values():
                # By default it keeps ten connections, and opens and closes one for each request of an eleventh thread.
                adapter.init_poolmanager(MAX_CONNECTIONS, MAX_CONNECTIONS)
            # google-cloud-storage 3.17 requests the bucket's own description in the background, for tracing: that needs
            # a permission that a run does not need (tests/test_gcs.py shows it).
            self._client._bucket_metadata_cache = None
        self._bucket = self._client.bucket(bucket)
        self._options: dict[str, Any] = {"timeout": timeout_seconds, "retry": None}
        self._file_options = self._options | {"timeout": file_timeout_seconds}

    def read(self, name: str) -> StoredObject:
        def fetch() -> tuple[StoredObject, Content, Content]:
            file = io.BytesIO()
            version, stated = self._fetched(name, file, self._options)
            data = file.getvalue()
            return StoredObject(data, version), stated, content_of(data)

        return self._received(name, fetch)

    def peek(self, name: str) -> bytes:
        blob, file = self._blob(name), io.BytesIO()
        with self._explained("read", name):
            blob.download_to_file(file, checksum=None, **self._options)
        data = file.getvalue()
        if blob.crc32c is None:
            return self.read(name).data
        arrived, stated = content_of(data), Content(None, blob.crc32c)
        if not arrived.is_surely(stated):
            raise ObjectDamaged(f"{self.uri}/{name} is damaged: {arrived} arrived, the store has {stated}")
        return data

    def write(self, name: str, data: bytes, *, if_version: str) -> str:
        blob, content = self._blob(name), content_of(data)
        with self._explained("write", name):
            blob.upload_from_string(
                data,
                content_type="application/json" if name.endswith(".json") else "application/octet-stream",
                if_generation_match=int(if_version or NO_GENERATION),
                checksum="crc32c",
                **self._options,
            )
        return self._confirmed(blob, name, content)

    def upload(self, name: str, source: Path, *, if_version: str, may_move: bool = False) -> Digest:
        digest, content = checksums_of(source)
        blob = self._blob(name)
        blob.chunk_size = UPLOAD_CHUNK_BYTES
        # The server compares with this checksum. The client's own comparison would fail where an answer has none, and
        # delete the object, whatever its generation, where it differs (google-cloud-storage 3.17).
        blob.crc32c = content.crc32c
        with scratch.explained(source), source.open("rb") as file, self._explained("write", name):
            blob.upload_from_file(
                file,
                size=digest.size,
                if_generation_match=int(if_version or NO_GENERATION),
                checksum=None,
                **self._file_options,
            )
        self._confirmed(blob, name, content)
        return digest

    def holds(self, name: str, source: bytes | Path) -> str | None:
        meant = content_of(source) if isinstance(source, bytes) else checksums_of(source)[1]
        version, held = self._held(name)
        return version if meant.is_surely(held) else None

    def download(self, name: str, target: Path) -> Digest:
        def fetch() -> tuple[Digest, Content, Content]:
            with scratch.explained(target), target.open("wb") as file:
                _, stated = self._fetched(name, file, self._file_options)
            digest, content = checksums_of(target)
            return digest, stated, content

        return self._received(name, fetch)

    def version(self, name: str) -> str:
        try:
            return self._looked_up(name)[0]
        except ObjectMissing:
            return MISSING

    def age_seconds(self, name: str) -> float:
        with self._explained("read", name):
            written: float = self._reloaded(name).updated.timestamp()
        return max(0.0, time.time() + self._clock_skew_seconds - written)

    def folders(self) -> list[str]:
        with self._explained("list"):
            pages = self._client.list_blobs(
                self._bucket, prefix=self._prefix, delimiter="/", fields="prefixes,nextPageToken", **self._options
            )
            # The prefixes are complete once every page has been read.
            for _ in pages:
                pass
            return sorted(name.rstrip("/") for name in self._relative(pages.prefixes, ""))

    def versions(self, prefix: str) -> dict[str, str]:
        fields = "items(name,generation),nextPageToken"
        with self._explained("list", prefix):
            blobs = self._client.list_blobs(self._bucket, prefix=self._prefix + prefix, fields=fields, **self._options)
            found = {blob.name: _version(blob) for blob in blobs}
            return dict(sorted(zip(self._relative(found, prefix), found.values(), strict=True)))

    def _relative(self, names: Iterable[str], prefix: str) -> Iterator[str]:
        """Names relative to this store. Raises ValueError for one that was not requested."""
        for name in names:
            if not name.startswith(self._prefix + prefix):
                raise ValueError(f"{name!r} is not under {prefix!r}")
            yield name.removeprefix(self._prefix)

    def delete(self, name: str) -> None:
        with contextlib.suppress(ObjectMissing), self._explained("delete", name):
            self._blob(name).delete(**self._options)

    def _blob(self, name: str) -> storage.Blob:
        return self._bucket.blob(self._prefix + name)

    def _reloaded(self, name: str) -> storage.Blob:
        blob = self._blob(name)
        blob.reload(**self._options)
        return blob

    def _looked_up(self, name: str) -> tuple[str, Content]:
        """The generation and content of an object, as the server states them. Raises ObjectMissing."""
        with self._explained("read", name):
            blob = self._reloaded(name)
            version = _version(blob)
            if not _is_confirmed(blob) and _version(self._reloaded(name)) != version:
                raise ValueError("two answers name two generations")
            return version, Content(blob.size, blob.crc32c)

    def _fetched(self, name: str, file: IO[bytes] | Checksum, options: dict[str, Any]) -> tuple[str, Content]:
        """Receive an object into an empty file; returns its generation, and the content that the server states."""
        blob = self._blob(name)
        version, stated = self._looked_up(name)
        try:
            with self._explained("read", name):
                blob.download_to_file(file, if_generation_match=int(version), checksum=None, **options)
                if blob.generation is not None and _version(blob) != version:
                    raise ValueError("two answers name two generations")
                # The received bytes are compared with both checksums, so that one that was altered is noticed.
                if stated.crc32c and blob.crc32c and stated.crc32c != blob.crc32c:
                    raise ValueError("two answers name two checksums")
        except PreconditionFailed as error:
            raise ObjectDamaged(f"{self.uri}/{name} changes while it is being read") from error
        return version, dataclasses.replace(stated, crc32c=stated.crc32c or blob.crc32c)

    def _received(self, name: str, fetch: Callable[[], tuple[T, Content, Content]]) -> T:
        """What `fetch` returns, with the content as the server states it and as it arrived. Raises ObjectDamaged."""
        received, stated, arrived = fetch()
        if stated.crc32c is None and fetch()[0] != received:
            raise ObjectDamaged(f"{self.uri}/{name} has no checksum, and arrived in two ways")
        if stated.crc32c is not None and not arrived.is_surely(stated):
            raise ObjectDamaged(f"{self.uri}/{name} is damaged: {arrived} arrived, the store has {stated}")
        return received

    def _confirmed(self, blob: storage.Blob, name: str, meant: Content) -> str:
        """The generation of what was sent, by the answer or by a look. Raises ObjectDamaged when it is not there."""
        with contextlib.suppress(*MALFORMED):
            if _is_confirmed(blob) and meant.is_surely(Content(blob.size, blob.crc32c)):
                return _version(blob)
        version, held = self._held(name)
        if not meant.is_surely(held):
            raise ObjectDamaged(
                f"{self.uri}/{name} is not what was sent: the store holds {held}, sent were {meant}",
                hint="check the disk of THAW_CACHE_DIR, and start the run again: nothing is lost",
            )
        return version

    def _held(self, name: str) -> tuple[str, Content]:
        """The generation and content of the object that the server holds: by its word, or by the bytes."""
        version, held = self._looked_up(name)
        if held.crc32c is None:
            file = Checksum()
            version, _ = self._fetched(name, file, self._file_options)
            held = file.content
        return version, held

    def _explained(self, action: str, name: str = "") -> contextlib.AbstractContextManager[None]:
        """Turn the errors of the client into ours."""
        return explained(action, f"{self.uri}/{name}".rstrip("/"))

    def _note_clock(self, response: requests.Response, *_: Any, **__: Any) -> None:
        """Note how far the server's clock is ahead of this one."""
        with contextlib.suppress(KeyError, ValueError):
            self._clock_skew_seconds = parsedate_to_datetime(response.headers["Date"]).timestamp() - time.time()


def _version(blob: storage.Blob) -> str:
    """The generation, a number. Raises ValueError or TypeError for another one."""
    return str(int(blob.generation))


def _is_confirmed(blob: storage.Blob) -> bool:
    """Whether an answer names its generation twice: the id of an object is bucket/name/generation."""
    return str(blob.id).endswith(f"/{blob.generation}")
