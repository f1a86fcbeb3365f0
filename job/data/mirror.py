"""Data, weights and own images that are kept in object storage: fetched into the cache directory.

A mirror is a folder of prepared TFDS data, file by file, files of weights, or own images. What `filling` puts there it
also lists in a manifest with sizes and digests, with which `Fetcher` compares every file. Without a manifest the
store's own checksum is all there is, and a copy is good as long as its object has the version that it was fetched at. A
file has its name only once it is complete, so fetching may be killed anywhere, and goes on from there.

The names may be chosen by an attacker: one that would leave the folder, a file that no data set needs, and one that the
manifest does not know are refused before anything is fetched. This module imports no TensorFlow.
"""

import contextlib
import functools
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from job.data.files import remote, table
from job.data.files.names import is_place, is_table
from job.data.input_store import open_input
from job.data.manifest import Entries, Entry, entries, named
from job.data.tfds import prepared
from job.data.threads import in_threads
from job.errors import DataUnavailable, InputError, WeightsUnusable
from job.observe import data_events
from job.observe.observer import Observer
from job.paths import checked_name, inside
from job.storage import MISSING, Digest, ObjectStore, cache_folder, scratch
from job.storage.uri import is_bucket, local_folder

REPORT_EVERY_SECONDS = 10.0


def files_of_dataset(store: ObjectStore, dataset: str) -> Entries:
    """The files of a prepared data set in a bucket. Raises DataUnavailable when there are none.

    Raises InputError when the names are not all such that they may be fetched, or a file is there that should not be.
    """
    objects = store.versions(f"{prepared.family(dataset)}/")
    with named(store):
        for name in objects:
            # What the consoles of buckets show as folders are empty objects whose names end with a slash.
            checked_name(name.removesuffix("/"))
    names = prepared.files_of_dataset((name for name in objects if not name.endswith("/")), dataset)
    if not names:
        raise DataUnavailable(
            f"there is no prepared data of {dataset!r} under {store.uri}",
            hint=f"fill it from a machine with a network: {_command(store.uri)} --dataset {dataset}",
        )
    for name in names:
        if not prepared.is_needed(name):
            raise InputError(
                f"{store.uri}/{name} is no file of a prepared data set, and nothing was fetched: expected descriptions "
                "(.json), labels (.txt) and record files",
                hint="delete it, if you know why it is there",
            )
    return entries(store, {name: objects[name] for name in names}, wanted=())


def _command(place: str) -> str:
    """What fills a mirror that has `place`."""
    return f"thaw mirror --to {place.removesuffix('/tfds').removesuffix('/weights')}"


def folder_of_copies(cache_dir: Path | None, place: str) -> Path:
    """The folder on this machine for the copies of a place."""
    return cache_folder.place(cache_dir) / "mirror" / hashlib.sha256(place.encode()).hexdigest()[:16]


def folder_of_images(cache_dir: Path | None, uri: str) -> Path:
    """The folder on this machine for the copies of own images from a place.

    It is not that of data or weights from the same place, which would be removed.
    """
    return folder_of_copies(cache_dir, f"images of {uri}")


def missing_bytes(folder: Path, files: Entries) -> int:
    """How much is to be fetched into a folder, as far as the manifest has sizes."""
    return sum(
        expected.size
        for name, expected in files.items()
        if isinstance(expected, Entry) and _size(folder / name) != expected.size
    )


def _size(path: Path) -> int | None:
    try:
        return path.lstat().st_size
    except OSError:
        return None


@dataclass(frozen=True)
class LocalInputs:
    """Where data and weights are on this machine."""

    dataset: str
    data_dir: str | None
    weights: str


