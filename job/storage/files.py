"""Files in a folder that others can write to: opened without following a link or waiting for a FIFO, and locked.

Locks are those of `flock`: they belong to an open file, so they end with the process that holds it, however it ends,
and no clock is asked. This module knows nothing of objects.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

WAITING_AFTER_SECONDS = 1.0
MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.001, 0.05
TEMPORARY = ".tmp-"
ABANDONED_SECONDS = 3600

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotAFile(OSError):
    """Something else than a regular file is at a path; the text says what."""


def open_file(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file. Raises NotAFile for anything else, without waiting for it, and OSError."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError:
        # A socket, a link, a folder to be written: each has an error of its own.
        if os.path.lexists(path):
            _check_kind(path, path.lstat().st_mode)
        raise
    try:
        _check_kind(path, os.fstat(descriptor).st_mode)
    except NotAFile:
        os.close(descriptor)
        raise
    return descriptor


def modified_ns(path: Path) -> int:
    """The modification time of a regular file in nanoseconds. Raises NotAFile, OSError."""
    status = path.lstat()
    _check_kind(path, status.st_mode)
    return status.st_mtime_ns


def _check_kind(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise NotAFile(f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'something else')}, expected a file")


def regular_files(folder: Path) -> Iterator[Path]:
    """Every regular file under a folder, at any depth; links are not followed. Raises OSError."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                # A folder may go away meanwhile.
                with contextlib.suppress(FileNotFoundError):
                    yield from regular_files(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                yield Path(entry.path)


@contextlib.contextmanager
def locked(path: Path, *, timeout_seconds: float, on_waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a file, which is made when it is not there.

    `on_waiting` is called once when that takes more than a second. Raises TimeoutError when another process still holds
    it after `timeout_seconds`, NotAFile, and OSError, with ENOLCK or EOPNOTSUPP on a file system that has no locks.
    """
    descriptor = open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        began, pause, is_told = time.monotonic(), MIN_PAUSE_SECONDS, False
        while not _try_lock(descriptor):
            waited = time.monotonic() - began
            if waited >= timeout_seconds:
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), str(path))
            if waited >= WAITING_AFTER_SECONDS and not is_told:
                on_waiting()
                is_told = True
            time.sleep(min(pause, timeout_seconds - waited))
            pause = min(2 * pause, MAX_PAUSE_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class TemporaryFile:
    """An empty file beside what it is to become; what has its name at the end is removed.

    Its lock is held for as long as it is written, so that no other process takes it for abandoned. What killed
    processes left in the folder is removed: files whose lock is free, and that are an hour older than this one by the
    times that the file system gave both. The hour is for file systems that several hosts mount without sharing locks
    (NFS with `nolock` or `local_lock`): there a lock always looks free.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptors: list[int] = []

    def __enter__(self) -> Self:
        while True:
            self.path = self._folder / f"{TEMPORARY}{secrets.token_hex(8)}"
            self._descriptors = [open_file(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL)]
            try:
                # Another process that removes abandoned files may have been quicker than the lock.
                if _try_lock(self._descriptors[0]) and os.fstat(self._descriptors[0]).st_nlink:
                    break
            except OSError:
                self._remove()
                raise
            self._remove()
        self._remove_abandoned()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def take_over(self, source: Path) -> bool:
        """Give a file of the same disk this one's name, its permissions and a lock; whether that could be done.

        Onto another disk a file cannot be moved, only copied.
        """
        try:
            descriptor = open_file(source, os.O_RDWR)
        except OSError:
            return False
        self._descriptors.append(descriptor)
        # Locked before it has the name. The first file keeps its lock too, for those who have opened it by the name.
        with contextlib.suppress(OSError):
            if _try_lock(descriptor):
                os.fchmod(descriptor, stat.S_IMODE(os.fstat(self._descriptors[0]).st_mode))
                source.rename(self.path)
                return True
        return False

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _remove_abandoned(self) -> None:
        now = os.fstat(self._descriptors[0]).st_mtime
        for path in self._folder.glob(f"{TEMPORARY}*"):
            with contextlib.suppress(OSError):
                if now - path.lstat().st_mtime > ABANDONED_SECONDS:
                    descriptor = open_file(path, os.O_RDWR)
                    try:
                        if _try_lock(descriptor):
                            path.unlink()
                    finally:
                        os.close(descriptor)
