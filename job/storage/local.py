"""A folder as an object store: a disk, or a volume that several pods mount."""

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from job import scratch
from job.errors import ObjectDamaged, ObjectMissing, PreconditionFailed, StorageError
from job.storage.protocol import MISSING, Digest, Observer, StoredObject, Unobserved


class LocalStore:
    """Objects as files under a folder.

    A write goes to a temporary file in the same folder, is synced, and renamed over the name under an exclusive
    `flock`, so a reader sees the old bytes or the new and a crash leaves at most a temporary file. A file of the same
    disk that may be moved becomes that temporary file. The generation is the file's modification time in nanoseconds,
    which the writer sets above the old one and which is renamed into place with the content. Temporary files that a
    killed process left are removed when they are an hour old.
    """

    _LOCK = ".lock"
    _TEMPORARY = ".tmp-"
    _ABANDONED_SECONDS = 3600

    def __init__(self, root: Path, *, observer: Observer | None = None) -> None:
        self.root = root.absolute()
        self._observer = observer or Unobserved()

    @property
    def uri(self) -> str:
        return str(self.root)

    def read(self, name: str) -> StoredObject:
        with self._explained("read", name), self._path(name).open("rb") as file:
            return StoredObject(file.read(), os.fstat(file.fileno()).st_mtime_ns)

    def write(self, name: str, data: bytes, *, if_generation: int) -> int:
        with self._explained("write", name), self._temporary(name) as path:
            path.write_bytes(data)
            return self._publish(path, name, if_generation)

    def upload(self, name: str, source: Path, *, if_generation: int, may_move: bool = False) -> Digest:
        with self._explained("write", name), self._temporary(name) as path:
            sent = None if may_move and _moved(source, path) else _copied(scratch.chunks(source), path)
            # Read back before it has its name: what the store holds, and not what was meant, is what counts.
            held = Digest.of(path)
            if sent is not None and sent != held:
                raise ObjectDamaged(
                    f"{self.uri}/{name} is not what was sent: {held.size} bytes with SHA-256 {held.sha256[:12]}, "
                    f"expected {sent.size} bytes with {sent.sha256[:12]}",
                    hint="check the volume of THAW_STORAGE_URI, and start the run again: nothing is lost",
                )
            self._publish(path, name, if_generation)
            return held

    def download(self, name: str, target: Path) -> Digest:
        with scratch.explained(target):
            return _copied(self._chunks(name), target)

    def generation(self, name: str) -> int:
        with self._explained("read", name):
            return self._generation(name)

    def age_seconds(self, name: str) -> None:
        """A folder has no clock of its own: its files have the times of whoever wrote them."""
        with self._explained("read", name):
            self._path(name).stat()

    def folders(self) -> list[str]:
        with self._explained("list", ""), os.scandir(self.root) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())

    def list(self, prefix: str) -> list[str]:
        folder = self._path(prefix.rpartition("/")[0]) if "/" in prefix else self.root
        with self._explained("list", prefix):
            names = [
                path.relative_to(self.root).as_posix()
                for path in folder.rglob("*")
                if path.is_file() and not path.name.startswith((self._LOCK, self._TEMPORARY))
            ]
        return sorted(name for name in names if name.startswith(prefix))

    def delete(self, name: str) -> None:
        with self._explained("delete", name), contextlib.suppress(FileNotFoundError):
            self._path(name).unlink()

    def _chunks(self, name: str) -> Iterator[bytes]:
        with self._explained("read", name), self._path(name).open("rb") as file:
            while chunk := file.read(scratch.CHUNK_BYTES):
                yield chunk

    def _path(self, name: str) -> Path:
        path = self.root / name
        if name.startswith("/") or ".." in path.parts:
            raise ValueError(f"{name!r} is not a name inside the store")
        return path

    def _generation(self, name: str) -> int:
        try:
            return self._path(name).stat().st_mtime_ns
        except FileNotFoundError:
            return MISSING

    @contextlib.contextmanager
    def _temporary(self, name: str) -> Iterator[Path]:
        """A name for a file that does not exist yet; what is there at the end under that name is removed."""
        folder = self._path(name).parent
        folder.mkdir(parents=True, exist_ok=True)
        self._remove_abandoned(folder)
        path = folder / f"{self._TEMPORARY}{secrets.token_hex(8)}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _remove_abandoned(self, folder: Path) -> None:
        for path in folder.glob(f"{self._TEMPORARY}*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > self._ABANDONED_SECONDS:
                    path.unlink()

    def _publish(self, path: Path, name: str, if_generation: int) -> int:
        """Make a complete temporary file the object, if the object is still of the expected generation."""
        _sync(path)
        with self._lock():
            current = self._generation(name)
            if current != if_generation:
                raise PreconditionFailed(
                    f"{self.uri}/{name} has generation {current}, expected {if_generation}: another process wrote it"
                )
            generation = _stamp(path, above=current)
            path.rename(self._path(name))
            _sync(self._path(name).parent)
        return generation

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.root / self._LOCK).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _explained(self, action: str, name: str) -> Iterator[None]:
        """Tell the observer, and turn the operating system's errors into ours, with the path and the way out."""
        began, code = time.monotonic(), "ok"
        try:
            yield
        except PreconditionFailed:
            code = "conflict"
            self._observer.conflict(name)
            raise
        except FileNotFoundError as error:
            code = "missing"
            raise ObjectMissing(f"there is no object {self.uri}/{name}") from error
        except OSError as error:
            code = errno.errorcode.get(error.errno or 0, "error")
            hints = {
                errno.ENOSPC: "free space, or point THAW_STORAGE_URI at a larger volume",
                errno.EDQUOT: "raise the quota, or point THAW_STORAGE_URI elsewhere",
                errno.EROFS: "the disk is read-only: mount a writable volume, or point THAW_STORAGE_URI elsewhere",
                errno.EACCES: "give this user the right to write there, or point THAW_STORAGE_URI elsewhere",
            }
            raise StorageError(
                f"cannot {action} {error.filename or f'{self.uri}/{name}'}: {os.strerror(error.errno or 0)}",
                hint=hints.get(error.errno or 0, "check the volume, and start the run again: nothing is lost"),
            ) from error
        finally:
            self._observer.request(action, code, time.monotonic() - began)


def _moved(source: Path, target: Path) -> bool:
    """Whether a file has the name of a new one now; onto another disk it cannot be moved, only copied.

    It gets the permissions of any new file, as a volume may be read by others than who wrote it.
    """
    with contextlib.suppress(OSError):
        target.touch()
        source.chmod(stat.S_IMODE(target.stat().st_mode))
        source.rename(target)
        return True
    return False


def _copied(chunks: Iterator[bytes], target: Path) -> Digest:
    hasher, size = hashlib.sha256(), 0
    with target.open("wb") as file:
        for chunk in chunks:
            hasher.update(chunk)
            file.write(chunk)
            size += len(chunk)
    return Digest(size, hasher.hexdigest())


def _stamp(path: Path, *, above: int) -> int:
    """Set a file's modification time above a generation, and return it as the file system keeps it.

    Some file systems keep whole seconds, or even seconds: then a step of two seconds is above for certain.
    """
    for candidate in (max(time.time_ns(), above + 1), above + 2_000_000_000):
        os.utime(path, ns=(candidate, candidate))
        kept = path.stat().st_mtime_ns
        if kept > above:
            return kept
    raise OSError(errno.EIO, "the file system does not keep modification times", str(path))


def _sync(path: Path) -> None:
    """Have a file's content, or a folder's names, survive the loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
