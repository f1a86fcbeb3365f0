"""Data and weights that are kept in object storage: fetched into the cache directory, and put there.

A mirror is a folder of prepared TFDS data, file by file, and files of weights. What `send` puts there it also lists
in a manifest with sizes and digests, and `Fetching` holds every file against it. A mirror that was filled otherwise has
no manifest: there the store's own checksum must do, and a copy is good as long as its object has the generation that it
was fetched at. A file has its name only once it is complete, so both may be killed anywhere, and go on from there.
This room knows no TensorFlow.
"""

import hashlib
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, ValidationError

from job import events, scratch
from job.errors import DataUnavailable, InputError, ObjectMissing, WeightsUnusable
from job.storage import MISSING, Digest, ObjectStore, digest_of, open_store

MANIFEST = "thaw-mirror.json"
NUM_THREADS = 8
POLL_SECONDS = 0.2
REPORT_EVERY_SECONDS = 10.0


def is_remote(place: str) -> bool:
    """Whether data or weights must be fetched before TensorFlow can read them."""
    return place.startswith("gs://")


class Listed(BaseModel):
    """A file as it was when it was sent or fetched: its content, and the generation of its object."""

    model_config = ConfigDict(frozen=True)

    size: int
    sha256: str
    generation: int = MISSING

    @property
    def digest(self) -> Digest:
        return Digest(self.size, self.sha256)


class Manifest(BaseModel):
    """The files of a mirror by name."""

    files: dict[str, Listed] = {}


class Fetching:
    """Copies of remote places under the cache directory, which later attempts on the same disk find again.

    A file on its way is in `scratch`, a folder of this process alone on the same disk, and goes with it.
    """

    def __init__(
        self, cache_dir: Path | None, *, scratch: Path, reader: events.Reader, check_stop: Callable[[], None]
    ) -> None:
        self._root = (cache_dir or Path(tempfile.gettempdir())) / "thaw-mirror"
        self._scratch = scratch
        self._reader = reader
        self._check_stop = check_stop

    def inputs(self, *, data_dir: str | None, dataset: str, weights: str) -> tuple[str | None, str]:
        """The same places, with a local copy instead of each remote one."""
        if data_dir is not None and is_remote(data_dir):
            data_dir = str(self.dataset(data_dir, dataset))
        if is_remote(weights):
            weights = str(self.weights(weights))
        return data_dir, weights

    def dataset(self, uri: str, dataset: str) -> Path:
        """A local data_dir with the prepared data set. Raises DataUnavailable, StorageError."""
        store = open_store(uri)
        names = files_of_dataset(store.list(f"{re.split('[/:]', dataset)[0]}/"), dataset)
        if not names:
            raise DataUnavailable(
                f"there is no prepared data of {dataset!r} under {uri}",
                hint=f"fill it from a machine with a network: python -m job mirror --to {uri} --dataset {dataset}",
            )
        folder = self._folder(uri)
        self._fetch(store, folder, names)
        return folder

    def weights(self, uri: str) -> Path:
        """A local copy of a file of weights. Raises WeightsUnusable, StorageError."""
        parent, _, name = uri.rpartition("/")
        folder = self._folder(parent)
        try:
            self._fetch(open_store(parent), folder, [name])
        except ObjectMissing as error:
            raise WeightsUnusable(
                f"THAW_WEIGHTS={uri!r}: there is no such object",
                hint=f"put it there, or fill a mirror: python -m job mirror --to {parent}",
            ) from error
        return folder / name

    def _folder(self, uri: str) -> Path:
        return self._root / hashlib.sha256(uri.encode()).hexdigest()[:16]

    def _fetch(self, store: ObjectStore, folder: Path, names: Iterable[str]) -> None:
        manifest, began = manifest_of(store)[0], time.monotonic()
        fetched: list[int] = []
        executor = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="fetch")
        copies = [Copy(store, name, folder=folder, listed=manifest.files.get(name)) for name in names]
        pending = {executor.submit(copy.ensure, self._scratch) for copy in copies}
        try:
            reported_at = time.monotonic()
            while pending:
                done, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                fetched += [size for size in (future.result() for future in done) if size is not None]
                self._check_stop()
                if time.monotonic() - reported_at >= REPORT_EVERY_SECONDS:
                    reported_at = time.monotonic()
                    self._reader.event(
                        events.FETCHING, place=store.uri, num_left=len(pending), num_files=len(copies),
                        bytes=sum(fetched),
                    )  # fmt: skip
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
        self._reader.event(
            events.FETCHED, place=store.uri, num_files=len(fetched), bytes=sum(fetched),
            seconds=time.monotonic() - began,
        )  # fmt: skip


