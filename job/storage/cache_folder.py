"""The folder of this user for temporary files and mirrored data: where it is, and what in it can be trusted.

Other users of the machine can neither put files there, which a run would believe, nor keep this user from the folder
by being the first. Whatever is opened there is opened so that a named pipe does not keep the caller waiting.
"""

import os
import stat
from io import BufferedReader
from pathlib import Path

import platformdirs

from job.errors import InvalidSettings

_HINT = "point THAW_CACHE_DIR at a folder on a writable volume that keeps owners and modes, or remove what is there"
_KINDS = {
    stat.S_IFLNK: "a link", stat.S_IFREG: "a file", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip


def place(cache_dir: Path | None) -> Path:
    """Where it is: a part of `cache_dir` for this user alone; by default `thaw` in the user's own cache folder."""
    return cache_dir / f"thaw-{os.geteuid()}" if cache_dir else platformdirs.user_cache_path("thaw")


def make(cache_dir: Path | None) -> Path:
    """The folder, which is then there and open to this user alone. Raises InvalidSettings, and OSError as it comes."""
    path = place(cache_dir)
    check(cache_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        # Again: it may have come only now.
        check(cache_dir)
        # Kubernetes opens a volume with an fsGroup to that group at every mount.
        if path.stat().st_mode & 0o077:
            path.chmod(0o700)
    return path


def check(cache_dir: Path | None) -> None:
    """Raise InvalidSettings when what is under the folder's name cannot be trusted; nothing is changed."""
    path = place(cache_dir)
    if not path.is_absolute() and cache_dir is None:
        raise InvalidSettings(f"this user has no home folder: {path}", hint="set THAW_CACHE_DIR")
    try:
        problem = _problem(path.lstat())
    except OSError:
        return
    if problem:
        raise InvalidSettings(f"the folder for temporary files cannot be {path}: {problem}", hint=_HINT)


def _problem(found: os.stat_result) -> str:
    if not stat.S_ISDIR(found.st_mode):
        return f"it is {_KINDS.get(stat.S_IFMT(found.st_mode), 'no folder')}, of user {found.st_uid}"
    if not _is_own(found):
        return f"it is a folder of user {found.st_uid}, and this is user {os.geteuid()}"
    if found.st_mode & stat.S_IWOTH:
        return f"it is a folder of user {found.st_uid} that every user can write to"
    return ""


def open_own(path: Path) -> BufferedReader | None:
    """A file below the folder, to be read; None unless it is a regular file, and written by this user or root."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and _is_own(found):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    return None


def _is_own(found: os.stat_result) -> bool:
    return found.st_uid in (os.geteuid(), 0)
