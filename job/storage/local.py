"""A folder as an object store: a disk, or a volume that several pods mount."""

import contextlib
import errno
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from job.errors import ObjectDamaged, ObjectMissing, PreconditionFailed, StorageError, StorageRefused
from job.paths import UnsafeName, checked_name
from job.storage import files, scratch
from job.storage.files import NotAFile, TemporaryFile
from job.storage.protocol import MISSING, Digest, ObjectStore, RequestObserver, StoredObject, Unobserved, digested

LOCK = ".lock"

_HINTS = {
    errno.ENOSPC: "free space, or point THAW_STORAGE_URI at a larger volume",
    errno.EDQUOT: "raise the quota, or point THAW_STORAGE_URI elsewhere",
}
_RIGHTS = "give this user the right to read and write there, or point THAW_STORAGE_URI elsewhere"
_IN_THE_WAY = "move away the file that is where a folder should be"
_NO_LOCKS = "this file system has no locks (flock): mount it with locks, or point THAW_STORAGE_URI elsewhere"
_REFUSED = {
    errno.EROFS: "the disk is read-only: mount a writable volume, or point THAW_STORAGE_URI elsewhere",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.ELOOP: "links lead to each other there: replace them by a folder",
    errno.ENAMETOOLONG: "the name is too long for this file system: give the run a shorter THAW_RUN_ID",
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EEXIST: _IN_THE_WAY,
    errno.ENOLCK: _NO_LOCKS,
    errno.EOPNOTSUPP: _NO_LOCKS,
    errno.ENOSYS: _NO_LOCKS,
}
"""Errors that last until a person changes something."""


class LocalStore(ObjectStore):
    """Objects as regular files under a folder.

    A write goes to a temporary file in the same folder, is synced, and renamed over the name under an exclusive
    `flock`, so a reader sees the old bytes or the new and a crash leaves at most a temporary file. A file of the same
    disk that may be moved becomes that temporary file. Temporary files that a killed process left are removed when they
    are an hour old (see `files.temporary_file`). A write fails when another process holds the lock for
    `timeout_seconds`.

    The version is the file's modification time in nanoseconds, which the writer sets above the old one, whatever the
    clock says, and which is renamed into place with the content. After an object is deleted nothing keeps its last
    version: a clock that is set back could give it to a new object of the same name. A run deletes only checkpoints,
    and no two have the same name.

    Only a regular file is an object. Anything else under an object's name is damage, and is never waited for. No link
    below the store's own folder is followed, for it may lead out: as an object it is damage, as a folder refused.

    What the system refuses at first is StorageRefused. Where it has allowed the same before, a disk or a mount has
    failed meanwhile, which may pass: StorageError.
    """

    def __init__(self, root: Path, *, observer: RequestObserver | None = None, timeout_seconds: float = 60.0) -> None:
        self.root = root.absolute()
        self.uri = str(self.root)
        self._observer = observer or Unobserved()
        self._timeout_seconds = timeout_seconds
        self._allowed: set[str] = set()

    def read(self, name: str) -> StoredObject:
        with self._explained("read", name), os.fdopen(files.open_file(self._path(name)), "rb") as file:
            return StoredObject(file.read(), str(os.fstat(file.fileno()).st_mtime_ns))

    def write(self, name: str, data: bytes, *, if_version: str) -> str:
        with self._writing(name) as temporary:
            temporary.path.write_bytes(data)
            return self._publish(temporary.path, name, if_version)

    def upload(self, name: str, source: Path, *, if_version: str, may_move: bool = False) -> Digest:
        with self._writing(name) as temporary:
            path = temporary.path
            sent = None if may_move and temporary.take_over(source) else _copied(scratch.chunks(source), path)
            # Read back before it has its name: what the store holds is what counts, not what was sent.
            held = Digest.of(path)
            if sent is not None and sent != held:
                raise ObjectDamaged(
                    f"{self.uri}/{name} is not what was sent: {held.size} bytes with SHA-256 {held.sha256[:12]}, "
                    f"expected {sent.size} bytes with {sent.sha256[:12]}",
                    hint="check the volume of THAW_STORAGE_URI, and start the run again: nothing is lost",
                )
            self._publish(path, name, if_version)
            return held

    def download(self, name: str, target: Path) -> Digest:
        def chunks() -> Iterator[bytes]:
            with self._explained("read", name), os.fdopen(files.open_file(self._path(name)), "rb") as file:
                while chunk := file.read(scratch.CHUNK_BYTES):
                    yield chunk

        with scratch.explained(target):
            return _copied(chunks(), target)

    def version(self, name: str) -> str:
        with self._explained("read", name):
            return self._version(name)

    def age_seconds(self, name: str) -> None:
        """A folder has no clock of its own: its files have the times of the hosts that wrote them."""
        with self._explained("read", name):
            files.modified_ns(self._path(name))

    def folders(self) -> list[str]:
        with self._explained("list", ""), os.scandir(self.root) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())

    def list(self, prefix: str) -> list[str]:
        with self._explained("list", prefix):
            folder = self._folder(prefix.rpartition("/")[0])
            # No folder, no objects; but a store under a file is an error.
            missing = (FileNotFoundError,) if folder == self.root else (FileNotFoundError, NotADirectoryError)
            names = []
            with contextlib.suppress(*missing):
                for path in files.regular_files(folder):
                    if not path.name.startswith((LOCK, files.TEMPORARY)):
                        names.append(path.relative_to(self.root).as_posix())
        return sorted(name for name in names if name.startswith(prefix))

    def versions(self, prefix: str) -> dict[str, str]:
        return {name: self.version(name) for name in self.list(prefix)}

    def delete(self, name: str) -> None:
        with self._explained("delete", name), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._path(name).unlink()

    def _path(self, name: str) -> Path:
        """The path of an object. Raises StorageRefused for a name that is not safe, or behind a link."""
        folder, _, last = self._checked(name).rpartition("/")
        return self._folder(folder) / last

    def _folder(self, name: str) -> Path:
        path = self.root
        for part in self._checked(name).split("/") if name else ():
            path /= part
            if path.is_symlink():
                raise StorageRefused(
                    f"{path} is a symbolic link, expected a folder: it may lead out of the store",
                    hint="replace the link by a folder, or mount what it leads to there",
                )
        return path

    def _checked(self, name: str) -> str:
        try:
            return checked_name(name)
        except UnsafeName as error:
            raise StorageRefused(f"{self.uri}: {error}", hint="rename the object, or correct what names it") from error

    def _version(self, name: str) -> str:
        try:
            return str(files.modified_ns(self._path(name)))
        except FileNotFoundError:
            return MISSING

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[TemporaryFile]:
        """A temporary file in the folder of an object."""
        with self._explained("write", name):
            folder = self._path(name).parent
            folder.mkdir(parents=True, exist_ok=True)
            with files.temporary_file(folder) as temporary:
                yield temporary

    def _publish(self, path: Path, name: str, if_version: str) -> str:
        """Make a complete temporary file the object, if the object is still of the expected version."""
        _sync(path)
        with self._lock():
            current = self._version(name)
            if current != if_version:
                raise PreconditionFailed(
                    f"{self.uri}/{name} has version {current or 'none'}, expected {if_version or 'none'}: "
                    "another process wrote it"
                )
            version = str(_set_modified_ns(path, above=int(current or 0)))
            path.rename(self._path(name))
            _sync(self._path(name).parent)
        return version

    def _lock(self) -> BinaryIO:
        path, seconds = self.root / LOCK, self._timeout_seconds
        try:
            return files.lock(
                path, timeout_seconds=seconds, on_waiting=lambda: self._observer.waiting(str(path), seconds)
            )
        except TimeoutError as error:
            raise StorageError(
                f"the lock {path} was not free in {seconds:g} s: another process holds it",
                hint=f"it may be frozen, or on another host: `lslocks` or `fuser -v {path}` there shows it; "
                "end it, and start the run again: nothing is lost",
            ) from error
        except NotAFile as error:
            raise StorageRefused(
                f"the lock of {self.uri} cannot be taken: {error}",
                hint="remove it: it is not of this program, which makes a file there",
            ) from error

    @contextlib.contextmanager
    def _explained(self, action: str, name: str) -> Iterator[None]:
        """Report to the observer, and turn the operating system's errors into ours, with the path and a hint."""
        began, code = time.monotonic(), "ok"
        try:
            yield
            self._allowed.add(action)
        except PreconditionFailed:
            code = "conflict"
            self._observer.conflict(name)
            raise
        except StorageError:
            code = "error"
            raise
        except OSError as error:
            code, ours = _explanation(error, action, f"{self.uri}/{name}")
            if type(ours) is StorageRefused and action in self._allowed:
                ours = StorageError(ours.message, hint=ours.hint)
            raise ours from error
        finally:
            self._observer.request(action, code, time.monotonic() - began)