class Copy:
    """One file of a mirror on this disk, and beside the mirror's folder a note of what it was when it came."""

    def __init__(self, store: ObjectStore, name: str, *, folder: Path, listed: Listed | None) -> None:
        self._store = store
        self._name = name
        self._path = folder / name
        self._note = folder.with_name(f"{folder.name}-notes") / f"{name}.json"
        self._listed = listed

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
                self._check(found)
                part.rename(self._path)
                part.write_text(Listed(**vars(found), generation=generation).model_dump_json())
                part.rename(self._note)
            finally:
                part.unlink(missing_ok=True)
        return found.size

    def _is_here(self, generation: int) -> bool:
        """Whether the file has been fetched before, is as it came, and is what the mirror has."""
        with scratch.explained(self._path):
            if not self._path.is_file():
                return False
        if self._listed is not None:
            return digest_of(self._path) == self._listed.digest
        try:
            noted = Listed.model_validate_json(self._note.read_bytes())
        except (OSError, ValidationError):
            return False
        return noted.generation == generation != MISSING and digest_of(self._path) == noted.digest

    def _check(self, found: Digest) -> None:
        if self._listed is not None and found != self._listed.digest:
            raise InputError(
                f"{self._store.uri}/{self._name} is not what the manifest of the mirror says: {found.size} bytes with "
                f"SHA-256 {found.sha256[:12]}, expected {self._listed.size} bytes with {self._listed.sha256[:12]}",
                hint="fill the mirror again, with python -m job mirror",
            )


def files_of_dataset(names: Iterable[str], dataset: str) -> list[str]:
    """The names that belong to `dataset`, which is name, name/config or either with :version.

    Of several versions the highest; of several configurations, when none is asked for, all.
    """
    match = re.match(r"^([^/:]+)(?:/([^:]+))?(?::(.+))?$", dataset)
    assert match is not None, dataset
    name, config, version = match.groups()
    names = list(names)
    folders: dict[PurePosixPath, PurePosixPath] = {}
    for path in (PurePosixPath(entry) for entry in names):
        if path.name != "dataset_info.json" or path.parts[0] != name:
            continue
        version_folder, family = path.parent, path.parent.parent
        is_config = config is None or family.parts[1:] == tuple(config.split("/"))
        is_version = version is None or re.fullmatch(version.replace(".", r"\.").replace("*", r"\d+"), path.parent.name)
        if is_config and is_version and _version(version_folder) >= _version(folders.get(family)):
            folders[family] = version_folder
    return [entry for entry in names if PurePosixPath(entry).parent in folders.values()]


def _version(folder: PurePosixPath | None) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", folder.name)) if folder else ()


def manifest_of(store: ObjectStore) -> tuple[Manifest, int]:
    """The manifest of a mirror, which may be empty, and its generation. Raises InputError when it is none."""
    try:
        stored = store.read(MANIFEST)
    except ObjectMissing:
        return Manifest(), MISSING
    try:
        return Manifest.model_validate_json(stored.data), stored.generation
    except ValidationError as error:
        raise InputError(
            f"{store.uri}/{MANIFEST} is not the manifest of a mirror: {error.errors()[0]['msg']}",
            hint="delete it, and fill the mirror again with python -m job mirror",
        ) from error


def probe(store: ObjectStore) -> None:
    """Find out whether a mirror can be filled, by writing its manifest as it is. Raises StorageError."""
    manifest, generation = manifest_of(store)
    _write(store, manifest, generation)


def send(
    store: ObjectStore, files: Mapping[str, Path], *, reader: events.Reader, check_stop: Callable[[], None]
) -> None:
    """Put files into a mirror, but for those that are there as they were sent; a killed one goes on where it was."""
    manifest, manifest_generation = manifest_of(store)
    num_bytes, began = 0, time.monotonic()
    for count, (name, path) in enumerate(sorted(files.items()), start=1):
        check_stop()
        digest, current = digest_of(path), store.generation(name)
        if current == MISSING or manifest.files.get(name) != Listed(**vars(digest), generation=current):
            store.upload(name, path, if_generation=current)
            num_bytes += digest.size
            manifest.files[name] = Listed(**vars(digest), generation=store.generation(name))
            manifest_generation = _write(store, manifest, manifest_generation)
        reader.event(events.MIRRORED, file=name, number=count, num_files=len(files), bytes=digest.size)
    reader.event(events.MIRROR_FILLED, place=store.uri, bytes_sent=num_bytes, seconds=time.monotonic() - began)


def _write(store: ObjectStore, manifest: Manifest, generation: int) -> int:
    content = Manifest(files=dict(sorted(manifest.files.items())))
    return store.write(MANIFEST, content.model_dump_json(indent=1).encode(), if_generation=generation)
