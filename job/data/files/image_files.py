"""Image files that a person names: one by one, by folder, in a bucket, or as a list on standard input.

Names are yielded one at a time, so a list without end is read as it comes. This module decodes nothing.
"""

import functools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from urllib.parse import unquote

from job.data.formats import EMPTY
from job.errors import InvalidSettings, ObjectDamaged, ObjectMissing
from job.storage import ObjectStore, open_store

SUFFIXES = frozenset(
    {".apng", ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
)
"""Of the formats that `pixels.decode` reads. Other files in a folder are passed over, but for those below."""

OTHER_SUFFIXES = frozenset(
    {".arw", ".cr2", ".cr3", ".dng", ".heic", ".heif", ".hif", ".jp2", ".jxl", ".nef", ".orf", ".psd", ".raf", ".rw2"}
)
"""Of images that it does not read: each is reported, so that none is left out in silence."""

MAX_IMAGE_BYTES = 1 << 28
STANDARD_INPUT = "-"

_ALL_SUFFIXES = SUFFIXES | OTHER_SUFFIXES
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG")
_PIECE_BYTES = 1 << 16

_store = functools.cache(open_store)
"""Each bucket is opened once: it may ask for credentials."""


@dataclass(frozen=True)
class Unreadable:
    """A path that gives no image, and why."""

    path: str
    reason: str


def find(
    names: Iterable[str], *, standard_input: Callable[[], BufferedReader], passed_over: Callable[[str], None]
) -> Iterator[str | Unreadable]:
    """The paths and URIs of image files in the order of `names`; those of a folder are sorted, at any depth.

    `-` stands for the paths on standard input, which is opened for it. A file that is named is taken whatever it is
    called; what cannot be looked at is Unreadable. `passed_over` gets links to folders, which are not followed: they
    may lead back, or out. Raises InvalidSettings when an image comes on standard input, or a URI has no store,
    StorageError when a bucket cannot be asked.
    """
    for name in names:
        if name == STANDARD_INPUT:
            for line in _paths_in(standard_input()):
                yield from _of(line, passed_over)
        else:
            yield from _of(name, passed_over)


def read(path: str, folder: Path) -> bytes:
    """The content of a file, or of an object by way of `folder`. Raises ValueError, which says why it cannot be had.

    Raises StorageError when a bucket cannot be asked.
    """
    if "://" not in path:
        return content(Path(path))
    store, name = _object(path)
    try:
        return content_of_object(store, name, folder)
    except (ObjectMissing, ObjectDamaged) as error:
        raise ValueError(error.message) from error


def content_of_object(store: ObjectStore, name: str, folder: Path) -> bytes:
    """The content of an object by way of `folder`. Raises ValueError, which says why it is not read, StorageError."""
    # An object has any size: it is copied to the disk, and read no further than an image goes.
    with tempfile.NamedTemporaryFile(dir=folder) as copy:
        store.download(name, Path(copy.name))
        return content(Path(copy.name))


def content(path: Path) -> bytes:
    """The content of a local file. Raises ValueError, which says why it cannot be had."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    check_size(len(data))
    return data


def check_size(num_bytes: int) -> None:
    """Raise ValueError for a file that is empty, or larger than an image can be."""
    if not num_bytes:
        raise ValueError(EMPTY)
    if num_bytes > MAX_IMAGE_BYTES:
        raise ValueError(f"is larger than {MAX_IMAGE_BYTES >> 20} MiB")


def is_image(name: str) -> bool:
    """Whether a file is an image by its name, of a format that is read or of another."""
    return os.path.splitext(name)[1].lower() in _ALL_SUFFIXES  # noqa: PTH122  pathlib takes five times as long


def _of(name: str, passed_over: Callable[[str], None]) -> Iterator[str | Unreadable]:
    if name.startswith("file://"):
        name = unquote(name.removeprefix("file://"))
    if "://" in name:
        found = _in_bucket(name)
    elif os.path.isdir(name):  # noqa: PTH112  pathlib raises where a path is too long or may not be looked at
        found = _in_folder(name, passed_over)
    else:
        yield name
        return
    yield next(found, Unreadable(name, f"no image file in this folder ({' '.join(sorted(SUFFIXES))})"))
    yield from found


def _in_folder(name: str, passed_over: Callable[[str], None]) -> Iterator[str | Unreadable]:
    problems: list[OSError] = []
    for folder, subfolders, files in os.walk(name, onerror=problems.append):
        subfolders.sort()
        # As the name was given: ./a stays ./a.
        for linked in (os.path.join(folder, subfolder) for subfolder in subfolders):  # noqa: PTH118
            if os.path.islink(linked):  # noqa: PTH114
                passed_over(linked)
        for path in (os.path.join(folder, file) for file in sorted(files)):  # noqa: PTH118
            yield from _taken(path, is_file=os.path.isfile)
    for error in problems:
        yield Unreadable(str(error.filename), error.strerror or str(error))


def _in_bucket(uri: str) -> Iterator[str | Unreadable]:
    """The images under a URI; the object itself when its name is an image's, or there is nothing under it."""
    if Path(uri).suffix.lower() in SUFFIXES:
        yield uri
        return
    store, name = _object(uri)
    prefix = f"{name.rstrip('/')}/" if name else ""
    objects = store.list(prefix)
    if not objects and name and not name.endswith("/"):
        yield uri
    for found in objects:
        yield from _taken(f"{store.uri}/{found}", is_file=lambda _: True)


def _taken(path: str, *, is_file: Callable[[str], bool]) -> Iterator[str | Unreadable]:
    """A file of a folder, if it is an image by its name."""
    name, suffix = Path(path).name, Path(path).suffix.lower()
    # A dot begins what a desktop keeps beside an image, under the image's own suffix.
    if name.startswith(".") or not is_image(name):
        return
    if suffix in OTHER_SUFFIXES:
        yield Unreadable(path, f"{suffix[1:].upper()} is not read: convert it to JPEG or PNG")
    else:
        # A pipe would be waited for; a broken link leads nowhere.
        yield path if is_file(path) else Unreadable(path, "is not a file, or a link to none")


def _object(uri: str) -> tuple[ObjectStore, str]:
    """The bucket of a URI, and the name in it, which may hold any character."""
    scheme, _, rest = uri.partition("://")
    bucket, _, name = rest.partition("/")
    return _store(f"{scheme}://{bucket}"), name


def _paths_in(file: BufferedReader) -> Iterator[str]:
    """Paths that end with a new line, or with a zero byte where there is one in the beginning."""
    begin = file.peek(_PIECE_BYTES)
    if begin.startswith(_SIGNATURES):
        raise InvalidSettings(
            "predict: - reads paths from standard input, one a line, and an image came",
            hint="name the image's file; /dev/stdin is the name of what comes through a pipe",
        )
    end, ignored = (b"\0", b"") if b"\0" in begin else (b"\n", b"\r")
    rest = b""
    while piece := file.read1(_PIECE_BYTES):
        *paths, rest = (rest + piece).split(end)
        yield from (os.fsdecode(path) for path in (path.rstrip(ignored) for path in paths) if path)
    if path := rest.rstrip(ignored):
        yield os.fsdecode(path)
