"""The folder of this user for temporary files and mirrored data: where it is, and which files in it can be trusted.

Other users of the machine can neither put files there that a run would trust, nor block the folder by making it first.
"""

import contextlib
import os
import stat
from io import BufferedReader
from pathlib import Path

import platformdirs

from job.errors import InvalidSettings
from job.storage import files

_HINT = "point THAW_CACHE_DIR at a folder on a writable volume that keeps owners and modes, or remove what is there"


def place(cache_dir: Path | None) -> Path:
    """Where it is: a part of `cache_dir` for this user alone; by default `thaw` in the user's own cache folder."""
    return cache_dir / f"thaw-{os.geteuid()}" if cache_dir else platformdirs.user_cache_path("thaw")


def make(cache_dir: Path | None) -> Path:
    """Make the folder, open to this user alone. Raises InvalidSettings, and OSError of the system."""
    path = place(cache_dir)
    check(cache_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    # Again: another process may have made it just now.
    check(cache_dir)
    # Kubernetes opens a volume with an fsGroup to that group at every mount.
    if path.stat().st_mode & 0o077:
        path.chmod(0o700)
    return path


def check(cache_dir: Path | None) -> None:
    """Raise InvalidSettings when the folder, or what has its name, cannot be trusted; nothing is changed."""
    path = place(cache_dir)
    if not path.is_absolute() and cache_dir is None:
        raise InvalidSettings(f"this user has no home folder: {path}", hint="set THAW_CACHE_DIR")
    try:
        problem = _problem(path.lstat())
    except OSError:
        return
    if problem:
        raise InvalidSettings(f"the folder for temporary files cannot be {path}: {problem}", hint=_HINT)


def _problem(status: os.stat_result) -> str:
    if not stat.S_ISDIR(status.st_mode):
        return f"it is {files.kind_of(status.st_mode)}, of user {status.st_uid}"
    if not _is_own(status):
        return f"it is a folder of user {status.st_uid}, and this is user {os.geteuid()}"
    if status.st_mode & stat.S_IWOTH:
        return f"it is a folder of user {status.st_uid} that every user can write to"
    return ""


def open_own(path: Path) -> BufferedReader | None:
    """A file below the folder, opened to read; None unless it is a regular file, and owned by this user or root."""
    try:
        file = os.fdopen(files.open_file(path), "rb")
    except OSError:
        return None
    if _is_own(os.fstat(file.fileno())):
        return file
    file.close()
    return None


def _is_own(status: os.stat_result) -> bool:
    return status.st_uid in (os.geteuid(), 0)
