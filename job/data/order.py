"""In which order the examples of a run are used, and which of them a worker uses. Pure arithmetic, no tensors.

The training examples are dealt into as many columns as a batch has rows, once for a seed. An epoch shuffles each
column, and its batches are the rows of that table. A worker takes the same columns of every batch, so it uses the same
examples in every epoch, and needs no others; the order does not depend on how many workers there are.

NumPy keeps the raw bits of a generator stable between versions, its shuffles not: every order is one of ranks of bits.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from job.workers.share import Share


def permutation(num_examples: int, key: str) -> np.ndarray:
    """A permutation of 0 .. num_examples - 1 as int64, a pure function of its arguments."""
    return np.argsort(_bits(num_examples, key), kind="stable")


def epoch_order(num_examples: int, *, batch_size: int, seed: int, phase: str, epoch: int) -> np.ndarray:
    """The order of an epoch: a permutation of 0 .. num_examples - 1 as int64, a pure function of its arguments.

    Batch j has the `batch_size` examples from j * batch_size on, one of each column; the last may be partial, and has
    the first columns.
    """
    shape = (num_batches(num_examples, batch_size), batch_size)
    bits = np.full(shape, np.iinfo(np.uint64).max, np.uint64)
    bits.flat[:num_examples] = _bits(num_examples, f"order/{seed}/{phase}/{epoch}")
    table = np.zeros(shape, np.int64)
    table.flat[:num_examples] = _dealt(num_examples, seed)
    # Stable: the places that a partial last row lacks stay the last of their columns.
    shuffled = np.take_along_axis(table, np.argsort(bits, axis=0, kind="stable"), axis=0)
    return shuffled.ravel()[:num_examples]


def own_rows(order: np.ndarray, *, batch_size: int, share: Share) -> np.ndarray:
    """What a worker has of `order`, whole batches in a row of which the last may be partial: its rows of each."""
    columns, own = np.arange(len(order)) % batch_size, share.of(batch_size)
    return order[(columns >= own.start) & (columns < own.stop)]


def owned(num_examples: int, *, batch_size: int, seed: int, share: Share) -> np.ndarray:
    """The training examples that a worker uses, those of its columns: sorted indices, int64."""
    return np.sort(own_rows(_dealt(num_examples, seed), batch_size=batch_size, share=share))


def num_batches(num_examples: int, batch_size: int) -> int:
    """Batches of an epoch; the last may be partial."""
    return -(-num_examples // batch_size)


def evaluated(num_examples: int, *, batch_size: int, share: Share) -> np.ndarray:
    """The examples of an evaluation that a worker takes, whole batches in a row: indices, int64."""
    own = share.of(num_batches(num_examples, batch_size))
    return np.arange(own.start * batch_size, min(own.stop * batch_size, num_examples))


@dataclass(frozen=True, kw_only=True)
class Portion:
    """What one worker uses of the data, of which it needs to keep no more.

    Of the training split its rows of each batch, of validation its batches of the same size, of test its batches of
    `evaluation_batch_size`.
    """

    share: Share
    batch_size: int
    evaluation_batch_size: int
    seed: int

    def of(self, name: str, num_examples: int) -> np.ndarray:
        """The examples of a split that the worker uses: sorted indices, int64."""
        if name == "train":
            return owned(num_examples, batch_size=self.batch_size, seed=self.seed, share=self.share)
        batch_size = self.batch_size if name == "validation" else self.evaluation_batch_size
        return evaluated(num_examples, batch_size=batch_size, share=self.share)


def _dealt(num_examples: int, seed: int) -> np.ndarray:
    """The examples as they are dealt into columns, one after the other; int64."""
    return permutation(num_examples, f"columns/{seed}")


def _bits(size: int, key: str) -> np.ndarray:
    """Raw bits of a Philox generator, uint64 [size]."""
    digest = hashlib.sha256(key.encode()).digest()
    return np.asarray(np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64)).random_raw(size))
