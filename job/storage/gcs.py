"""A Google Cloud Storage bucket as an object store; with `gcs_errors` the only importer of google.cloud.

Credentials are the application default ones: Workload Identity in a cluster, `gcloud auth application-default login`
on a desk; never a setting. `STORAGE_EMULATOR_HOST` is honoured, without credentials. A run needs four permissions on
the bucket: storage.objects.create, storage.objects.get, storage.objects.list and storage.objects.delete; the role
Storage Object User (roles/storage.objectUser) has them.

Every write is conditional on a generation, so the client may send it again after an error whose outcome it does not
know. The server may have done the first one: a refused write is read back before it counts as a conflict. Both ways
every object is verified: what the server says that it holds, size and CRC32C, is compared with what was sent, and what
arrives with what the server holds.
"""

import base64
import contextlib
import functools
import hashlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

import google_crc32c
import requests
from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY

from job import scratch
from job.errors import (
    ObjectDamaged,
    ObjectMissing,
    PreconditionFailed,
    StorageError,
)
from job.storage.gcs_errors import FOREIGN_ERRORS, GONE, NETWORK_ERRORS, explain, status_of
from job.storage.protocol import MISSING, Digest, Observer, StoredObject, Unobserved

T = TypeVar("T")

UPLOAD_CHUNK_BYTES = 16 << 20
TRIES = 3


