"""The images of a run, decoded in the background while the model is built and the first epoch trained.

One thread takes the splits in turn, each in the order in which its images are probably wanted: a wrong guess costs time
and nothing else. Each wait is for the images that are needed, and no others. One that cannot be decoded is never ready:
everything is then decoded to the end, so that all that is damaged is named, and every wait, then or later, raises that
error. This module knows nothing of labels, and does not know why an order was chosen.
"""

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import tensorflow as tf

from job.data.images import NOT_KEPT, PARALLEL_DECODES, untuned
from job.data.pixels import reason_of
from job.data.tfds.records import cut_short

Damaged = dict[str, dict[int, str]]
"""By split, the index and the reason of each image that could not be decoded."""

Corrupt = Callable[[Damaged], BaseException]
"""Makes the error that names damaged images."""

CHECK_STOP_SECONDS = 0.1
CLOSING_SECONDS = 1.0
PREFETCHED_EXAMPLES = 64


@dataclass(frozen=True, kw_only=True)
class Part:
    """One split to decode.

    `images` are uint8 [size, size, 3] for the indices of `order`, each once, in turn; one that cannot be decoded is an
    InvalidArgumentError. `pixels`, uint8 [k, size, size, 3], keeps them, if they are kept. `places`, int64 [n], has the
    place there of each example, or NOT_KEPT: one that is not in `order` is never waited for.
    """

    name: str
    order: np.ndarray
    images: tf.data.Dataset
    places: np.ndarray
    pixels: np.ndarray | None


class Decoding:
    """The thread, which begins at once; it ends with its work, when this is closed, and when it is garbage.

    `check_stop` is called now and then in each `wait`, and raises to leave it. Without `corrupt`, images that cannot be
    decoded are no error, only `damaged`.
    """

    def __init__(self, parts: Sequence[Part], check_stop: Callable[[], None], *, corrupt: Corrupt | None) -> None:
        assert all(np.array_equal(np.sort(part.order), np.flatnonzero(part.places != NOT_KEPT)) for part in parts)
        self.check_stop = check_stop
        self.damaged: Damaged = {part.name: {} for part in parts}
        self._state = _State({part.name: part.places == NOT_KEPT for part in parts})
        arguments = (parts, self._state, self.damaged, corrupt)
        self._thread = threading.Thread(target=_work, args=arguments, daemon=True, name="decoding")
        weakref.finalize(self, self._state.end, _closed)
        self._thread.start()

    def is_ready(self, name: str) -> bool:
        """Whether every image of a split that is to be decoded is, and none that was found is damaged, in any split."""
        return self._state.failure is None and bool(self._state.ready[name].all())

    def wait(self, name: str, indices: np.ndarray | None) -> None:
        """Return when these images of a split are decoded, or all of them.

        Raises DataCorrupt when an image of any split is known to be damaged, whichever are waited for, and what
        `check_stop` raises.
        """
        chosen = slice(None) if indices is None else indices
        while not self._state.wait(name, chosen, CHECK_STOP_SECONDS):
            self.check_stop()
        if self._state.failure is not None:
            raise self._state.failure()

    def wait_in_batch(self, name: str, indices: np.ndarray) -> None:
        """Return when these images are decoded, in a thread of TensorFlow's, where no stop is seen.

        Raises RuntimeError if they never will be.

        What is decoded can be read whatever became of the others: damage that is found between `wait` and the batch is
        for the next `wait` to name.
        """
        self._state.wait(name, indices, None)
        if not self._state.ready[name][indices].all():
            raise RuntimeError("images of a batch are not decoded, and will not be")

    def close(self) -> None:
        """End the thread, wherever it is; what is not decoded by now never will be."""
        self._state.end(_closed)
        self._thread.join(CLOSING_SECONDS)


class _State:
    """What the thread and the waits share: what is `ready`, and what makes the error, once it failed."""

    def __init__(self, ready: dict[str, np.ndarray]) -> None:
        """`ready`, bool [n] for each split, has where nothing is to be decoded."""
        self.ready = ready
        self._num_missing = sum(int((~found).sum()) for found in ready.values())
        self.is_over = self._num_missing == 0
        self.failure: Callable[[], BaseException] | None = None
        self._changed = threading.Condition()

    def wait(self, name: str, indices: np.ndarray | slice, timeout: float | None) -> bool:
        """Whether there is nothing left to wait for, after at most `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self.is_over or bool(self.ready[name][indices].all()), timeout)

    def put(self, name: str, index: int) -> None:
        with self._changed:
            self.ready[name][index] = True
            self._num_missing -= 1
            self.is_over = self.is_over or self._num_missing == 0
            self._changed.notify_all()

    def end(self, failure: Callable[[], BaseException]) -> None:
        """The first end counts, which may be that the work was done."""
        with self._changed:
            if not self.is_over:
                self.failure = failure
                self.is_over = True
                self._changed.notify_all()


def _closed() -> RuntimeError:
    return RuntimeError("the data was closed while its images were decoded")


def _work(parts: Sequence[Part], state: _State, damaged: Damaged, corrupt: Corrupt | None) -> None:
    try:
        for part in parts:
            _decode(part, state, damaged[part.name], may_fail=corrupt is None)
        if corrupt is not None and any(damaged.values()):
            # The names are looked up by the wait that raises: TFDS may import meanwhile, which is not for threads.
            state.end(partial(corrupt, damaged))
    except BaseException as error:
        failure = error
        state.end(lambda: failure)


def _decode(part: Part, state: _State, damaged: dict[int, str], *, may_fail: bool) -> None:
    """Decode a split; `damaged` gets the reason for each index that is. Those are ready only if they may fail."""
    # Threads of its own: those that TensorFlow's operations share may all be waiting for images.
    images = untuned(part.images.prefetch(PREFETCHED_EXAMPLES), num_threads=PARALLEL_DECODES).as_numpy_iterator()
    for index in part.order.tolist():
        if state.is_over:
            raise _closed()
        try:
            image = next(images)
        except tf.errors.InvalidArgumentError as error:
            damaged[index] = reason_of(error)
            if may_fail:
                state.put(part.name, index)
            continue
        except (tf.errors.OpError, StopIteration) as error:
            raise cut_short(f"{index} of {len(part.places)}", error) from error
        if part.pixels is not None:
            part.pixels[part.places[index]] = image
        state.put(part.name, index)
