"""The events of the data: what is wrong with the images of a run, and files that are copied to a mirror or from one."""

from collections.abc import Mapping, Sequence

from job.observe.events import Event


class ClassMissing(Event, name="class_missing", level="warning"):
    """A split has no example of some classes."""

    split: str
    num_classes: int
    classes: list[str]


class ClassRare(Event, name="class_rare", level="warning"):
    """Some classes have few training examples: their results mean little."""

    fewer_than: int
    num_classes: int
    classes: list[str]


class Duplicates(Event, name="duplicates", level="warning"):
    """The same image is in two splits: how many examples of the second split are in the first one too."""

    train_validation: int
    train_test: int
    validation_test: int
    images: Sequence[str] = ()


class ImagesSkipped(Event, name="images_skipped", level="warning"):
    """Images cannot be read and were left out, as THAW_ON_UNREADABLE says: how many of each kind, and the first."""

    num_images: int
    kinds: Mapping[str, int]
    images: Sequence[str]


class ImagesUnused(Event, name="images_unused", level="warning"):
    """So many own images are in none of the three splits."""

    num_images: int


class Fetching(Event, name="fetching"):
    """Files are being copied from a mirror."""

    place: str
    num_left: int
    num_files: int
    bytes: int


class Fetched(Event, name="fetched"):
    """The files of a mirror are on this disk; the numbers are of those that were not there before."""

    place: str
    num_files: int
    bytes: int
    seconds: float


class Mirrored(Event, name="mirrored"):
    """A file is in the mirror."""

    file: str
    number: int
    num_files: int
    bytes: int


class MirrorFilled(Event, name="mirror_filled"):
    """All files are in the mirror; `bytes_sent` leaves out those that were there before."""

    place: str
    bytes_sent: int
    seconds: float


class MirrorSettings(Event, name="mirror_settings"):
    """The settings with which a run reads from the mirror."""

    THAW_DATASET: str | None = None
    THAW_DATA_DIR: str | None = None
    THAW_WEIGHTS: str | None = None