def _explanation(error: OSError, action: str, uri: str) -> tuple[str, StorageError]:
    """A code for the observer, and our error."""
    if isinstance(error, FileNotFoundError) and action != "write":
        return "missing", ObjectMissing(f"there is no object {uri}")
    if isinstance(error, NotAFile):
        return "damaged", ObjectDamaged(str(error), hint="move it away, and start the run again: nothing is lost")
    number = error.errno or 0
    code = errno.errorcode.get(number, "error")
    message = f"cannot {action} {error.filename or uri}: {os.strerror(number)}"
    if action == "read" and isinstance(error, NotADirectoryError):
        return code, ObjectDamaged(f"{message}: a file is where a folder should be", hint=_IN_THE_WAY)
    if number in _REFUSED:
        return code, StorageRefused(message, hint=_REFUSED[number])
    hint = _HINTS.get(number, "check the volume, and start the run again: nothing is lost")
    return code, StorageError(message, hint=hint)


def _copied(chunks: Iterable[bytes], target: Path) -> Digest:
    with target.open("wb") as file:
        return digested(chunks, file.write)


def _set_modified_ns(path: Path, *, above: int) -> int:
    """Set a file's modification time above another one, and return it as the file system keeps it.

    Some file systems keep whole seconds, or even seconds: a step of two seconds is always above.
    """
    for candidate in (max(time.time_ns(), above + 1), above + 2_000_000_000):
        os.utime(path, ns=(candidate, candidate))
        kept = path.stat().st_mtime_ns
        if kept > above:
            return kept
    raise OSError(errno.EIO, "the file system does not keep modification times", str(path))


def _sync(path: Path) -> None:
    """Make a file's content, or a folder's names, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
