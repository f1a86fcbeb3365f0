"""Data and weights that are kept in object storage: fetched into the cache directory, and put there.

A mirror is a folder of prepared TFDS data, file by file, and files of weights. What `send` puts there it also lists
in a manifest with sizes and digests, and `Fetching` holds every file against it. A mirror that was filled otherwise has
no manifest: there the store's own checksum must do, and a copy is good as long as its object has the generation that it
was fetched at. A file has its name only once it is complete, so both may be killed anywhere, and go on from there.

The names may be chosen by an attacker: one that would leave the folder, a file that no data set needs,
and one that the manifest does not know are refused before anything is fetched. This module knows no TensorFlow.
"""

import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from job.data.tfds import prepared
from job.errors import DataUnavailable, InputError, ObjectMissing, WeightsUnusable
from job.observe import events
from job.paths import UnsafeName, checked_name, inside
from job.storage import MISSING, Digest, LocalStore, ObjectStore, cache_folder, digest_of, open_store, scratch
from job.storage.uri import is_bucket

MANIFEST = "thaw-mirror.json"
NUM_THREADS = 8
POLL_SECONDS = 0.2
REPORT_EVERY_SECONDS = 10.0


class Listed(BaseModel):
    """A file as it was when it was sent or fetched: its content, and the generation of its object."""

    model_config = ConfigDict(frozen=True)

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    generation: int = MISSING

    @property
    def digest(self) -> Digest:
        return Digest(self.size, self.sha256)


Files = dict[str, Listed | None]
"""The files of a mirror by name, with what its manifest says of each; None where there is no manifest."""


class Manifest(BaseModel):
    """The files of a mirror by name."""

    files: dict[str, Listed] = {}

    @field_validator("files")
    @classmethod
    def _names_are_safe(cls, files: dict[str, Listed]) -> dict[str, Listed]:
        return {checked_name(name): listed for name, listed in files.items()}

    @classmethod
    def read(cls, store: ObjectStore) -> tuple["Manifest", int]:
        """The manifest of a mirror, empty when there is none, and its generation. Raises InputError."""
        try:
            stored = store.read(MANIFEST)
        except ObjectMissing:
            return cls(), MISSING
        try:
            return cls.model_validate_json(stored.data), stored.generation
        except ValidationError as error:
            raise InputError(
                f"{store.uri}/{MANIFEST} is not the manifest of a mirror: {error.errors()[0]['msg']}",
                hint="delete it, and fill the mirror again with python -m job mirror",
            ) from error

    def write(self, store: ObjectStore, generation: int) -> int:
        """Write it, sorted by name, in place of `generation`; returns the new one."""
        content = Manifest(files=dict(sorted(self.files.items())))
        return store.write(MANIFEST, content.model_dump_json(indent=1).encode(), if_generation=generation)


def probe(store: ObjectStore) -> None:
    """Find out whether a mirror can be filled, by writing its manifest as it is. Raises StorageError, InputError."""
    manifest, generation = Manifest.read(store)
    manifest.write(store, generation)


def send(
    store: ObjectStore, files: Mapping[str, Path], *, observer: events.Observer, check_stop: Callable[[], None]
) -> None:
    """Put files into a mirror, but for those that are there as they were sent; a killed one goes on where it was."""
    manifest, manifest_generation = Manifest.read(store)
    num_bytes, began = 0, time.monotonic()
    # Descriptions come last: a data set is found by its description, so it is not taken before it is complete.
    ordered = sorted(files.items(), key=lambda file: (file[0].endswith(f"/{prepared.DESCRIPTION}"), file[0]))
    for count, (name, path) in enumerate(ordered, start=1):
        check_stop()
        digest, current = digest_of(path), store.generation(name)
        if current == MISSING or manifest.files.get(name) != Listed(**vars(digest), generation=current):
            store.upload(name, path, if_generation=current)
            num_bytes += digest.size
            manifest.files[name] = Listed(**vars(digest), generation=store.generation(name))
            manifest_generation = manifest.write(store, manifest_generation)
        observer.event(events.Mirrored(file=name, number=count, num_files=len(files), bytes=digest.size))
    observer.event(events.MirrorFilled(store.uri, bytes_sent=num_bytes, seconds=time.monotonic() - began))


