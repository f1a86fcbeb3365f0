"""What is found in a place of image files: the images with their labels, and what was left out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Labels = Literal["auto", "folder", "prefix", "table"]
"""Where the label of an image stands; `auto` finds it out by looking."""


@dataclass(frozen=True, kw_only=True)
class FilesRequest:
    """How image files are understood: where their labels stand, which classes are wanted, and how slices are made.

    `shown` is what messages call the place, where it is a copy.
    """

    shown: str = ""
    labels: Labels = "auto"
    classes: tuple[str, ...] = ()
    stratify: bool = True


ANY = FilesRequest()
"""All classes, with the labels where they are found."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image file of a place.

    `name` is its path below the place, with `/` between the parts. `split` is train, validation or test where the place
    itself divides its images, else train.
    """

    name: str
    label: str
    split: str = "train"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The images of a place, sorted by name; none of them has been opened yet.

    `layout` says in a few words how the labels were found. `left_out` counts other files by kind (hidden, .txt).
    `empty_classes` are folders of classes without an image. `read` gives the bytes of the image of an index; it is safe
    to call from several threads, and raises ValueError, which says why there are none.
    """

    place: str
    layout: str
    images: tuple[Image, ...]
    class_names: tuple[str, ...]
    has_splits: bool
    left_out: Mapping[str, int]
    empty_classes: tuple[str, ...]
    read: Callable[[int], bytes]
