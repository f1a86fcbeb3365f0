"""What the names of the files of a place say: which are images, their labels and splits, and what was left out.

The reading is chosen by looking, and when two are possible, the error names both and the setting that decides. Names
are relative, with `/` between their parts; one that ends with `/` is a folder. This module opens no file.
"""

import bisect
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from job.data.files.image_files import SUFFIXES, is_image
from job.data.files.listing import Image, Labels
from job.data.files.names import SPLITS, TABLES, is_archive, is_table, normal, visible
from job.errors import DataUnavailable, InputError, InvalidSettings
from job.wording import some

FOLDER, PREFIX = "a folder for each class", "the class before the first dot of a name, as in cat.0.jpg"
# What cannot be anything else than a class and a number: with other dots, a name may hold a date or a time.
_CERTAIN_PREFIX = re.compile(r"[^\W\d_][^.]*\.\d+\.[^.]+")
_LIKE_A_SPLIT = re.compile(r"(train|valid|val|test|eval)(ing|ation|uation)?[ _-]?(set|data|images?|\d+)?")


@dataclass(frozen=True)
class Layout:
    """A reading of the names of a place.

    `tables` are the names of the tables that have the labels, with the split of each; then there are no images here.
    """

    description: str
    images: tuple[Image, ...] = ()
    tables: Mapping[str, str] | None = None
    empty_classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Level:
    """A folder: the files directly in it, and all files below each of its folders, whose names have no slash."""

    path: str
    files: Sequence[str]
    folders: Mapping[str, Sequence[str]]

    @property
    def images(self) -> list[str]:
        return [name for name in self.files if is_image(name)]

    def filled(self) -> dict[str, list[str]]:
        """The images below each folder that has one."""
        found = {folder: [name for name in names if is_image(name)] for folder, names in self.folders.items()}
        return {folder: images for folder, images in found.items() if images}


def worth_fetching(names: Iterable[str]) -> list[str]:
    """Of the names in a bucket, those to fetch, sorted: images and tables; where there are no images, their archive."""
    files = [name for name in visible(names) if not name.endswith("/")]
    found = [name for name in files if is_image(name) or is_table(name)]
    archive = None if any(map(is_image, found)) else inner_archive("the bucket", files)
    return sorted([*found, archive] if archive else found)


def inner_archive(place: str, names: Iterable[str]) -> str | None:
    """The archive with the labelled images of a place that has none itself: train.zip, or the only one.

    Raises InvalidSettings when it could be one of several.
    """
    archives = [name for name in names if is_archive(name)]
    train = [name for name in archives if PurePosixPath(name).name.lower().partition(".")[0] == "train"]
    found = train or archives
    if len(found) > 1:
        raise InvalidSettings(
            f"{place} has no images, and {len(found)} archives: {some(found)}",
            hint="name one of them with THAW_DATASET",
        )
    return found[0] if found else None


def tables(names: Iterable[str]) -> list[str]:
    """The tables that may have the labels: those at the top, or where the folders of classes or splits would be."""
    names = visible(names)
    levels = _levels(names, is_passed=lambda _: True)
    splits = [_level(names, f"{level.path}{folder}/") for level in levels for folder in _split_folders(level)]
    return [name for level in (*levels, *splits) for name in level.files if is_table(name)]


