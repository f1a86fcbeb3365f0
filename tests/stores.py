"""Stores for the tests: one in memory, and wrappers that make a real one fail."""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from job.errors import ObjectMissing, PreconditionFailed, StorageError
from job.storage import MISSING, Digest, ObjectStore, StoredObject, digest_of
from job.storage.gcs import GcsStore
from job.storage.retrying import RetryingStore
from tests.gcs_server import BUCKET

HOSTILE_TABLES = (
    b"name\nx\n",
    b"\xff",
    b"name,split,label,sha256\n\xff",
    b"name,split,label,sha256\na\rb,train,cat,ab\n",
    b"name,split,label,sha256\n" + b"x" * 200_000,
)
"""No tables of images as a run keeps them, two of which only a reader of CSV refuses."""


class MemoryStore:
    """Objects with versions in a dictionary; `now` is its clock, in seconds."""

    uri = "memory://"

    def __init__(self) -> None:
        self.objects: dict[str, StoredObject] = {}
        self.written_at: dict[str, float] = {}
        self.now: Callable[[], float] = time.monotonic
        self._next = 1
        self._lock = threading.RLock()

    def read(self, name: str) -> StoredObject:
        if name not in self.objects:
            raise ObjectMissing(f"there is no object {name}")
        return self.objects[name]

    def peek(self, name: str) -> bytes:
        return self.read(name).data

    def write(self, name: str, data: bytes, *, if_version: str) -> str:
        with self._lock:
            if self.version(name) != if_version:
                raise PreconditionFailed(f"{name} is not of version {if_version}")
            self.objects[name] = StoredObject(bytes(data), str(self._next))
            self.written_at[name] = self.now()
            self._next += 1
            return self.objects[name].version

    def upload(self, name: str, source: Path, *, if_version: str, may_move: bool = False) -> Digest:
        self.write(name, source.read_bytes(), if_version=if_version)
        return digest_of(source)

    def download(self, name: str, target: Path) -> Digest:
        target.write_bytes(self.read(name).data)
        return digest_of(target)

    def version(self, name: str) -> str:
        return self.objects[name].version if name in self.objects else MISSING

    def age_seconds(self, name: str) -> float:
        self.read(name)
        return self.now() - self.written_at[name]

    def folders(self) -> list[str]:
        return sorted({name.partition("/")[0] for name in self.objects if "/" in name})

    def list(self, prefix: str) -> list[str]:
        return sorted(name for name in self.objects if name.startswith(prefix))

    def versions(self, prefix: str) -> dict[str, str]:
        return {name: self.objects[name].version for name in self.list(prefix)}

    def delete(self, name: str) -> None:
        self.objects.pop(name, None)


class Crash(BaseException):
    """Stands for the end of the process: no code of the program catches it."""


class CrashingStore:
    """A store that ends the process at its n-th call, or its first of a method: before it has its effect, or after."""

    def __init__(self, store: ObjectStore, *, at_call: int | str, after: bool) -> None:
        self._store = store
        self._at_call = at_call
        self._after = after
        self.calls: list[str] = []
        self.uri = store.uri

    def __getattr__(self, method: str):
        def call(*args, **kwargs):
            self.calls.append(method)
            number = len(self.calls)
            if self._at_call == method:
                self._at_call = number
            at_call = self._at_call if isinstance(self._at_call, int) else sys.maxsize
            if number > at_call or (number == at_call and not self._after):
                raise Crash(f"{method}{args}")
            result = getattr(self._store, method)(*args, **kwargs)
            if number == at_call:
                raise Crash(f"{method}{args}")
            return result

        return call


class BrokenStore:
    """A store of which one method fails as an unavailable one does; `method` may be changed at any time."""

    def __init__(self, store: ObjectStore, method: str) -> None:
        self._store = store
        self.method = method
        self.uri = store.uri

    def __getattr__(self, method: str):
        if method == self.method:
            raise StorageError(f"{method} is unavailable")
        return getattr(self._store, method)


def gcs_client() -> RetryingStore:
    """A run's place on the server of Cloud Storage, with a client that is quick to try again."""
    store = GcsStore(bucket=BUCKET, prefix="runs/small", timeout_seconds=0.5, file_timeout_seconds=0.5)
    return RetryingStore(store, retry_seconds=10.0, first_delay_seconds=0.01)


def plant(path: Path, kind: str, *, outside: Path) -> None:
    """Put something at a path; a link leads to `outside`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "file":
        path.touch()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path.symlink_to(outside)
