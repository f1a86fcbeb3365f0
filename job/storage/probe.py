"""A trial of a store: an object is created, read and deleted there, and nothing is left."""

import secrets
import shutil

from job.errors import StorageError
from job.storage.local import LocalStore
from job.storage.protocol import MISSING, ObjectStore

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
    parent = next(folder for folder in (store.root, *store.root.parents) if folder.exists())
    folder = parent / f"{NAME}-{token}"
    try:
        _try(LocalStore(folder), "object")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _try(store: ObjectStore, name: str) -> None:
    try:
        store.write(name, CONTENT, if_version=MISSING)
        found = store.read(name).data
    finally:
        store.delete(name)
    if found != CONTENT:
        raise StorageError(f"{store.uri}/{name} was read back other than it was written", hint="check the store")
