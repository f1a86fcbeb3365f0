"""Names from outside -> paths inside a folder, or an error; and `~` -> a home folder, or an error.

Every name that somebody else chose (an object in a listing, an entry of a manifest or of `run.json`, a data set, a
member of an archive) passes through here before it becomes part of a path. `checked_name` judges the text alone;
`inside` also looks at the disk, where a link could lead out of the folder.
"""

import unicodedata
from collections.abc import Iterable
from pathlib import Path

MAX_PART_BYTES = 240
"""Of a name between two slashes. A file system takes 255, and the note of a copy has a longer name."""


class UnsafeName(ValueError):
    """A name that would leave its folder, or that is not a name."""


def is_one_line(text: str) -> bool:
    """Whether every character can be shown, and none moves the cursor; any kind of space is one of these."""
    return all(_is_shown(char) for char in text)


def escaped(text: str) -> str:
    """The same text, in which what `is_one_line` finds wrong is an escape, such as \\x1b."""
    return "".join(char if _is_shown(char) else char.encode("unicode_escape").decode() for char in text)


def _is_shown(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == "Zs"


def checked_name(name: str) -> str:
    """The same relative name, of one part or several with `/` between them. Raises UnsafeName.

    No part may be empty, `.` or `..`, so the name is relative and has no slash at its end; nothing may be a control
    character, so that it can be shown in one line.
    """
    if not is_one_line(name):
        raise UnsafeName(f"{name!r} is not a safe name: it has a character that cannot be printed")
    for part in name.split("/"):
        if part in ("", ".", ".."):
            raise UnsafeName(f"{name!r} is not a safe name: it has the part {part!r}")
    return name


def check_names(names: Iterable[str]) -> None:
    """Raise UnsafeName unless all names can be those of files in one folder, each as it is."""
    files = {checked_name(name) for name in names}
    for name in files:
        if any(len(part.encode()) > MAX_PART_BYTES for part in name.split("/")):
            raise UnsafeName(f"{name!r} is not the name of a file: a part of it is longer than {MAX_PART_BYTES} bytes")
        at = name.find("/")
        while at > 0:
            if name[:at] in files:
                raise UnsafeName(f"{name!r} is not the name of a file: {name[:at]!r} is one, and cannot be a folder")
            at = name.find("/", at + 1)


def expanded(path: str | Path) -> Path:
    """The path with the home folder in place of `~`. Raises ValueError when that is not known."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"the home folder {Path(path).parts[0]} is not known") from None


def nearest_existing(path: Path) -> Path:
    """The path, or the nearest one above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def inside(folder: Path, name: str) -> Path:
    """The path of a name inside a folder. Raises UnsafeName, also when a link on the way leads out of the folder.

    The file itself need not exist.
    """
    path = folder / checked_name(name)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UnsafeName(f"{name!r} is not a safe name: a link leads out of {folder}")
    return path
