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
from job.data.together import together

NUM_READERS = 16
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

    @property
    def unread(self) -> dict[int, str]:
        reasons = dict(self._source.unread)
        return {place: reasons[index] for place, index in enumerate(self._chosen.tolist()) if index in reasons}

    def names(self, indices: Sequence[int]) -> list[str]:
        return [self._source.name(int(self._chosen[index])) for index in indices]


class FileSource:
    """The images of a listing. After `read`, `labels` and `digests` are those of all its images, in its order.

    `unread` has the reason why the bytes of an image cannot be had, by its place in the listing.
    """

    identity = OWN_IMAGES
    has_names = True
    repair_hint = "repair or remove them, or set THAW_ON_UNREADABLE=skip, which leaves such images out"

    def __init__(self, listing: Listing, *, stratify: bool) -> None:
        self.class_names = listing.class_names
        self.labels = label_indices(listing)
        self.digests = np.zeros((len(self.labels), 32), np.uint8)
        self._listing = listing
        self._stratify = stratify
        self.unread: dict[int, str] = {}

    def read(self, specs: Sequence[str], check_stop: Callable[[], None]) -> dict[str, FileExamples]:
        judged = judge(self._listing, specs)
        self._read_all(check_stop)
        chosen = divided(self._listing, judged, self.digests, stratify=self._stratify)
        specs, _ = judged
        return {
            name: FileExamples(self, spec, found) for spec, (name, found) in zip(specs, chosen.items(), strict=True)
        }

    def read_one(self, index: int) -> bytes:
        """The bytes of an image; nothing where they cannot be had, or are others than they were."""
        data = self._read(index)
        if hashlib.sha256(data).digest() != self.digests[index].tobytes():
            changed = "has changed since it was first read"
            if data:
                self.unread[index] = changed
            self.unread.setdefault(index, changed)
            return b""
        return data

    def name(self, index: int) -> str:
        """The name of an image."""
        return self._listing.images[index].name

    def _read(self, index: int) -> bytes:
        try:
            return self._listing.read(int(index))
        except ValueError as error:
            if (reason := str(error)) != EMPTY:
                self.unread[int(index)] = reason
            return b""

    def _read_all(self, check_stop: Callable[[], None]) -> None:
        def digest(index: int) -> None:
            self.digests[index] = np.frombuffer(hashlib.sha256(self._read(index)).digest(), np.uint8)

        tasks = (partial(digest, index) for index in range(len(self.digests)))
        together(tasks, use=lambda _: None, tick=check_stop, num_threads=NUM_READERS)
