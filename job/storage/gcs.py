"""A Google Cloud Storage bucket as an object store; with the other modules `gcs_*` the only importer of google.cloud.

Credentials are the application default ones: Workload Identity in a cluster, `gcloud auth application-default login`
on a desk; never a setting. `STORAGE_EMULATOR_HOST` is honoured, without credentials. A run needs four permissions on
the bucket: storage.objects.create, storage.objects.get, storage.objects.list and storage.objects.delete; the role
Storage Object User (roles/storage.objectUser) has them.

Every write is conditional on a generation, so the client may send it again after an error whose outcome it does not
know. The server may have done the first one, or its refusal may have been altered on its way: a refused write is looked
up before it counts as a conflict.

Both ways every object is verified, by size and CRC32C. No single answer is believed:

- What was sent is there when the answer to the write says so and its generation is in the object's id too, or else when
  a second answer does. An answer without a checksum is none: then the object is read back and compared.
- What arrives is of one generation, which two answers name, and has the checksum that the server tells. A server that
  tells none is asked for the object twice, and both must be the same.
- An answer that cannot be understood, or that two answers contradict, is a fault of the moment and is asked for again.
"""

import contextlib
import dataclasses
import io
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from google.cloud import storage
from google.cloud.storage.retry import DEFAULT_RETRY

from job.errors import ObjectDamaged, ObjectMissing, PreconditionFailed, StorageError
from job.storage import scratch
from job.storage.gcs_answers import (
    Checksum,
    Content,
    Sink,
    checksums_of,
    content_of,
    generation_of,
    is_confirmed,
    told_of,
)
from job.storage.gcs_errors import MALFORMED
from job.storage.gcs_requests import TRIES, Requests
from job.storage.protocol import MISSING, Digest, Observer, StoredObject, Unobserved

T = TypeVar("T")

