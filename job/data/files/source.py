"""Image files as a source of examples: all bytes are read once for their digests, which give the order and the slices.

From then on a file must stay as it is: one that gives other bytes later counts as damaged.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import tensorflow as tf

from job.data.files import order
from job.data.files.listing import Listing
from job.data.images import mapped
from job.data.split_ranges import split_ranges
from job.data.split_spec import DEFAULT_SPECS, SPLIT_NAMES
from job.errors import InputError, InvalidSettings

NUM_READERS = 16
READ_TOGETHER = 256
OWN_IMAGES = "own images"


class FileExamples:
    """Those images of a listing that `chosen`, int64 [n], has the indices of; see `source.Examples`."""

    is_in_any_order = True

    def __init__(self, source: "FileSource", spec: str, chosen: np.ndarray) -> None:
        self.spec = spec
        self.labels = source.labels[chosen]
        self.digests = source.digests[chosen]
        self._source = source
        self._chosen = chosen

    def mapped(self, order: np.ndarray, use: Callable[[tf.Tensor], tf.Tensor]) -> tf.data.Dataset:
        def load(index: tf.Tensor) -> tf.Tensor:
            encoded = tf.numpy_function(self._source.read_one, [index], tf.string, stateful=False)
            return use(tf.ensure_shape(encoded, []))

        return mapped(self._chosen[order], load)

    def names(self, indices: Sequence[int]) -> list[str]:
        return [self._source.name(int(self._chosen[index])) for index in indices]


class FileSource:
    """The images of a listing. After `read`, `labels` and `digests` are those of all its images, in its order."""

    identity = OWN_IMAGES
    has_names = True
    repair_hint = "repair or remove them, or set THAW_ON_UNREADABLE=skip, which leaves such images out"

    def __init__(self, listing: Listing, *, stratify: bool) -> None:
        """Raises InputError when there are fewer than two classes."""
        if len(listing.class_names) < 2:
            found = ", ".join(map(repr, listing.class_names)) or "none"
            raise InputError(
                f"{listing.place}: expected images of two classes or more, found {found} (read as {listing.layout})",
                hint="put the images of each class into a folder of its own, or name a table of paths and labels",
            )
        self.class_names = listing.class_names
        index = {name: number for number, name in enumerate(listing.class_names)}
        self.labels = np.array([index[image.label] for image in listing.images], np.int32)
        self.digests = np.zeros((len(self.labels), 32), np.uint8)
        self._listing = listing
        self._stratify = stratify
        self._unread: dict[int, str] = {}

    def read(self, specs: Sequence[str], check_stop: Callable[[], None]) -> dict[str, FileExamples]:
        specs = specs_for(self._listing, specs)
        ranges = split_ranges(specs, sizes(self._listing), of=self._listing.place)
        self._read_all(check_stop)
        splits = np.array([image.split for image in self._listing.images])
        orders = {}
        for split in np.unique(splits).tolist():
            found = np.flatnonzero(splits == split)
            orders[split] = found[order.shuffled(self.labels[found], self.digests[found], stratify=self._stratify)]
        examples = {}
        for name, spec, parts in zip(SPLIT_NAMES, specs, ranges, strict=True):
            pieces = []
            for part in parts:
                digests = self.digests[orders[part.split]]
                start, stop = (order.cut(position, digests) for position in (part.start, part.stop))
                pieces.append(orders[part.split][start:stop])
            chosen = np.concatenate(pieces)
            if not len(chosen):
                raise InvalidSettings(
                    f"THAW_{name.upper()}_SPLIT={spec!r}: has no examples, since the same image is never in two splits"
                )
            examples[name] = FileExamples(self, spec, chosen)
        return examples

    def read_one(self, index: int) -> bytes:
        """The bytes of an image; nothing where they cannot be had, or are others than they were."""
        data = self._read(index)
        if hashlib.sha256(data).digest() != self.digests[index].tobytes():
            self._unread[index] = "has changed since it was first read"
            return b""
        return data

    def name(self, index: int) -> str:
        """The name of an image, with the reason where its bytes cannot be had."""
        reason = self._unread.get(index)
        return self._listing.images[index].name + (f", which {reason}" if reason else "")

    def _read(self, index: int) -> bytes:
        try:
            return self._listing.read(int(index))
        except ValueError as error:
            self._unread[int(index)] = str(error)
            return b""

    def _read_all(self, check_stop: Callable[[], None]) -> None:
        def digest(index: int) -> None:
            self.digests[index] = np.frombuffer(hashlib.sha256(self._read(index)).digest(), np.uint8)

        with ThreadPoolExecutor(NUM_READERS, thread_name_prefix="read") as executor:
            for start in range(0, len(self.digests), READ_TOGETHER):
                check_stop()
                list(executor.map(digest, range(start, min(start + READ_TOGETHER, len(self.digests)))))


def sizes(listing: Listing) -> dict[str, SimpleNamespace]:
    """The splits of a listing as `split_ranges` wants them."""
    counts = {name: sum(image.split == name for image in listing.images) for name in SPLIT_NAMES}
    return {name: SimpleNamespace(num_examples=count, shard_lengths=[count]) for name, count in counts.items() if count}


def specs_for(listing: Listing, specs: Sequence[str]) -> Sequence[str]:
    """The specs as they are; where the data brings its own splits and no other are asked for, those three.

    Raises InvalidSettings when it does not bring all three.
    """
    if not listing.has_splits or tuple(specs) != DEFAULT_SPECS:
        return specs
    found = sizes(listing)
    if missing := [name for name in SPLIT_NAMES if name not in found]:
        known = ", ".join(f"{name} ({size.num_examples:,})" for name, size in found.items())
        raise InvalidSettings(
            f"{listing.place} brings the splits {known}, and no {' and no '.join(missing)}",
            hint="say which examples are for what, for example THAW_TRAIN_SPLIT=train[:80%], "
            "THAW_VALIDATION_SPLIT=train[80%:] and THAW_TEST_SPLIT=validation",
        )
    return SPLIT_NAMES