class Fetcher:
    """Copies of remote places under the cache directory, which later attempts on the same disk find again.

    A file is downloaded into `scratch`, a folder of this process alone on the same disk, and then renamed.
    `check_space` is called with the bytes that are to be fetched, as far as they are known; it raises when they do not
    fit.
    """

    def __init__(
        self,
        cache_dir: Path | None,
        *,
        scratch: Path,
        observer: Observer,
        check_stop: Callable[[], None],
        check_space: Callable[[int], None] = lambda num_bytes: None,
    ) -> None:
        self._cache_dir = cache_dir
        self._check_space = check_space
        self._scratch = scratch
        self._observer = observer
        self._check_stop = check_stop
        self._open = functools.partial(open_input, observer=observer, check_stop=check_stop)

    def inputs(self, *, dataset: str, data_dir: str | None, weights: str) -> LocalInputs:
        """The same places, with a local copy instead of each remote one."""
        if "://" in dataset:
            dataset = self.images(dataset)
        elif data_dir is not None and is_bucket(data_dir) and not is_place(dataset):
            data_dir = str(self.dataset(data_dir, dataset))
        if is_bucket(weights):
            weights = str(self.weights(weights))
        return LocalInputs(dataset, data_dir, weights)

    def dataset(self, uri: str, dataset: str) -> Path:
        """A local data_dir with the prepared data set. Raises DataUnavailable, InputError, StorageError."""
        store = self._open(uri)
        return self._fetch(store, folder_of_copies(self._cache_dir, uri), files_of_dataset(store, dataset))

    def weights(self, uri: str) -> Path:
        """A local copy of a file of weights. Raises WeightsUnusable, InputError, StorageError."""
        parent, _, name = uri.rpartition("/")
        store = self._open(parent)
        version = store.version(name)
        if version == MISSING:
            raise WeightsUnusable(
                f"THAW_WEIGHTS={uri!r}: there is no such object",
                hint=f"put it there, or fill a mirror: {_command(parent)}",
            )
        files = entries(store, {name: version}, wanted=())
        return self._fetch(store, folder_of_copies(self._cache_dir, parent), files) / name

    def images(self, uri: str) -> str:
        """A local place with the same own images, and no others: a folder, an archive, or a table beside its images.

        Raises DataUnavailable when there are none, InputError, StorageError.
        """
        place = local_folder(uri)
        if place is not None:
            return str(place)
        store, name, files = remote.look(uri, self._open)
        folder = folder_of_images(self._cache_dir, uri)
        if is_table(name):
            self._fetch(store, folder, files)
            files |= remote.named_in_table(store, table.paths(folder / name))
        with scratch.explained(folder):
            _remove_others(folder, files)
            _remove_others(_notes(folder), [f"{name}.json" for name in files])
        self._fetch(store, folder, files)
        # A relative path could be the name of a data set of TFDS.
        return str((folder / name).absolute())

    def _fetch(self, store: ObjectStore, folder: Path, files: Entries) -> Path:
        """Fetch what is not here; returns the folder, which has the files then."""
        self._check_space(missing_bytes(folder, files))
        began = reported_at = time.monotonic()
        sizes: list[int | None] = []

        def tick() -> None:
            nonlocal reported_at
            self._check_stop()
            if time.monotonic() - reported_at >= REPORT_EVERY_SECONDS:
                # Without a manifest only what has come shows how much it is.
                self._check_space(0)
                reported_at = time.monotonic()
                num_bytes = sum(size or 0 for size in sizes)
                self._observer.event(
                    data_events.Fetching(store.uri, len(files) - len(sizes), len(files), bytes=num_bytes)
                )

        copies = [_Copy(store, name, folder, expected) for name, expected in files.items()]
        in_threads([functools.partial(copy.ensure, self._scratch) for copy in copies], use=sizes.append, tick=tick)
        fetched = [size for size in sizes if size is not None]
        seconds = time.monotonic() - began
        self._observer.event(data_events.Fetched(store.uri, len(fetched), bytes=sum(fetched), seconds=seconds))
        return folder


class _Copy:
    """One file of a mirror on this disk, and beside the mirror's folder a note of what it was when it came.

    `expected` is what the manifest says of it; without one, the version of its object. Raises InputError for a name
    that leads out of the folder.
    """

    def __init__(self, store: ObjectStore, name: str, folder: Path, expected: Entry | str) -> None:
        self._store = store
        self._name = name
        self._expected = expected
        with named(store):
            self._path = _below(folder, name)
            self._note = _below(_notes(folder), f"{name}.json")

    def ensure(self, scratch_folder: Path) -> int | None:
        """Fetch the file unless it is here; returns how many bytes that were, None when it was here."""
        if self._is_here():
            return None
        expected = self._expected
        part = scratch_folder / secrets.token_hex(8)
        with scratch.explained(self._path):
            for path in (self._path, self._note):
                path.parent.mkdir(parents=True, exist_ok=True)
            try:
                found = self._store.download(self._name, part)
                if isinstance(expected, Entry) and found != expected.digest:
                    raise InputError(
                        f"{self._store.uri}/{self._name} is not what the manifest of the mirror says: {found.size} "
                        f"bytes with SHA-256 {found.sha256[:12]}, expected {expected.size} bytes with "
                        f"{expected.sha256[:12]}",
                        hint="fill the mirror again, with thaw mirror",
                    )
                part.rename(self._path)
                # The version of before: if another file took the place meanwhile, the next attempt fetches that.
                version = expected if isinstance(expected, str) else MISSING
                part.write_text(Entry(**vars(found), version=version).model_dump_json())
                part.rename(self._note)
            finally:
                part.unlink(missing_ok=True)
        return found.size

    def _is_here(self) -> bool:
        """Whether the file was fetched before, is still as it was then, and is what the mirror has."""
        if isinstance(self._expected, Entry):
            return self._digest() == self._expected.digest
        note = cache_folder.open_own(self._note)
        if note is None:
            return False
        try:
            with note:
                noted = Entry.model_validate_json(note.read())
        except (OSError, ValidationError):
            return False
        return noted.version == self._expected != MISSING and self._digest() == noted.digest

    def _digest(self) -> Digest | None:
        """The digest of the copy; None when there is none that can be trusted."""
        copy = cache_folder.open_own(self._path)
        if copy is None:
            return None
        with scratch.explained(self._path), copy:
            return Digest.of_file(copy)


def _below(folder: Path, name: str) -> Path:
    """Where a file is written. A link in its own place does no harm: the file takes that place."""
    parent, _, last = checked_name(name).rpartition("/")
    return inside(folder, parent) / last if parent else folder / last


def _notes(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-notes")


def _remove_others(root: Path, names: Collection[str]) -> None:
    """Remove all files below a folder but these, and the folders that are empty then. Raises OSError."""
    kept = {root / name for name in names}
    for folder, _, files in os.walk(root, topdown=False):
        for path in (Path(folder) / file for file in files):
            if path not in kept:
                path.unlink(missing_ok=True)
        # One with files stays.
        with contextlib.suppress(OSError):
            Path(folder).rmdir()
