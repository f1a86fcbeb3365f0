"""A place of image files on this machine, a folder, an archive or a table -> the images in it, with their labels.

Nothing is unpacked under a name that somebody else chose, and no image is opened before it is read. This module knows
no TensorFlow.
"""

import difflib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from job.data.files import archives, image_files, layout, names, table
from job.data.files.layout import Layout
from job.data.files.listing import ANY, FilesRequest, Listing
from job.errors import DataUnavailable, InputError, InvalidSettings
from job.paths import UnsafeName, checked_name
from job.storage.uri import local_folder
from job.wording import some


def open_place(place: str, request: FilesRequest = ANY, *, scratch: Path) -> Listing:
    """The images of a local place: of a folder, an archive, or a table beside its images.

    The `classes` of the request select and order the classes; without them they are all, sorted. What has to be copied
    out of an archive goes to `scratch`, which must outlive the listing. Raises DataUnavailable when there are no
    images, DataCorrupt for a damaged archive, InputError for names and tables that cannot be used, InvalidSettings when
    two readings are possible or a class is not there, ScratchUnavailable.
    """
    try:
        path = local_folder(place)
    except ValueError as error:
        raise InvalidSettings(f"THAW_DATASET={place!r}: {error}") from error
    place = request.shown or place
    try:
        is_there = path is not None and path.exists()
    except OSError as error:
        raise DataUnavailable(f"THAW_DATASET={place!r} cannot be read: {error.strerror}") from error
    if path is None or not is_there:
        raise DataUnavailable(
            f"THAW_DATASET={place!r}: there is no such folder or file", hint="name a folder, an archive or a table"
        )
    if path.is_file() and names.is_table(path.name):
        if request.labels not in ("auto", "table"):
            raise InvalidSettings(
                f"THAW_LABELS={request.labels!r}, and THAW_DATASET={place!r} is a table, which has the labels itself",
                hint="leave THAW_LABELS out, or name the folder with the images",
            )
        return _listing(place, Folder(path.parent), layout.by_tables({path.name: "train"}), request)
    files = Folder(path) if path.is_dir() else archives.open_archive(path, place, scratch)
    found = names.visible(files.names)
    inner = None if any(map(image_files.is_image, found)) else layout.inner_archive(place, found)
    if inner is None:
        return listing_of(place, files, request)
    archive = archives.open_archive(files.file(inner, scratch), f"{place}/{inner}", scratch)
    listing = listing_of(f"{place}/{inner}", archive, request)
    left_out = files.left_out + names.left_out(files.names, {inner}) + Counter(listing.left_out)
    images = tuple(replace(image, name=f"{inner}/{image.name}") for image in listing.images)
    return replace(listing, place=place, images=images, left_out=dict(left_out))


class Files(Protocol):
    """The files of a place by name. A name that ends with `/` is a folder; `left_out` counts what has no name here."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def left_out(self) -> Counter[str]: ...

    def read(self, name: str) -> bytes:
        """The content of a file that is no larger than an image. Raises ValueError. Safe to call from threads."""


class Folder:
    """The files in a folder, at any depth; links to folders are not followed, as they may lead back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.names: list[str] = []
        self.left_out: Counter[str] = Counter()
        pending = [""]
        while pending:
            above = pending.pop()
            try:
                with os.scandir(path / above) as entries:
                    for entry in entries:
                        name = f"{above}{entry.name}"
                        if entry.is_dir(follow_symlinks=False):
                            self.names.append(f"{name}/")
                            if not names.is_hidden(entry.name):
                                pending.append(f"{name}/")
                        # One that leads to itself is a file that cannot be read.
                        elif entry.is_symlink() and os.path.isdir(entry):  # noqa: PTH112
                            self.left_out["link to a folder"] += 1
                        else:
                            self.names.append(name)
            except OSError as error:
                raise DataUnavailable(f"{path / above} cannot be read: {error.strerror or error}") from error

    def read(self, name: str) -> bytes:
        path = self._path / name
        # A pipe would be waited for.
        if not os.path.isfile(path):  # noqa: PTH113  pathlib raises where it may not look
            raise ValueError("is not a file, or a link to none")
        return image_files.content(path)

    def file(self, name: str, _: Path) -> Path:
        """The file itself; one in an archive is a copy in the folder that is given here."""
        return self._path / name


def listing_of(place: str, files: Files, request: FilesRequest) -> Listing:
    """The images of a folder or an archive that has these files; arguments and errors are those of `open_place`."""
    labelled = [name for name in layout.tables(files.names) if table.is_labelled(name, files.read)]
    found = layout.read(place, files.names, labels=request.labels, labelled_tables=labelled)
    return _listing(place, files, found, request)


def _listing(place: str, files: Files, found: Layout, request: FilesRequest) -> Listing:
    images, unlabelled = found.images, names.NO_LABEL
    if found.tables is not None:
        images = table.images(found.tables, files.names, files.read)
        unlabelled = "image not in the table"
    images = tuple(sorted(images, key=lambda image: image.name))
    _check_names(place, [*(image.name for image in images), *found.empty_classes])
    used = {image.name for image in images} | set(found.tables or ())
    counts = files.left_out + names.left_out(files.names, used, unlabelled)
    class_names = tuple(sorted({image.label for image in images}))
    if request.classes:
        class_names = _selected(place, request.classes, class_names)
        selected = set(class_names)
        chosen = tuple(image for image in images if image.label in selected)
        if len(chosen) < len(images):
            counts["image of another class"] += len(images) - len(chosen)
        images = chosen
    members = [image.name for image in images]
    return Listing(
        place=place,
        layout=found.description,
        images=images,
        class_names=class_names,
        has_splits={image.split for image in images} != {"train"},
        left_out=dict(counts),
        empty_classes=found.empty_classes,
        read=lambda index: files.read(members[index]),
    )


def _check_names(place: str, names: Iterable[str]) -> None:
    for name in names:
        try:
            checked_name(name)
        except UnsafeName as error:
            raise InputError(f"{place}: {error}", hint="rename it: reports and messages have the names") from error


def _selected(place: str, classes: Sequence[str], found: Sequence[str]) -> tuple[str, ...]:
    """The classes of THAW_CLASSES. Raises InvalidSettings, with the nearest names, for one that has no image."""
    selected = tuple(dict.fromkeys(map(names.normal, classes)))
    unknown = [name for name in selected if name not in found]
    if unknown:
        folded = {name.casefold(): name for name in found}
        nearest = {
            folded[match] for name in unknown for match in difflib.get_close_matches(name.casefold(), folded, n=1)
        }
        meant = f"did you mean {some(sorted(nearest))}? " if nearest else ""
        raise InvalidSettings(
            f"THAW_CLASSES: {place} has no images of {some(unknown)}",
            hint=f"{meant}the classes are {some(found)}",
        )
    return selected
