"""A trial of a store: an object is created, read and deleted there, and nothing is left."""

import contextlib
import secrets
import shutil
from collections.abc import Iterator

from job.errors import InputError, PreconditionFailed, StorageError
from job.paths import nearest_existing
from job.storage.local import LocalStore
from job.storage.protocol import MISSING, ObjectStore, RequestObserver, Unobserved
from job.storage.retrying import RetryingStore

NAME = ".thaw-probe"
CONTENT = b"written by `thaw plan`, which deletes it\n"


def probe(store: ObjectStore) -> None:
    """Raise StorageError unless a run could keep its objects in `store`.

    A folder that does not exist is not made: the nearest existing one above it is tried. The probe uses a folder of its
    own there, with its own lock, so that it does not disturb a running attempt.
    """
    token = secrets.token_hex(8)
    if not isinstance(store, LocalStore):
        _try(store, f"{NAME}-{token}")
        return
    folder = nearest_existing(store.root) / f"{NAME}-{token}"
    try:
        _try(LocalStore(folder), "object")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _try(store: ObjectStore, name: str) -> None:
    with _removed(store, name):
        store.write(name, CONTENT, if_version=MISSING)
        found = store.read(name).data
    if found != CONTENT:
        raise StorageError(f"{store.uri}/{name} was read back other than it was written", hint="check the store")


def check_conditional_writes(store: ObjectStore) -> None:
    """Raise InputError unless `store` refuses a write on another version than the object has; nothing is left.

    Of two attempts at one run, only that keeps the second from overwriting the first. What speaks the protocol of S3
    may be any server; the others are known to do it, and are not asked.
    """
    if not isinstance(store, RetryingStore) or not store.uri.startswith("s3://"):
        return
    # The refusals are meant, and no conflicts.
    try_conditional_writes(RetryingStore(store.remote, observer=_WaitsOnly(store.observer), pause=store.pause))


class _WaitsOnly(Unobserved):
    def __init__(self, observer: RequestObserver) -> None:
        self._observer = observer

    def unanswered(self, reason: str, at_most_seconds: float) -> None:
        self._observer.unanswered(reason, at_most_seconds)


def try_conditional_writes(store: ObjectStore) -> None:
    """Write an object under right and wrong versions. Raises InputError where a wrong one is accepted, StorageError."""
    name = f"{NAME}-{secrets.token_hex(8)}"
    with _removed(store, name):
        old = store.write(name, CONTENT + b"1", if_version=MISSING)
        store.write(name, CONTENT + b"2", if_version=old)
        for header, version in (("If-None-Match", MISSING), ("If-Match", old)):
            # Other bytes each time: a write of the same ones may be taken for an earlier try.
            with contextlib.suppress(PreconditionFailed):
                store.write(name, CONTENT + header.encode(), if_version=version)
                raise InputError(
                    f"{store.uri} does not honour conditional writes: it overwrote an object against {header}",
                    hint="use a store that does: AWS S3, Azure Blob Storage, Google Cloud Storage, MinIO, or a folder",
                )


@contextlib.contextmanager
def _removed(store: ObjectStore, name: str) -> Iterator[None]:
    """Delete an object at the end. An error inside says more than one of the deletion after it."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(StorageError):
            store.delete(name)
        raise
    store.delete(name)
