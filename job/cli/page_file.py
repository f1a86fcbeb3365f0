"""The file of an option `--page`: checked before there is a page, and written."""

from pathlib import Path

from job.errors import InvalidSettings


def check(path: Path) -> None:
    """Raise InvalidSettings where a file could not be written, before the work for it is done."""
    if path.is_dir() or not path.parent.is_dir():
        raise InvalidSettings(f"--page={str(path)!r}: is not a file in a folder that exists", hint="name a file")


def write(path: Path, page: bytes) -> None:
    """Raises InvalidSettings when it cannot be written."""
    try:
        path.write_bytes(page)
    except OSError as error:
        raise InvalidSettings(
            f"--page={str(path)!r}: cannot be written: {error.strerror}", hint="name a file elsewhere"
        ) from error
