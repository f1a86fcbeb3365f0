"""Names of files: what each is by its name alone, and which are hidden.

Names are relative, with `/` between their parts; one that ends with `/` is a folder.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from itertools import takewhile
from pathlib import PurePosixPath

from job.data.files.image_files import is_image

SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
"""The split that the name of a folder, or a value in a table, stands for; in capitals too."""

TABLES = (".csv", ".jsonl", ".parquet")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")

HIDDEN, NO_LABEL = "hidden", "image without a label"

_HIDDEN_NAMES = {"__macosx", "@eadir", "desktop.ini", "icon\r", "lost+found", "thumbs.db"}
_SUFFIX = re.compile(r"\.[a-z][a-z0-9]{0,9}")


def is_place(text: str) -> bool:
    """Whether THAW_DATASET names a place of images, by how it begins or ends, and not a data set of TFDS."""
    begins = text.startswith(("/", "./", "../", "~")) or "://" in text
    return begins or text in (".", "..") or is_archive(text) or is_table(text)


def is_table(name: str) -> bool:
    """Whether a file is a table by its name."""
    return name.lower().endswith(TABLES)


def is_archive(name: str) -> bool:
    """Whether a file is an archive by its name."""
    return name.lower().endswith(ARCHIVES)


def normal(text: str) -> str:
    """A label as it is compared and shown: the same letters may have two forms, of which macOS likes the other one."""
    return unicodedata.normalize("NFC", text)


def is_hidden(name: str) -> bool:
    """Whether a part of a name is one that a desktop, a file system or a person keeps out of sight."""
    return any(map(_hides, name.split("/")))


def _hides(part: str) -> bool:
    return part.casefold() in _HIDDEN_NAMES or (part.startswith(".") and part not in (".", ".."))


def visible(names: Iterable[str]) -> list[str]:
    """The names without hidden ones, sorted; of a hidden file remains the folder that it is in."""
    found = set()
    for name in names:
        shown = "".join(f"{part}/" for part in takewhile(lambda part: not _hides(part), name.split("/")))
        found.add(shown if is_hidden(name) else name)
    return sorted(found - {""})


def left_out(names: Iterable[str], used: Collection[str], image: str = NO_LABEL) -> Counter[str]:
    """The number of files that are not used, by kind: hidden, by suffix, other, or `image` for an image."""
    return Counter(
        HIDDEN if is_hidden(name) else image if is_image(name) else _suffix(name)
        for name in names
        if name not in used and (is_hidden(name) or not name.endswith("/"))
    )


def _suffix(name: str) -> str:
    """A usual suffix; what is written after a dot may also be a number, or a sentence."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix if _SUFFIX.fullmatch(suffix) else "other"
