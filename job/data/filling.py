"""Puts data, weights and images into a mirror, which `mirror` reads: file by file, with a manifest.

The manifest has the version of each file that was sent, so filling may be killed anywhere, and goes on from there.
"""

import functools
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from job.data.manifest import Entry, Manifest
from job.data.tfds import prepared
from job.data.threads import in_threads
from job.errors import InputError
from job.observe import data_events
from job.observe.observer import Observer
from job.storage import MISSING, Digest, ObjectStore, digest_of
from job.wording import some

NUM_SAVES = 20
SAVE_EVERY_SECONDS = 30.0


def probe(store: ObjectStore) -> None:
    """Find out whether a mirror can be filled, by writing its manifest as it is. Raises StorageError, InputError."""
    manifest, version = Manifest.read(store)
    manifest.write(store, version)


def send(
    store: ObjectStore,
    files: Mapping[str, Path],
    *,
    is_all: bool = False,
    observer: Observer,
    check_stop: Callable[[], None],
) -> None:
    """Put files into a mirror, but for those that are there as they were sent.

    With `is_all` the mirror may have no others: raises InputError when its manifest names one. Raises StorageError.
    """
    began = time.monotonic()
    filling = _Filling(store, files, observer)
    if is_all:
        filling.refuse_others()
    filling.plan(check_stop)
    # Descriptions come last: a data set is found by its description, so it is not taken before it is complete.
    for is_description in (False, True):
        names = [name for name in files if name.endswith(f"/{prepared.DESCRIPTION}") == is_description]
        in_threads([functools.partial(filling.send, name) for name in names], use=filling.note, tick=check_stop)
    filling.save()
    observer.event(data_events.MirrorFilled(store.uri, bytes_sent=filling.num_bytes, seconds=time.monotonic() - began))


class _Filling:
    """What is in a mirror, and what of it this process has sent."""

    def __init__(self, store: ObjectStore, files: Mapping[str, Path], observer: Observer) -> None:
        self.num_bytes = 0
        self._store = store
        self._files = files
        self._observer = observer
        self._manifest, self._version = Manifest.read(store)
        self._there = store.versions(os.path.commonpath(files))
        self._num_done = self._num_unsaved = 0
        self._saved_at = time.monotonic()

    def refuse_others(self) -> None:
        others = sorted(self._manifest.files.keys() - self._files.keys())
        if others:
            raise InputError(
                f"the mirror {self._store.uri} has {some(others)}, and they are not here: it may be of other images",
                hint=f"give another --to, or delete {self._store.uri} first",
            )

    def plan(self, check_stop: Callable[[], None]) -> None:
        """Name all files in the manifest, with their digests."""

        def digested(name: str) -> tuple[str, Digest]:
            return name, digest_of(self._files[name])

        def note(found: tuple[str, Digest]) -> None:
            name, digest = found
            before = self._manifest.files.get(name)
            if before is None or before.digest != digest or before.version != self._there.get(name):
                self._manifest.files[name] = Entry(**vars(digest))

        in_threads([functools.partial(digested, name) for name in self._files], use=note, tick=check_stop)
        self.save()

    def send(self, name: str) -> tuple[str, Entry, bool]:
        """Send a file, unless it is there; returns its entry, and whether it was sent."""
        entry = self._manifest.files[name]
        if entry.version != MISSING:
            return name, entry, False
        digest = self._store.upload(name, self._files[name], if_version=self._there.get(name, MISSING))
        return name, Entry(**vars(digest), version=self._store.version(name)), True

    def note(self, sent: tuple[str, Entry, bool]) -> None:
        name, entry, is_new = sent
        num_files = len(self._files)
        self._manifest.files[name] = entry
        self._num_done += 1
        if is_new:
            self.num_bytes += entry.size
            self._num_unsaved += 1
            # The manifest has all files: to write it with each would be work in the square of their number.
            is_long_ago = time.monotonic() - self._saved_at > SAVE_EVERY_SECONDS
            if is_long_ago or self._num_unsaved >= num_files / NUM_SAVES:
                self.save()
        self._observer.event(
            data_events.Mirrored(file=name, number=self._num_done, num_files=num_files, bytes=entry.size)
        )

    def save(self) -> None:
        """Write the manifest."""
        self._version = self._manifest.write(self._store, self._version)
        self._num_unsaved, self._saved_at = 0, time.monotonic()
