"""Data and weights that are kept in object storage: fetched into the cache directory, and put there.

A mirror is a folder of prepared TFDS data, file by file, and files of weights. What `send` puts there it also lists
in a manifest with sizes and digests, and `Fetching` holds every file against it; a mirror that was filled otherwise has
no manifest, and the store's own checksum must do. A file has its name only once it is complete, so both may be killed
anywhere, and go on from there. This room knows no TensorFlow.
"""

import contextlib
import hashlib
import json
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path, PurePosixPath
from typing import Any

from job import events, scratch
from job.errors import DataUnavailable, InputError, ObjectMissing, WeightsUnusable
from job.storage import MISSING, Digest, ObjectStore, digest_of, open_store

MANIFEST = "thaw-mirror.json"
PART = ".part-"
ABANDONED_SECONDS = 3600
NUM_THREADS = 8
POLL_SECONDS = 0.2
REPORT_EVERY_SECONDS = 10.0

Digests = dict[str, Digest]


def is_remote(place: str) -> bool:
    """Whether data or weights must be fetched before TensorFlow can read them."""
    return place.startswith("gs://")


class Fetching:
    """Copies of remote places under the cache directory, which later attempts on the same disk find again."""

    def __init__(self, cache_dir: Path | None, *, reader: events.Reader, check_stop: Callable[[], None]) -> None:
        self._root = (cache_dir or Path(tempfile.gettempdir())) / "thaw-mirror"
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
        digests, began = manifest_of(store)[0], time.monotonic()
        _remove_abandoned(folder)
        wanted = [name for name in names if not _is_here(folder / name, digests.get(name))]
        num_bytes = 0
        executor = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="fetch")
        pending = {executor.submit(_download, store, name, folder / name, digests.get(name)) for name in wanted}
        try:
            reported_at = time.monotonic()
            while pending:
                done, pending = wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                num_bytes += sum(future.result().size for future in done)
                self._check_stop()
                if time.monotonic() - reported_at >= REPORT_EVERY_SECONDS:
                    reported_at = time.monotonic()
                    self._reader.event(
                        events.FETCHING, place=store.uri, num_left=len(pending), num_files=len(wanted), bytes=num_bytes
                    )
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
        self._reader.event(
            events.FETCHED, place=store.uri, num_files=len(wanted), bytes=num_bytes, seconds=time.monotonic() - began
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


def manifest_of(store: ObjectStore) -> tuple[Digests, int]:
    """The digests of a mirror's files, which may be none, and the generation of the manifest."""
    try:
        stored = store.read(MANIFEST)
    except ObjectMissing:
        return {}, MISSING
    content: Mapping[str, Any] = json.loads(stored.data)
    return {name: Digest(**digest) for name, digest in content["files"].items()}, stored.generation


def send(
    store: ObjectStore, files: Mapping[str, Path], *, reader: events.Reader, check_stop: Callable[[], None]
) -> None:
    """Put files into a mirror, but for those that it has; a killed one goes on where it was."""
    digests, generation = manifest_of(store)
    num_bytes, began = 0, time.monotonic()
    for count, (name, path) in enumerate(sorted(files.items()), start=1):
        check_stop()
        digest = digest_of(path)
        current = store.generation(name)
        if current == MISSING or digests.get(name) != digest:
            store.upload(name, path, if_generation=current)
            num_bytes += digest.size
            digests[name] = digest
            content = {"files": {key: vars(value) for key, value in sorted(digests.items())}}
            generation = store.write(MANIFEST, json.dumps(content, indent=1).encode(), if_generation=generation)
        reader.event(events.MIRRORED, file=name, number=count, num_files=len(files), bytes=digest.size)
    reader.event(events.MIRROR_FILLED, place=store.uri, bytes_sent=num_bytes, seconds=time.monotonic() - began)


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes have left of files half fetched."""
    for part in folder.rglob(f"{PART}*"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > ABANDONED_SECONDS:
                part.unlink()


def _is_here(path: Path, digest: Digest | None) -> bool:
    """Whether a file was fetched before; by its digest, where that is known."""
    return path.is_file() and (digest is None or digest_of(path) == digest)


def _download(store: ObjectStore, name: str, target: Path, digest: Digest | None) -> Digest:
    with scratch.explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{PART}{secrets.token_hex(8)}")
        try:
            found = store.download(name, part)
            if digest is not None and found != digest:
                raise InputError(
                    f"{store.uri}/{name} is not what the manifest of the mirror says: {found.size} bytes with SHA-256 "
                    f"{found.sha256[:12]}, expected {digest.size} bytes with {digest.sha256[:12]}",
                    hint=f"fill the mirror again: python -m job mirror --to {store.uri}",
                )
            part.rename(target)
        finally:
            part.unlink(missing_ok=True)
    return found
