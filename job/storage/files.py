"""Files in a folder that other processes write to: opened without following a link or waiting for a FIFO, and locked.

The locks are those of `flock`: they belong to an open file, so they end with the process that holds them, however it
ends. This module knows nothing of objects.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

WAITING_AFTER_SECONDS = 1.0
POLL_SECONDS = 0.01
TEMPORARY = ".tmp-"
ABANDONED_SECONDS = 3600


def _nothing() -> None:
    pass


_KINDS = {
    stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip


class NotAFile(OSError):
    """A path does not lead to a regular file; the text says what is there."""


def kind_of(mode: int) -> str:
    """What is at a path, by the mode of its status: `a folder`."""
    return _KINDS.get(stat.S_IFMT(mode), "something else")


def open_file(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file. Raises NotAFile for anything else, without waiting for it, and OSError."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError:
        # A socket, a link, a folder opened to write: each has an error of its own.
        if os.path.lexists(path):
            _check_kind(path, path.lstat())
        raise
    try:
        _check_kind(path, os.fstat(descriptor))
    except NotAFile:
        os.close(descriptor)
        raise
    return descriptor


def modified_ns(path: Path) -> int:
    """The modification time of a regular file in nanoseconds. Raises NotAFile, OSError."""
    return _check_kind(path, path.lstat()).st_mtime_ns


def _check_kind(path: Path, status: os.stat_result) -> os.stat_result:
    if not stat.S_ISREG(status.st_mode):
        raise NotAFile(f"{path} is {kind_of(status.st_mode)}, expected a file")
    return status


def regular_files(folder: Path) -> Iterator[Path]:
    """Every regular file under a folder, at any depth; links are not followed. Raises OSError."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                # Another process may remove the folder now.
                with contextlib.suppress(FileNotFoundError):
                    yield from regular_files(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                yield Path(entry.path)


def lock(
    path: Path,
    *,
    timeout_seconds: float,
    on_waiting: Callable[[], None] = _nothing,
    tick: Callable[[], None] = _nothing,
) -> BinaryIO:
    """An open file that holds the lock of a path until it is closed; it is made if there is none.

    `on_waiting` is called once when that takes more than a second, `tick` at every look; it may raise to leave. Raises
    TimeoutError when another process still holds it after `timeout_seconds`, NotAFile, and OSError, with ENOLCK or
    EOPNOTSUPP on a file system that has no locks.
    """
    with contextlib.ExitStack() as on_error:
        file = on_error.enter_context(os.fdopen(open_file(path, os.O_RDWR | os.O_CREAT), "rb"))
        began, is_reported = time.monotonic(), False
        while not _try_lock(file.fileno()):
            waited = time.monotonic() - began
            if waited >= timeout_seconds:
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), str(path))
            if waited >= WAITING_AFTER_SECONDS and not is_reported:
                on_waiting()
                is_reported = True
            tick()
            time.sleep(min(POLL_SECONDS, timeout_seconds - waited))
        on_error.pop_all()
        return file


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True)
class TemporaryFile:
    """A file beside the one that it will replace; see `temporary_file`."""

    path: Path
    _descriptor: int
    _open: contextlib.ExitStack

    def take_over(self, source: Path) -> bool:
        """Give a file of the same disk this one's name, its permissions and a lock; return whether that was possible.

        To another disk a file cannot be moved, only copied.
        """
        # Locked before it has the name. The first file stays locked: another process may have opened it by the name.
        with contextlib.suppress(OSError):
            descriptor = open_file(source, os.O_RDWR)
            self._open.callback(os.close, descriptor)
            if _try_lock(descriptor):
                os.fchmod(descriptor, stat.S_IMODE(os.fstat(self._descriptor).st_mode))
                source.rename(self.path)
                return True
        return False


@contextlib.contextmanager
def temporary_file(folder: Path) -> Iterator[TemporaryFile]:
    """An empty file, locked while it is written; what has its name at the end is removed.

    The temporary files of killed processes are removed from the folder: those whose lock is free, and that are an hour
    older than this one by the times of the file system. The hour is for file systems that several hosts mount without
    sharing locks (NFS with `nolock` or `local_lock`): there a lock always looks free.
    """
    with contextlib.ExitStack() as opened:
        while True:
            path = folder / f"{TEMPORARY}{secrets.token_hex(8)}"
            descriptor = open_file(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            opened.callback(os.close, descriptor)
            opened.callback(_remove, path)
            # Another process may have removed it as abandoned before it was locked.
            if _try_lock(descriptor) and os.fstat(descriptor).st_nlink:
                break
        now = os.fstat(descriptor).st_mtime
        for other in folder.glob(f"{TEMPORARY}*"):
            with contextlib.suppress(OSError):
                if now - other.lstat().st_mtime > ABANDONED_SECONDS:
                    with os.fdopen(open_file(other, os.O_RDWR), "rb") as file:
                        if _try_lock(file.fileno()):
                            other.unlink()
        yield TemporaryFile(path, descriptor, opened)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
