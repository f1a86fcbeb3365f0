"""The folder of an attempt for temporary files, in the user's cache folder.

A killed process cannot remove its folder. Each folder holds a lock for as long as its process lives, and the next
attempt on the same disk removes those whose lock is free. This module knows nothing of what the files contain.
"""

import contextlib
import errno
import fcntl
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from job import memory
from job.errors import InvalidSettings, ScratchUnavailable
from job.paths import nearest_existing
from job.storage import cache_folder, files

CHUNK_BYTES = 1 << 20
"""Of a read or write. Writes of 2 MiB and more took up to ten times the processor time (docs/performance.md)."""

TURN = "turn.lock"

_PREFIX = "attempt-"
_LOCK = ".alive"
_HINTS = {
    errno.ENOSPC: "free space there, or point THAW_CACHE_DIR at a larger volume; nothing is lost",
    errno.EDQUOT: "raise the quota, or point THAW_CACHE_DIR elsewhere; nothing is lost",
}


@contextlib.contextmanager
def folder(cache_dir: Path | None) -> Iterator[Path]:
    """A folder for this process alone in the user's part of `cache_dir`, or in the user's cache folder.

    It is removed afterwards, with its files. Raises InvalidSettings when it cannot be made there, ScratchUnavailable
    when the disk is full.
    """
    with _writing(cache_dir):
        parent = cache_folder.make(cache_dir)
        _sweep(parent)
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        # Locked before it has its name: a sweep never sees it free.
        lock = (path / ".new").open("wb")
        fcntl.flock(lock, fcntl.LOCK_EX)
        (path / ".new").rename(path / _LOCK)
    with lock:
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def turn(cache_dir: Path | None, *, tick: Callable[[], None]) -> Iterator[None]:
    """Inside, no other process of this user and machine has its turn; waits for that, and calls `tick` meanwhile."""
    with contextlib.ExitStack() as stack:
        # Without locks in the file system all go at once: the work is done more often than it need be, and right.
        with contextlib.suppress(OSError):
            path = cache_folder.make(cache_dir) / TURN
            stack.enter_context(files.lock(path, timeout_seconds=math.inf, tick=tick))
        yield


def check(cache_dir: Path | None) -> None:
    """Raise what `folder` would raise, and leave nothing.

    A folder that does not exist is not made: the nearest existing one above it is tried.
    """
    cache_folder.check(cache_dir)
    with _writing(cache_dir):
        tempfile.TemporaryFile(dir=nearest_existing(cache_folder.place(cache_dir))).close()


@contextlib.contextmanager
def _writing(cache_dir: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise unavailable(cache_folder.place(cache_dir), str(error.strerror), error.errno) from error
        shown = f"THAW_CACHE_DIR={str(cache_dir)!r}" if cache_dir else f"the cache folder {cache_folder.place(None)}"
        raise InvalidSettings(
            f"{shown} cannot be written: {error.strerror or error}",
            hint="point THAW_CACHE_DIR at a folder on a writable volume",
        ) from error


def _sweep(parent: Path) -> None:
    """Remove the folders of processes that have ended."""
    for path in parent.glob(f"{_PREFIX}*"):
        lock = cache_folder.open_own(path / _LOCK)
        if lock is not None:
            with contextlib.suppress(OSError), lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's errors on a temporary file into ScratchUnavailable, with a hint."""
    try:
        yield
    except OSError as error:
        if memory.is_exhausted(error):
            raise
        raise unavailable(path, os.strerror(error.errno) if error.errno else str(error), error.errno) from error


def unavailable(path: Path, reason: str, number: int | None = None) -> ScratchUnavailable:
    """The error of a temporary file that cannot be written or read back."""
    hint = _HINTS.get(number or 0, "check the volume of THAW_CACHE_DIR, and start the run again: nothing is lost")
    return ScratchUnavailable(f"the temporary file {path} cannot be used: {reason}", hint=hint)


def chunks(path: Path) -> Iterator[bytes]:
    """The content of a temporary file, in pieces of at most 1 MiB."""
    with explained(path), path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def save_json(content: Any, path: Path) -> Path:
    """Write JSON, in which every number is finite, to a temporary file. Raises ScratchUnavailable."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    return save(lambda path: path.write_text(text), path)


def save(save_to: Callable[[Path], Any], path: Path) -> Path:
    """Write a temporary file with `save_to`, which is called with its path. Raises ScratchUnavailable."""
    with explained(path):
        save_to(path)
    return path