UPLOAD_CHUNK_BYTES = 16 << 20


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
        self.uri = f"gs://{bucket}/{prefix}".rstrip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._requests = Requests(self.uri, self._observer)
        self._ask, self._explained = self._requests.ask, self._requests.explained
        with self._explained("open", ""):
            self._client = storage.Client(project=None)
            self._client._http.hooks["response"].append(self._requests.answered)
            # google-cloud-storage 3.17 asks for the bucket's own description in the background, for tracing: that takes
            # a permission that a run does not need (tests/test_gcs.py shows it).
            self._client._bucket_metadata_cache = None
        self._bucket = self._client.bucket(bucket)
        retry = DEFAULT_RETRY.with_timeout(retry_seconds).with_delay(
            initial=first_delay_seconds, maximum=20 * first_delay_seconds, multiplier=2.0
        )
        self._options: dict[str, Any] = {"timeout": timeout_seconds, "retry": self._requests.observed(retry)}
        self._file_options = self._options | {"timeout": file_timeout_seconds}

    def read(self, name: str) -> StoredObject:
        def fetch() -> tuple[StoredObject, Content, Content]:
            file = io.BytesIO()
            generation, told = self._fetched(name, file, self._options)
            data = file.getvalue()
            return StoredObject(data, generation), told, content_of(data)

        return self._ask("read", name, lambda: self._verified(name, fetch))

    def write(self, name: str, data: bytes, *, if_generation: int) -> int:
        def send() -> storage.Blob:
            blob = self._blob(name)
            blob.upload_from_string(
                data,
                content_type="application/json" if name.endswith(".json") else "application/octet-stream",
                if_generation_match=if_generation,
                checksum="crc32c",
                **self._options,
            )
            return blob

        return self._sent(name, send, content_of(data), if_generation)

    def upload(self, name: str, source: Path, *, if_generation: int, may_move: bool = False) -> Digest:
        digest, content = checksums_of(source)

        def send() -> storage.Blob:
            blob = self._blob(name)
            blob.chunk_size = UPLOAD_CHUNK_BYTES
            # The server compares with this one. The client's own comparison would fail where an answer has no checksum,
            # and delete the object, whatever its generation, where that is another (google-cloud-storage 3.17).
            blob.crc32c = content.crc32c
            with scratch.explained(source), source.open("rb") as file, self._explained("write", name):
                blob.upload_from_file(
                    file, size=digest.size, if_generation_match=if_generation, checksum=None, **self._file_options
                )
            return blob

        self._sent(name, send, content, if_generation)
        return digest

    def download(self, name: str, target: Path) -> Digest:
        def fetch() -> tuple[Digest, Content, Content]:
            with scratch.explained(target), target.open("wb") as file:
                _, told = self._fetched(name, file, self._file_options)
            digest, content = checksums_of(target)
            return digest, told, content

        return self._ask("read", name, lambda: self._verified(name, fetch))

    def generation(self, name: str) -> int:
        try:
            return self._looked_up(name)[0]
        except ObjectMissing:
            return MISSING

    def age_seconds(self, name: str) -> float:
        def ask() -> float:
            written: float = self._reloaded(name).updated.timestamp()
            return max(0.0, time.time() + self._requests.clock_skew_seconds - written)

        return self._ask("read", name, ask)

    def folders(self) -> list[str]:
        def ask() -> list[str]:
            pages = self._client.list_blobs(
                self._bucket, prefix=self._prefix, delimiter="/", fields="prefixes,nextPageToken", **self._options
            )
            # The prefixes are complete once every page has been read.
            for _ in pages:
                pass
            return sorted(name.rstrip("/") for name in self._relative(pages.prefixes, ""))

        return self._listed("", ask)

    def _listed(self, prefix: str, ask: Callable[[], list[str]]) -> list[str]:
        """A listing. That there is nothing is believed when it has been said twice: an answer may lack its items."""
        return self._ask("list", prefix, ask) or self._ask("list", prefix, ask)

    def list(self, prefix: str) -> list[str]:
        def ask() -> list[str]:
            blobs = self._client.list_blobs(
                self._bucket, prefix=self._prefix + prefix, fields="items(name),nextPageToken", **self._options
            )
            return sorted(self._relative((blob.name for blob in blobs), prefix))

        return self._listed(prefix, ask)

    def _relative(self, names: Iterable[str], prefix: str) -> Iterator[str]:
        """Names as they are below this store. Raises ValueError for one that was not asked for."""
        for name in names:
            if not name.startswith(self._prefix + prefix):
                raise ValueError(f"{name!r} is not under {prefix!r}")
            yield name.removeprefix(self._prefix)

    def delete(self, name: str) -> None:
        with contextlib.suppress(ObjectMissing):
            self._ask("delete", name, lambda: self._blob(name).delete(**self._options))

    def _blob(self, name: str) -> storage.Blob:
        return self._bucket.blob(self._prefix + name)

    def _reloaded(self, name: str) -> storage.Blob:
        blob = self._blob(name)
        blob.reload(**self._options)
        return blob

    def _looked_up(self, name: str) -> tuple[int, Content]:
        """The generation and content of an object, as the server tells them. Raises ObjectMissing."""

        def ask() -> tuple[int, Content]:
            blob = self._reloaded(name)
            generation, content = generation_of(blob), told_of(blob)
            if not is_confirmed(blob) and generation_of(self._reloaded(name)) != generation:
                raise ValueError("two answers name two generations")
            return generation, content

        return self._ask("read", name, ask)

    def _fetched(self, name: str, file: Sink, options: dict[str, Any]) -> tuple[int, Content]:
        """Receive an object into an empty file; returns its generation, and what the server tells of the content."""
        blob = self._blob(name)
        generation, told = self._looked_up(name)
        try:
            with self._explained("read", name):
                blob.download_to_file(file, if_generation_match=generation, checksum=None, **options)
        except PreconditionFailed as error:
            raise ObjectDamaged(f"{self.uri}/{name} changes while it is being read") from error
        if blob.generation not in (None, generation):
            raise ValueError("two answers name two generations")
        # What has arrived is compared with both checksums: one that was altered on its way is found out.
        if told.crc32c and blob.crc32c and told.crc32c != blob.crc32c:
            raise ValueError("two answers name two checksums")
        return generation, dataclasses.replace(told, crc32c=told.crc32c or blob.crc32c)

    def _verified(self, name: str, fetch: Callable[[], tuple[T, Content, Content]]) -> T:
        """What `fetch` receives: with what the server tells of it, and as it arrived. Raises ObjectDamaged."""
        received, told, arrived = fetch()
        if told.crc32c is None and fetch()[0] != received:
            raise ObjectDamaged(f"{self.uri}/{name} has no checksum, and arrived in two ways")
        if told.crc32c is not None and not arrived.is_surely(told):
            raise ObjectDamaged(
                f"{self.uri}/{name} is damaged: {arrived.size} bytes with CRC32C {arrived.crc32c} arrived, "
                f"the store has {told.size} bytes with {told.crc32c}"
            )
        return received

    def _sent(self, name: str, send: Callable[[], storage.Blob], meant: Content, if_generation: int) -> int:
        """Send an object, and verify that the server holds what was meant; returns its generation."""
        for tries_left in reversed(range(TRIES)):
            try:
                blob = self._ask("write", name, send)
            except PreconditionFailed:
                if self.generation(name) != if_generation:
                    # It may be our own write that is in the way.
                    try:
                        return self._held(name, meant)
                    except (ObjectMissing, ObjectDamaged):
                        pass
                    self._observer.conflict(name)
                    raise
                if tries_left == 0:
                    raise StorageError(
                        f"{self.uri}/{name} is of generation {if_generation}, and a write on it is refused",
                        hint="it may pass: start the run again, nothing is lost",
                    ) from None
                self._observer.retry("write")
            else:
                with contextlib.suppress(*MALFORMED):
                    if is_confirmed(blob) and meant.is_surely(told_of(blob)):
                        return generation_of(blob)
                return self._held(name, meant)
        raise AssertionError("unreachable")

    def _held(self, name: str, meant: Content) -> int:
        """The generation of what the server holds. Raises ObjectDamaged when that is not what was meant."""

        def look_up() -> int:
            generation, held = self._looked_up(name)
            if held.crc32c is None:
                file = Checksum()
                generation, _ = self._fetched(name, file, self._file_options)
                held = file.content
            if not meant.is_surely(held):
                raise ObjectDamaged(
                    f"{self.uri}/{name} is not what was sent: the store holds {held.size} bytes with CRC32C "
                    f"{held.crc32c}, sent were {meant.size} bytes with {meant.crc32c}",
                    hint="check the disk of THAW_CACHE_DIR, and start the run again: nothing is lost",
                )
            return generation

        return self._ask("read", name, look_up)
