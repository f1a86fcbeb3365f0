"""The file of an option `--page`: checked before there is a page, and written."""

import secrets
from pathlib import Path

from job.errors import InvalidSettings


def check(path: Path | None) -> None:
    """Raise InvalidSettings where a page is asked for and could not be written, before the work for it is done."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise InvalidSettings(f"--page={str(path)!r}: is not a file in a folder that exists", hint="name a file")


def write(path: Path, page: str) -> None:
    """A file that is there is replaced as a whole, or stays. Raises InvalidSettings when it cannot be written."""
    # The name of a file or a run, which the page shows, may be no text at all.
    data = page.encode("utf-8", "backslashreplace")
    try:
        target = path.resolve()
        if target.exists() and not target.is_file():
            # A pipe or a device, as /dev/stdout.
            target.write_bytes(data)
            return
        temporary = target.with_name(f".thaw-page-{secrets.token_hex(8)}")
        try:
            with temporary.open("xb") as file:
                file.write(data)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InvalidSettings(
            f"--page={str(path)!r}: cannot be written: {error.strerror}", hint="name a file elsewhere"
        ) from error