def files_of_dataset(store: ObjectStore, dataset: str) -> Files:
    """The files of a prepared data set. Raises DataUnavailable when there are none.

    Raises InputError when the names are not all such that they may be fetched, or a file is there that should not be;
    in a folder, where nothing is fetched, other files may lie beside those.
    """
    names = []
    for name in store.list(f"{prepared.family(dataset)}/"):
        # What the consoles of buckets show as folders are empty objects whose names end with a slash.
        with _named(store):
            checked_name(name.removesuffix("/"))
        if not name.endswith("/"):
            names.append(name)
    names = prepared.files_of_dataset(names, dataset)
    if not names:
        raise DataUnavailable(
            f"there is no prepared data of {dataset!r} under {store.uri}",
            hint=f"fill it from a machine with a network: {_command(store.uri)} --dataset {dataset}",
        )
    if isinstance(store, LocalStore):
        return dict.fromkeys(names)
    for name in names:
        if not prepared.is_needed(name):
            raise InputError(
                f"{store.uri}/{name} is no file of a prepared data set, and nothing was fetched: expected descriptions "
                "(.json), labels (.txt) and record files",
                hint="delete it, if you know why it is there",
            )
    return _listed(store, names)


def _command(place: str) -> str:
    """What fills a mirror that has `place`."""
    return f"python -m job mirror --to {place.removesuffix('/tfds').removesuffix('/weights')}"


def _listed(store: ObjectStore, names: Iterable[str]) -> Files:
    """Files by name. Raises InputError for one that the manifest lacks."""
    manifest, generation = Manifest.read(store)
    for name in names:
        if generation != MISSING and name not in manifest.files:
            raise InputError(
                f"{store.uri}/{name} is not in the manifest of the mirror, and nothing was fetched: filling the mirror "
                "was cut short, or somebody else put it there",
                hint="fill the mirror again, with python -m job mirror; if it is still refused then, delete it",
            )
    return {name: manifest.files.get(name) for name in names}


@contextlib.contextmanager
def _named(store: ObjectStore) -> Iterator[None]:
    """Turn an unsafe name into an error that says in which store it is."""
    try:
        yield
    except UnsafeName as error:
        raise InputError(
            f"{store.uri} has an object whose name cannot be that of a file here, and nothing was fetched: {error}",
            hint="find out why it is there, and delete it",
        ) from error


@dataclass(frozen=True)
class LocalInputs:
    """Where data and weights are on this machine."""

    dataset: str
    data_dir: str | None
    weights: str


class Fetching:
    """Copies of remote places under the cache directory, which later attempts on the same disk find again.

    A file on its way is in `scratch`, a folder of this process alone on the same disk, and goes with it.
    """

    def __init__(
        self, cache_dir: Path | None, *, scratch: Path, observer: events.Observer, check_stop: Callable[[], None]
    ) -> None:
        self._root = cache_folder.place(cache_dir) / "mirror"
        self._scratch = scratch
        self._observer = observer
        self._check_stop = check_stop

    def inputs(self, *, data_dir: str | None, dataset: str, weights: str) -> LocalInputs:
        """The same places, with a local copy instead of each remote one."""
        if data_dir is not None and is_bucket(data_dir):
            data_dir = str(self.dataset(data_dir, dataset))
        if is_bucket(weights):
            weights = str(self.weights(weights))
        return LocalInputs(dataset, data_dir, weights)

    def dataset(self, uri: str, dataset: str) -> Path:
        """A local data_dir with the prepared data set. Raises DataUnavailable, InputError, StorageError."""
        store = open_store(uri)
        return self._fetch(store, uri, files_of_dataset(store, dataset))

    def weights(self, uri: str) -> Path:
        """A local copy of a file of weights. Raises WeightsUnusable, InputError, StorageError."""
        parent, _, name = uri.rpartition("/")
        store = open_store(parent)
        try:
            return self._fetch(store, parent, _listed(store, [name])) / name
        except ObjectMissing as error:
            raise WeightsUnusable(
                f"THAW_WEIGHTS={uri!r}: there is no such object",
                hint=f"put it there, or fill a mirror: {_command(parent)}",
            ) from error

    def _fetch(self, store: ObjectStore, uri: str, files: Files) -> Path:
        """Fetch what is not here; returns the folder that has the files."""
        folder = self._root / hashlib.sha256(uri.encode()).hexdigest()[:16]
        began = reported_at = time.monotonic()
        fetched: list[int] = []
        copies = [Copy(store, name, folder=folder, listed=listed) for name, listed in files.items()]
        executor = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="fetch")
        pending = {executor.submit(copy.ensure, self._scratch) for copy in copies}
        try:
            while pending:
                done, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                fetched += [size for size in (future.result() for future in done) if size is not None]
                self._check_stop()
                if time.monotonic() - reported_at >= REPORT_EVERY_SECONDS:
                    reported_at = time.monotonic()
                    self._observer.event(events.Fetching(store.uri, len(pending), len(copies), bytes=sum(fetched)))
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
        seconds = time.monotonic() - began
        self._observer.event(events.Fetched(store.uri, len(fetched), bytes=sum(fetched), seconds=seconds))
        return folder


