"""Image files as a source of examples: all bytes are read once for their digests, which give the order and the slices.

From then on a file must stay as it is: one that gives other bytes later counts as damaged.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import tensorflow as tf

from job.data.files.judge import divided, judge, label_indices
from job.data.files.listing import Listing
from job.data.formats import EMPTY
from job.data.images import mapped
from job.data.source import Source
from job.data.split_spec import Specs
from job.data.threads import in_threads

NUM_READERS = 16
OWN_IMAGES = "own images"


def read_own_images(listing: Listing, specs: Specs, *, stratify: bool, check_stop: Callable[[], None]) -> Source:
    """The images of a listing; `check_stop` is called now and then, and raises to leave.

    Raises InputError, InvalidSettings and DataCorrupt as `judge` and `divided` do.
    """
    judged = judge(listing, specs)
    files = _Files(listing)
    tasks = (partial(files.note_digest, index) for index in range(len(listing.images)))
    in_threads(tasks, use=lambda _: None, tick=check_stop, num_threads=NUM_READERS)
    chosen = divided(listing, judged, files.digests, stratify=stratify)
    labels = label_indices(listing)
    return Source(
        identity=OWN_IMAGES,
        class_names=listing.class_names,
        has_names=True,
        specs=judged[0],
        repair_hint="repair or remove them, or set THAW_ON_UNREADABLE=skip, which leaves such images out",
        examples={name: FileExamples(files, labels[found], found) for name, found in chosen.items()},
        num_unused=len(listing.images) - len(np.unique(np.concatenate(list(chosen.values())))),
    )


class FileExamples:
    """Those images of a listing that `chosen`, int64 [n], has the indices of; see `source.Examples`."""

    is_in_any_order = True

    def __init__(self, files: "_Files", labels: np.ndarray, chosen: np.ndarray) -> None:
        self.labels = labels
        self.digests = files.digests[chosen]
        self._files = files
        self._chosen = chosen

    def mapped(self, order: np.ndarray, use: Callable[[tf.Tensor], tf.Tensor]) -> tf.data.Dataset:
        def load(index: tf.Tensor) -> tf.Tensor:
            encoded = tf.numpy_function(self._files.read_again, [index], tf.string, stateful=False)
            return use(tf.ensure_shape(encoded, []))

        return mapped(self._chosen[order], load)

    @property
    def unread(self) -> dict[int, str]:
        reasons = dict(self._files.unread)
        return {place: reasons[index] for place, index in enumerate(self._chosen.tolist()) if index in reasons}

    def names(self, indices: Sequence[int]) -> list[str]:
        return [self._files.listing.images[self._chosen[index]].name for index in indices]


class _Files:
    """The image files of a listing, by index, from several threads.

    `digests`, uint8 [n, 32], are the SHA-256 of the bytes as they were read first, of no bytes where they could not be
    had. `unread` has the reason of each whose bytes could not be had, or were others later.
    """

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self.digests = np.zeros((len(listing.images), 32), np.uint8)
        self.unread: dict[int, str] = {}

    def note_digest(self, index: int) -> None:
        self.digests[index] = np.frombuffer(hashlib.sha256(self._read(index)).digest(), np.uint8)

    def read_again(self, index: int) -> bytes:
        """The bytes of an image; nothing where they cannot be had, or are others than they were."""
        data = self._read(index)
        if hashlib.sha256(data).digest() == self.digests[index].tobytes():
            return data
        if data or index not in self.unread:
            self.unread[index] = "has changed since it was first read"
        return b""

    def _read(self, index: int) -> bytes:
        try:
            return self.listing.read(int(index))
        except ValueError as error:
            if (reason := str(error)) != EMPTY:
                self.unread[int(index)] = reason
            return b""