def read(place: str, names: Iterable[str], *, labels: Labels, labelled_tables: Collection[str] = ()) -> Layout:
    """The reading of the names of a place; `labelled_tables` are those of `tables` that have paths and labels.

    Raises InvalidSettings when two readings are possible, or the one that is asked for is not, DataUnavailable when
    there is no image, InputError when no image has a label.
    """
    names = visible(names)
    if not any(map(is_image, names)):
        raise DataUnavailable(
            f"there is no image file in {place}",
            hint=f"expected files with one of the suffixes {' '.join(sorted(SUFFIXES))}; links to folders are not "
            "followed",
        )
    levels = _levels(names, is_passed=lambda level: any(name in labelled_tables for name in level.files))
    if labels == "table":
        return _asked_for(labels, place, _by_tables(place, levels, names, labelled_tables))
    sections = _sections(place, levels[-1], names, labels)
    if labels == "prefix":
        return _asked_for(labels, place, _by_prefix(sections, is_certain=False))
    by_folder = _by_folder(sections)
    if labels == "folder":
        return _asked_for(labels, place, by_folder)

    by_table = _by_tables(place, levels, names, labelled_tables)
    classes = {image.label for image in by_folder.images} if by_folder else set()
    like_splits = sorted(filter(_is_like_a_split, classes))
    # The images of a table may all lie in one folder, or in those of splits.
    if like_splits or (by_table and len(classes) == 1):
        by_folder = None
    readings = {"table": by_table, "prefix": _by_prefix(sections, is_certain=True), "folder": by_folder}
    found = {name: layout for name, layout in readings.items() if layout}
    if not found and like_splits:
        raise InvalidSettings(
            f"two readings of {place} are possible: {some(like_splits)} can be a class, or a split",
            hint="THAW_LABELS=folder takes every folder for a class, and THAW_CLASSES chooses among them; splits are "
            "folders train, validation and test with a folder for each class in them",
        )
    if not found:
        raise _unlabelled(place, names)
    if len(found) > 1:
        raise InvalidSettings(
            f"two readings of {place} are possible: {' or '.join(layout.description for layout in found.values())}",
            hint=f"set THAW_LABELS={' or THAW_LABELS='.join(found)}",
        )
    return next(iter(found.values()))


def by_tables(tables: Mapping[str, str]) -> Layout:
    """The reading that leaves labels to tables, given as names with the split of each."""
    return Layout(f"the table {' and '.join(tables)}", tables=tables)


def _level(names: Sequence[str], path: str) -> _Level:
    """A folder of sorted names. Those below it follow each other, so that all levels together take one look at each."""
    files: list[str] = []
    folders: dict[str, list[str]] = {}
    for index in range(bisect.bisect_left(names, path), len(names)):
        if not (name := names[index]).startswith(path):
            break
        if name != path:
            first, slash, _ = name[len(path) :].partition("/")
            if not slash:
                files.append(name)
            else:
                below = folders.setdefault(first, [])
                if not name.endswith("/"):
                    below.append(name)
    return _Level(path, files, folders)


def _levels(names: Sequence[str], *, is_passed: Callable[[_Level], bool]) -> list[_Level]:
    """The top, and each single folder below it that only holds the folders, or the images, with the labels."""
    levels = [_level(names, "")]
    while True:
        level, filled = levels[-1], list(levels[-1].filled())
        # An empty folder beside it would be a class without images, and then it is a class itself.
        if level.images or len(filled) != 1 or not all(level.folders.values()):
            return levels
        inner = _level(names, f"{level.path}{filled[0]}/")
        if inner.images and len(_certain_prefixes(inner.images)) < 2 and not is_passed(inner):
            return levels
        levels.append(inner)


def _split_folders(level: _Level) -> dict[str, str]:
    return {folder: SPLITS[folder.casefold()] for folder in level.folders if folder.casefold() in SPLITS}


def _is_like_a_split(folder: str) -> bool:
    return _LIKE_A_SPLIT.fullmatch(folder.casefold()) is not None


def _sections(place: str, level: _Level, names: Sequence[str], labels: Labels) -> list[tuple[str, _Level]]:
    """The parts of a place that are divided into classes, with their splits. Raises InvalidSettings."""
    parts = {folder: _level(names, f"{level.path}{folder}/") for folder in level.filled()}

    def is_labelled(part: _Level) -> bool:
        by_prefix = labels == "auto" and _certain_prefixes(part.images)
        return bool(part.filled() or by_prefix or (labels == "prefix" and any(map(_prefix, part.images))))

    splits = {folder: split for folder, split in _split_folders(level).items() if folder in parts}
    if not any(is_labelled(parts[folder]) for folder in splits):
        return [("train", level)]
    # Kaggle's test1/ has no labels, and is neither.
    others = [
        folder
        for folder, part in parts.items()
        if folder not in splits and (is_labelled(part) or not _is_like_a_split(folder))
    ]
    if others:
        raise InvalidSettings(
            f"two readings of {place} are possible: {some(list(splits))} look like splits, and beside them "
            f"{some(others)} like classes",
            hint="name one of the folders with THAW_DATASET, or move those away that do not belong to the data",
        )
    return [(split, parts[folder]) for folder, split in splits.items()]