class GcsStore:
    """Objects under gs://bucket/prefix.

    A request that gets no answer in `timeout_seconds`, or `file_timeout_seconds` where it carries a file, is given up;
    one that fails in a way that may pass is sent again, after `first_delay_seconds`, then after ever longer ones, until
    `retry_seconds` have gone by.
    """

    def __init__(
        self,
        *,
        bucket: str,
        prefix: str,
        timeout_seconds: float = 60.0,
        file_timeout_seconds: float = 60.0,
        retry_seconds: float = 120.0,
        first_delay_seconds: float = 1.0,
        observer: Observer | None = None,
    ) -> None:
        self._observer = observer or Unobserved()
        self._asking = threading.local()
        self.uri = f"gs://{bucket}/{prefix}".rstrip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._clock_skew_seconds = 0.0
        with self._explained("open", ""):
            self._client = storage.Client(project=None)
            self._client._http.hooks["response"].append(self._answered)
            # google-cloud-storage 3.17 asks for the bucket's own description in the background, for tracing: that takes
            # a permission that a run does not need (tests/test_gcs.py shows it).
            self._client._bucket_metadata_cache = None
        self._bucket = self._client.bucket(bucket)
        retry = DEFAULT_RETRY.with_timeout(retry_seconds).with_delay(
            initial=first_delay_seconds, maximum=20 * first_delay_seconds, multiplier=2.0
        )
        self._options: dict[str, Any] = {"timeout": timeout_seconds, "retry": self._observed(retry)}
        self._file_options = self._options | {"timeout": file_timeout_seconds}

    def read(self, name: str) -> StoredObject:
        blob = self._blob(name)

        def receive() -> bytes:
            data: bytes = blob.download_as_bytes(checksum="crc32c", **self._options)
            _verify(blob, google_crc32c.value(data), f"{self.uri}/{name}")
            return data

        return StoredObject(self._ask("read", name, receive), int(blob.generation))

    def write(self, name: str, data: bytes, *, if_generation: int) -> int:
        blob = self._blob(name)

        def send() -> None:
            blob.upload_from_string(
                data,
                content_type="application/json" if name.endswith(".json") else "application/octet-stream",
                if_generation_match=if_generation,
                checksum="crc32c",
                **self._options,
            )

        return self._sent(name, blob, send, size=len(data), crc32c=google_crc32c.value(data))

    def upload(self, name: str, source: Path, *, if_generation: int, may_move: bool = False) -> Digest:
        digest, crc32c = _checksums_of(source)
        blob = self._blob(name)
        blob.chunk_size = UPLOAD_CHUNK_BYTES

        def send() -> None:
            with scratch.explained(source), source.open("rb") as file, self._explained("write", name):
                blob.upload_from_file(
                    file, size=digest.size, if_generation_match=if_generation, checksum="crc32c", **self._file_options
                )

        self._sent(name, blob, send, size=digest.size, crc32c=crc32c)
        return digest

    def download(self, name: str, target: Path) -> Digest:
        blob = self._blob(name)

        def receive() -> Digest:
            with scratch.explained(target), target.open("wb") as file, self._explained("read", name):
                blob.download_to_file(file, checksum="crc32c", **self._file_options)
            digest, crc32c = _checksums_of(target)
            _verify(blob, crc32c, f"{self.uri}/{name}")
            return digest

        return self._ask("read", name, receive)

    def generation(self, name: str) -> int:
        try:
            return int(self._reloaded(name).generation)
        except ObjectMissing:
            return MISSING

    def age_seconds(self, name: str) -> float:
        written = self._reloaded(name).updated.timestamp()
        return max(0.0, time.time() + self._clock_skew_seconds - written)

    def folders(self) -> list[str]:
        def ask() -> list[str]:
            pages = self._client.list_blobs(
                self._bucket, prefix=self._prefix, delimiter="/", fields="prefixes,nextPageToken", **self._options
            )
            # The prefixes are complete once every page has been read.
            for _ in pages:
                pass
            return sorted(prefix.removeprefix(self._prefix).rstrip("/") for prefix in pages.prefixes)

        return self._ask("list", "", ask)

    def list(self, prefix: str) -> list[str]:
        def ask() -> list[str]:
            blobs = self._client.list_blobs(
                self._bucket, prefix=self._prefix + prefix, fields="items(name),nextPageToken", **self._options
            )
            return sorted(blob.name.removeprefix(self._prefix) for blob in blobs)

        return self._ask("list", prefix, ask)

    def delete(self, name: str) -> None:
        with contextlib.suppress(ObjectMissing):
            self._ask("delete", name, lambda: self._blob(name).delete(**self._options))

    def _blob(self, name: str) -> storage.Blob:
        return self._bucket.blob(self._prefix + name)

    def _reloaded(self, name: str) -> storage.Blob:
        blob = self._blob(name)
        self._ask("read", name, lambda: blob.reload(**self._options))
        return blob

    def _sent(self, name: str, blob: storage.Blob, send: Callable[[], None], *, size: int, crc32c: int) -> int:
        """Send an object, and compare what the server then holds with what was meant; returns its generation.

        A refusal may be of our own write: read back and compare.
        """
        meant = (size, _encoded(crc32c))
        try:
            self._ask("write", name, send)
        except PreconditionFailed:
            try:
                blob = self._reloaded(name)
            except ObjectMissing:
                blob = None
            if blob is None or (blob.size, blob.crc32c) != meant:
                self._observer.conflict(name)
                raise
        if (blob.size, blob.crc32c) != meant:
            raise ObjectDamaged(
                f"{self.uri}/{name} is not what was sent: the store holds {blob.size} bytes with CRC32C {blob.crc32c}, "
                f"sent were {size} bytes with {meant[1]}",
                hint="check the disk of THAW_CACHE_DIR, and start the run again: nothing is lost",
            )
        return int(blob.generation)

    def _ask(self, action: str, name: str, request: Callable[[], T]) -> T:
        """Make a request, which the client sends again after most failures; here after the three that are left.

        Bytes that arrived with another checksum than they left with; a resumable upload that the server has forgotten;
        and the body of an error that broke off: the client reads that one where it does not try again
        (google-cloud-storage 3.17; tests/test_gcs.py shows it).
        """
        self._asking.operation = action
        for tries_left in reversed(range(TRIES)):
            try:
                with self._explained(action, name):
                    return request()
            except StorageError as error:
                cause = error.__cause__
                is_damage = isinstance(error, ObjectDamaged) or isinstance(cause, NETWORK_ERRORS)
                is_damage |= cause is not None and status_of(cause) == GONE
                if tries_left == 0 or not is_damage:
                    raise
                self._observer.retry(action)
        raise AssertionError("unreachable")

    def _observed(self, retry: Callable[[Callable[..., T]], Callable[..., T]]) -> Callable[..., Callable[..., T]]:
        """The same policy, told to the observer: each try after the first, and each that got no answer."""

        def policy(send: Callable[..., T], *policy_options: Any, **more_options: Any) -> Callable[..., T]:
            tries = itertools.count()

            @functools.wraps(send)
            def observed(*arguments: Any, **options: Any) -> T:
                if next(tries):
                    self._observer.retry(self._asking.operation)
                began = time.monotonic()
                try:
                    return send(*arguments, **options)
                except NETWORK_ERRORS:
                    self._observer.request(self._asking.operation, "error", time.monotonic() - began)
                    raise

            return retry(observed, *policy_options, **more_options)

        return policy

    def _answered(self, response: requests.Response, *_: Any, **__: Any) -> None:
        """Every answer has a status, and tells the server's time, in whole seconds."""
        self._observer.request(
            getattr(self._asking, "operation", "read"), str(response.status_code), response.elapsed.total_seconds()
        )
        with contextlib.suppress(KeyError, ValueError):
            self._clock_skew_seconds = parsedate_to_datetime(response.headers["Date"]).timestamp() - time.time()

    @contextlib.contextmanager
    def _explained(self, action: str, name: str) -> Iterator[None]:
        try:
            yield
        except FOREIGN_ERRORS as error:
            raise explain(error, action, f"{self.uri}/{name}".rstrip("/")) from error


def _verify(blob: storage.Blob, crc32c: int, uri: str) -> None:
    """Compare with the checksum that came along: the client does not when it had to fetch the object in pieces."""
    if blob.crc32c is not None and blob.crc32c != _encoded(crc32c):
        raise ObjectDamaged(f"{uri} arrived with another checksum than the store has for it")


def _checksums_of(path: Path) -> tuple[Digest, int]:
    """The digest of a temporary file and its CRC32C, in one reading."""
    sha256, crc32c, size = hashlib.sha256(), 0, 0
    for chunk in scratch.chunks(path):
        sha256.update(chunk)
        crc32c = google_crc32c.extend(crc32c, chunk)
        size += len(chunk)
    return Digest(size, sha256.hexdigest()), crc32c


def _encoded(crc32c: int) -> str:
    """As the API writes a checksum: base64 of four bytes, big-endian."""
    return base64.b64encode(crc32c.to_bytes(4, "big")).decode()
