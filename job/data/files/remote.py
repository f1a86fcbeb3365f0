"""The objects of a bucket that a place of own images needs: of a folder, an archive, or a table and what it names.

What is not needed is not judged. The name of what is needed becomes that of a file, so `entries` checks it before
anything is fetched.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from job.data.files.image_files import content_of_object
from job.data.files.layout import worth_fetching
from job.data.files.names import is_archive, is_table, normal
from job.data.manifest import Entries, check_names_of, entries
from job.errors import DataUnavailable
from job.storage import MISSING, ObjectStore


def look(uri: str, open_place: Callable[[str], ObjectStore]) -> tuple[ObjectStore, str, Entries]:
    """The store of a place in a bucket, the name in it of the archive or table, and the files to fetch first.

    `open_place` opens a store. The name is empty for a folder. What a table names is not among the files yet. Raises
    DataUnavailable when there is nothing, InputError for what may not be fetched, StorageError.
    """
    scheme, _, rest = uri.partition("://")
    parent, _, name = rest.rpartition("/")
    if parent and (is_archive(name) or is_table(name)):
        store = open_place(f"{scheme}://{parent}")
        check_names_of(store, [name])
        version = store.version(name)
        if version == MISSING:
            raise _unavailable(uri, "there is no such object")
        return store, name, entries(store, {name: version}, wanted=())
    store = open_place(uri)
    objects = store.versions("")
    found = worth_fetching(objects)
    if not found:
        other = f", and {len(objects):,} other objects are there" if objects else ""
        raise _unavailable(uri, f"there is no image under it{other}")
    return store, "", entries(store, {name: objects[name] for name in found}, wanted=None)


class RemoteFiles:
    """The files of a folder in a bucket, for `places.listing_of`, before they are fetched; `scratch` is for copies."""

    def __init__(self, store: ObjectStore, names: Iterable[str], *, scratch: Path) -> None:
        self.names = list(names)
        self.left_out: Counter[str] = Counter()
        self._store = store
        self._scratch = scratch

    def read(self, name: str) -> bytes:
        return content_of_object(self._store, name, self._scratch)


def named_in_table(store: ObjectStore, paths: Sequence[str]) -> Entries:
    """The images that a table names, as far as they are there. Raises InputError, StorageError."""
    check_names_of(store, paths)
    # A table and a bucket may have different forms of the same letters: a letter, or that with its accent behind it.
    (beginning,) = re.findall("^(?:[ -~](?![^ -~]))*", os.path.commonpath(paths))
    objects = store.versions(beginning)
    names = {normal(name): name for name in objects} | {name: name for name in objects}
    wanted = [names.get(path) or names.get(normal(path)) or path for path in paths]
    return entries(store, {name: objects[name] for name in wanted if name in objects}, wanted=wanted)


def _unavailable(uri: str, reason: str) -> DataUnavailable:
    return DataUnavailable(
        f"there are no images at {uri}: {reason}",
        hint="correct THAW_DATASET, or send images: thaw mirror --to URI --dataset FOLDER",
    )
