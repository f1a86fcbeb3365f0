"""The images of a split by index: decoded once and kept, or decoded again each time.

Every source gives the same bytes for the same index: how images are kept is no part of a run's result.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from job.data.pixels import decode
from job.errors import InvalidSettings

PARALLEL_DECODES = os.cpu_count() or 1
ZEROS_BYTES = 8 << 20

as_it_is = tf.autograph.experimental.do_not_convert
"""For functions of tf.data that need no AutoGraph: it takes time, and a killed process leaves its files behind."""


class ImageSource(Protocol):
    """Images of a split by index."""

    def batches(self, order: np.ndarray, batch_size: int) -> tf.data.Dataset:
        """uint8 [batch, size, size, 3] for the indices of `order` in turn; the last batch may be smaller."""
        ...


def untuned(dataset: tf.data.Dataset, *, num_threads: int | None = None) -> tf.data.Dataset:
    """`dataset`, whose parallelism and buffers are given: nothing is left for tf.data to tune while it runs.

    The thread that would tune wakes up at growing intervals, and whoever leaves an iterator before its end waits for it
    (TensorFlow 2.21): for as long again as the iterator has lived. `num_threads` gives it threads of its own.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    if num_threads is not None:
        options.threading.private_threadpool_size = num_threads
    return dataset.with_options(options)


def allocate(shape: tuple[int, ...], cache: Literal["memory", "disk", "none"], cache_dir: Path) -> np.ndarray | None:
    """Room for decoded images. On disk it is a file without a name, gone with the process however that ends."""
    if cache == "none":
        return None
    if cache == "memory":
        return np.empty(shape, dtype=np.uint8)
    try:
        with tempfile.TemporaryFile(dir=cache_dir) as file:
            # Reserve the space now: a full disk is an error here, and would be a crash in the mapped memory later.
            _reserve(file, int(np.prod(shape)))
            return np.memmap(file, dtype=np.uint8, mode="r+", shape=shape)
    except OSError as error:
        needed = np.prod(shape) / 2**20
        raise InvalidSettings(
            f"THAW_CACHE=disk needs {needed:,.0f} MiB in THAW_CACHE_DIR={str(cache_dir)!r}: {error.strerror}",
            hint="free space there, name another THAW_CACHE_DIR, or set THAW_CACHE=none",
        ) from error


def _reserve(file: BinaryIO, num_bytes: int) -> None:
    """Give a new file its size on the disk. Raises OSError when the disk has less."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, num_bytes)
        return
    # macOS has no such call, and a file that is only made longer has no space of its own.
    for start in range(0, num_bytes, ZEROS_BYTES):
        file.write(bytes(min(ZEROS_BYTES, num_bytes - start)))
    file.flush()


class CachedImages:
    """Decoded images in an array, in memory or mapped from disk.

    `wait` is called with the indices of a batch, int64 [batch], and returns when they are in `pixels`, or raises.
    """

    def __init__(self, pixels: np.ndarray, wait: Callable[[np.ndarray], None]) -> None:
        self._pixels = pixels
        self._wait = wait

    def batches(self, order: np.ndarray, batch_size: int) -> tf.data.Dataset:
        def read(indices: np.ndarray) -> np.ndarray:
            self._wait(indices)
            return np.asarray(self._pixels[indices])

        @as_it_is
        def gather(indices: tf.Tensor) -> tf.Tensor:
            images = tf.numpy_function(read, [indices], tf.uint8, stateful=False)
            return tf.ensure_shape(images, [None, *self._pixels.shape[1:]])

        indices = tf.data.Dataset.from_tensor_slices(order).batch(batch_size)
        return indices.map(gather)


class RecordImages:
    """Images read and decoded again each time they are wanted: bounded in memory, and in disk.

    `read` gives the serialized example of an index, in any order, to several threads; `features` take it apart.
    """

    def __init__(
        self, read: Callable[[int], bytes], features: tfds.features.FeaturesDict, image_key: str, image_size: int
    ) -> None:
        self._read = read
        self._features = features
        self._image_key = image_key
        self._image_size = image_size

    def examples(self, order: np.ndarray) -> tf.data.Dataset:
        """The examples of the indices of `order` in turn, their images still encoded."""
        return self._mapped(order, self._example)

    def each(self, order: np.ndarray) -> tf.data.Dataset:
        """uint8 [size, size, 3] for the indices of `order` in turn."""
        return self._mapped(order, lambda index: decode(self._example(index)[self._image_key], self._image_size))

    def _example(self, index: tf.Tensor) -> dict[str, tf.Tensor]:
        serialized = tf.ensure_shape(tf.numpy_function(self._read, [index], tf.string, stateful=False), [])
        return self._features.deserialize_example(serialized, decoders={self._image_key: tfds.decode.SkipDecoding()})

    @staticmethod
    def _mapped(order: np.ndarray, load: Callable[[tf.Tensor], Any]) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(order).map(as_it_is(load), num_parallel_calls=PARALLEL_DECODES)

    def batches(self, order: np.ndarray, batch_size: int) -> tf.data.Dataset:
        return self.each(order).batch(batch_size)
