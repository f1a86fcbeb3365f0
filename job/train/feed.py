"""What a call of the train steps takes of the data: this worker's rows of some batches in a row."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from job.data.splits import Split
from job.workers.share import Share


class Batches(NamedTuple):
    """`places` and `examples` are those of `job.train.step.train_steps`; `num_examples` are of all workers."""

    places: np.ndarray
    examples: list[Any]
    num_examples: int


class Feed:
    """The batches of an epoch, in turn; `orders` are that of the examples and, if they are mixed, of their partners."""

    def __init__(
        self, train: Split, orders: Sequence[np.ndarray], *, batch_size: int, skip_batches: int, share: Share
    ) -> None:
        self._train, self._orders, self._batch_size, self._share = train, orders, batch_size, share
        self._next = skip_batches
        rows_of = train.worker_batches if train.on_device is None else train.worker_places
        self._loaders: list[Iterator[tuple[Any, Any]]] = [
            iter(rows_of(order, batch_size=batch_size, skip_batches=skip_batches, share=share)) for order in orders
        ]

    def take(self, num_batches: int, *, image_size: int) -> Batches:
        """The next batches, once their images are decoded; raises as `Split.wait` does."""
        starts = [(self._next + number) * self._batch_size for number in range(num_batches)]
        self._next += num_batches
        batches = [[order[start : start + self._batch_size] for start in starts] for order in self._orders]
        sizes = [len(batch) for batch in batches[0]]
        rows = [self._share.rows(self._batch_size, size) for size in sizes]
        own = [batch[part] for of_order in batches for batch, part in zip(of_order, rows, strict=True)]
        self._train.wait(np.concatenate(own))
        places, begin = np.zeros((num_batches, 4), np.int32), 0
        for place, part, size in zip(places, rows, sizes, strict=True):
            num_rows = part.stop - part.start
            place[:] = [part.start if num_rows else 0, num_rows, size, begin]
            begin += max(num_rows, 1)
        examples = []
        for loader in self._loaders:
            loaded = [next(loader) if place[1] else self._stand_in(image_size) for place in places]
            examples += [parts[0] if num_batches == 1 else tf.concat(parts, 0) for parts in zip(*loaded, strict=True)]
        return Batches(places, examples, sum(sizes))

    def _stand_in(self, image_size: int) -> tuple[np.ndarray, np.ndarray]:
        """A row that does not count, for a batch of which this worker has none: TensorFlow's convolutions fail without
        any (2.21).
        """
        shape, kind = ((1, image_size, image_size, 3), np.uint8) if self._train.on_device is None else ((1,), np.int64)
        return np.zeros(shape, kind), np.zeros(1, np.int32)