class Copy:
    """One file of a mirror on this disk, and beside the mirror's folder a note of what it was when it came.

    Raises InputError for a name that leads out of the folder.
    """

    def __init__(self, store: ObjectStore, name: str, *, folder: Path, listed: Listed | None) -> None:
        self._store = store
        self._name = name
        self._listed = listed
        with _named(store):
            self._path = _below(folder, name)
            self._note = _below(folder.with_name(f"{folder.name}-notes"), f"{name}.json")

    def ensure(self, scratch_folder: Path) -> int | None:
        """Fetch the file unless it is here; returns how many bytes that were, None when it was here."""
        # Asked before the file is fetched: if another takes its place meanwhile, the next attempt fetches that.
        generation = MISSING if self._listed is not None else self._store.generation(self._name)
        if self._is_here(generation):
            return None
        part = scratch_folder / secrets.token_hex(8)
        with scratch.explained(self._path):
            for path in (self._path, self._note):
                path.parent.mkdir(parents=True, exist_ok=True)
            try:
                found = self._store.download(self._name, part)
                if self._listed is not None and found != self._listed.digest:
                    raise InputError(
                        f"{self._store.uri}/{self._name} is not what the manifest of the mirror says: {found.size} "
                        f"bytes with SHA-256 {found.sha256[:12]}, expected {self._listed.size} bytes with "
                        f"{self._listed.sha256[:12]}",
                        hint="fill the mirror again, with python -m job mirror",
                    )
                part.rename(self._path)
                part.write_text(Listed(**vars(found), generation=generation).model_dump_json())
                part.rename(self._note)
            finally:
                part.unlink(missing_ok=True)
        return found.size

    def _is_here(self, generation: int) -> bool:
        """Whether the file has been fetched before, is as it came, and is what the mirror has."""
        if self._listed is not None:
            return self._digest() == self._listed.digest
        note = cache_folder.open_own(self._note)
        if note is None:
            return False
        try:
            with note:
                noted = Listed.model_validate_json(note.read())
        except (OSError, ValidationError):
            return False
        return noted.generation == generation != MISSING and self._digest() == noted.digest

    def _digest(self) -> Digest | None:
        """The digest of the copy; None when there is none that can be trusted."""
        copy = cache_folder.open_own(self._path)
        if copy is None:
            return None
        with scratch.explained(self._path), copy:
            return Digest(os.fstat(copy.fileno()).st_size, hashlib.file_digest(copy, "sha256").hexdigest())


def _below(folder: Path, name: str) -> Path:
    """Where a file is written. A link in its own place does no harm: the file takes that place."""
    parent, _, last = checked_name(name).rpartition("/")
    return inside(folder, parent) / last if parent else folder / last