def _by_folder(sections: Sequence[tuple[str, _Level]]) -> Layout | None:
    images = [
        Image(name, normal(folder), split)
        for split, level in sections
        for folder, names in level.filled().items()
        for name in names
    ]
    empty = {normal(folder) for _, level in sections for folder in level.folders} - {image.label for image in images}
    description = FOLDER if len(sections) == 1 else "a folder for each split, with one for each class in it"
    return Layout(description, tuple(images), empty_classes=tuple(sorted(empty))) if images else None


def _by_prefix(sections: Sequence[tuple[str, _Level]], *, is_certain: bool) -> Layout | None:
    images = []
    for split, level in sections:
        names = level.images
        if not is_certain:
            names = names + [name for below in level.filled().values() for name in below]
        elif not _certain_prefixes(names):
            continue
        images += [Image(name, prefix, split) for name in names if (prefix := _prefix(name))]
    num_classes = len({image.label for image in images})
    return Layout(PREFIX, tuple(images)) if num_classes >= (2 if is_certain else 1) else None


def _prefix(name: str) -> str | None:
    """What stands before the first dot of the name of a file, if the suffix is not all that follows."""
    label, *rest = name.rpartition("/")[2].split(".")
    return normal(label) if label and len(rest) > 1 else None


def _certain_prefixes(images: Sequence[str]) -> set[str | None]:
    """The classes that all names agree to have, as in cat.0.jpg; none if one does not."""
    is_certain = all(_CERTAIN_PREFIX.fullmatch(name.rpartition("/")[2]) for name in images)
    return {_prefix(name) for name in images} if is_certain else set()


def _by_tables(
    place: str, levels: Sequence[_Level], names: Sequence[str], labelled_tables: Collection[str]
) -> Layout | None:
    ways = [{name: "train"} for level in levels for name in level.files if name in labelled_tables]
    in_splits = [
        {name: split for name in _level(names, f"{levels[-1].path}{folder}/").files if name in labelled_tables}
        for folder, split in _split_folders(levels[-1]).items()
    ]
    if all(len(found) < 2 for found in in_splits):
        ways.append({name: split for found in in_splits for name, split in found.items()})
    else:
        ways += in_splits
    ways = list(filter(None, ways))
    if len(ways) > 1:
        raise InvalidSettings(
            f"{place} has several tables of images and labels: {some([name for way in ways for name in way])}",
            hint="name one of them with THAW_DATASET",
        )
    return by_tables(ways[0]) if ways else None


def _asked_for(labels: Labels, place: str, layout: Layout | None) -> Layout:
    """The reading that THAW_LABELS names. Raises InvalidSettings when it is not possible."""
    if layout is not None:
        return layout
    expected = {
        "folder": "no folder with images, which would be a class",
        "prefix": "no image whose name has a class before its first dot, as cat.0.jpg has",
        "table": f"no table ({' '.join(TABLES)}) with columns such as path and label at its top",
    }
    raise InvalidSettings(f"THAW_LABELS={labels!r}: {place} has {expected[labels]}")


def _unlabelled(place: str, names: Sequence[str]) -> InputError:
    images = [name for name in names if is_image(name)]
    return InputError(
        f"no image in {place} has a label: there are {len(images):,}, such as {some(images)}, and no folder of a class"
        + (f", and {some(others)} without columns of paths and labels" if (others := tables(names)) else ""),
        hint="put the images of each class into a folder of its name, or add a table (.csv) with columns path and "
        "label; if the class stands before the first dot of each name, set THAW_LABELS=prefix",
    )
