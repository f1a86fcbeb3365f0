"""Trying a place: an object is created, read and deleted there, and nothing is left."""

import secrets
import shutil
from pathlib import Path

from job.errors import StorageError
from job.storage.local import LocalStore
from job.storage.protocol import MISSING, ObjectStore

NAME = ".thaw-probe"
CONTENT = b"written by `python -m job plan`, which deletes it\n"


def probe(store: ObjectStore) -> None:
    """Raise StorageError unless a run could keep its objects in `store`.

    A folder that is not there is not made: what is tried is the nearest one above that is. In either case under a
    folder of the probe's own, with a lock of its own, so that an attempt which is under way notices nothing.
    """
    token = secrets.token_hex(8)
    if not isinstance(store, LocalStore):
        _try(store, f"{NAME}-{token}")
        return
    folder = _nearest(store.root) / f"{NAME}-{token}"
    try:
        _try(LocalStore(folder), "object")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _try(store: ObjectStore, name: str) -> None:
    try:
        store.write(name, CONTENT, if_generation=MISSING)
        found = store.read(name).data
    finally:
        store.delete(name)
    if found != CONTENT:
        raise StorageError(f"{store.uri}/{name} was read back other than it was written", hint="check the store")


def _nearest(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
