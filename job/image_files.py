"""Image files that a person names: one by one, by folder, or as a list on standard input.

Names are yielded one at a time, so a list without end is read as it comes. This room decodes nothing.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from job.errors import InvalidSettings

SUFFIXES = frozenset({".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".jxl", ".png", ".webp"})
"""Of the formats that `images.decode` takes. In a folder, files of other names are passed over."""

MAX_IMAGE_BYTES = 1 << 28
STANDARD_INPUT = "-"

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG")
_PIECE_BYTES = 1 << 16


@dataclass(frozen=True)
class Unreadable:
    """A path that gives no image, and why."""

    path: str
    reason: str


def find(names: Iterable[str], *, standard_input: Callable[[], BufferedReader]) -> Iterator[str | Unreadable]:
    """The paths of image files in the order of `names`; those of a folder are sorted, at any depth.

    `-` stands for the paths on standard input, which is opened for it. A file that is named is taken whatever it is
    called; what cannot be looked at is Unreadable. Raises InvalidSettings when an image comes on standard input.
    """
    for name in names:
        if name == STANDARD_INPUT:
            for line in _listed(standard_input()):
                yield from _of(line)
        else:
            yield from _of(name)


def read(path: str) -> bytes:
    """The content of a file. Raises ValueError, which says why, when it cannot be had."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    if not data:
        raise ValueError("is empty")
    if len(data) > MAX_IMAGE_BYTES:
        raise ValueError(f"is larger than {MAX_IMAGE_BYTES >> 20} MiB")
    return data


def _of(name: str) -> Iterator[str | Unreadable]:
    if not os.path.isdir(name):  # noqa: PTH112  pathlib raises where a path is too long or may not be looked at
        yield name
        return
    problems: list[OSError] = []
    num_told = 0
    for folder, subfolders, files in os.walk(name, onerror=problems.append):
        subfolders.sort()
        # A dot begins what a desktop keeps beside an image, under the image's own suffix.
        images = [file for file in files if Path(file).suffix.lower() in SUFFIXES and not file.startswith(".")]
        for file in sorted(images):
            num_told += 1
            yield os.path.join(folder, file)  # noqa: PTH118  as the name was given: ./a stays ./a
    for error in problems:
        num_told += 1
        yield Unreadable(str(error.filename), error.strerror or str(error))
    if num_told == 0:
        yield Unreadable(name, f"no image file in this folder ({' '.join(sorted(SUFFIXES))})")


def _listed(file: BufferedReader) -> Iterator[str]:
    """Paths that end with a new line, or with a zero byte where there is one in the beginning."""
    begin = file.peek(_PIECE_BYTES)
    if begin.startswith(_SIGNATURES):
        raise InvalidSettings(
            "predict: - reads paths from standard input, one a line, and an image came",
            hint="name the image's file; /dev/stdin is the name of what comes through a pipe",
        )
    if b"\0" in begin:
        yield from _ended_by_zero(file)
        return
    for line in file:
        if path := line.rstrip(b"\r\n"):
            yield os.fsdecode(path)


def _ended_by_zero(file: BufferedReader) -> Iterator[str]:
    rest = b""
    while piece := file.read1(_PIECE_BYTES):
        *paths, rest = (rest + piece).split(b"\0")
        yield from map(os.fsdecode, paths)
    if rest:
        yield os.fsdecode(rest)
