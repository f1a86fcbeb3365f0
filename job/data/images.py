"""The images of a split by index: decoded once and kept, or decoded again each time.

Every source gives the same bytes for the same index: how images are kept does not change the result of a run.
"""

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import tensorflow as tf

from job.data.pixels import decode
from job.data.resizing import Resizing
from job.data.source import Examples
from job.errors import InvalidSettings

Cache = Literal["memory", "device", "disk", "none"]
"""Where a run keeps its decoded images; on the device as well as in memory."""

PARALLEL_DECODES = os.cpu_count() or 1
PREFETCHED_BATCHES = 2
ZEROS_BYTES = 8 << 20
NOT_KEPT = -1
"""The place of an image that has none in an array of decoded images."""

ImageBatches = Callable[[np.ndarray, int], tf.data.Dataset]
"""From an order of indices and a batch size to uint8 [batch, size, size, 3] in turn; the last batch may be smaller."""

as_it_is = tf.autograph.experimental.do_not_convert
"""For functions of tf.data that need no AutoGraph: it takes time, and a killed process leaves its files behind."""


def mapped(order: np.ndarray, load: Callable[[tf.Tensor], Any]) -> tf.data.Dataset:
    """What `load` makes, in a graph, of each index of `order` in turn."""
    return tf.data.Dataset.from_tensor_slices(order).map(as_it_is(load), num_parallel_calls=PARALLEL_DECODES)


def untuned(dataset: tf.data.Dataset, *, num_threads: int | None = None) -> tf.data.Dataset:
    """`dataset`, whose parallelism and buffers are given: nothing is left for tf.data to tune while it runs.

    The thread that would tune wakes up at growing intervals, and to leave an iterator before its end is to wait for it
    (TensorFlow 2.21): for as long again as the iterator has lived. `num_threads` gives it threads of its own.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    if num_threads is not None:
        options.threading.private_threadpool_size = num_threads
    return dataset.with_options(options)


def allocate(shape: tuple[int, ...], cache: Cache, cache_dir: Path) -> np.ndarray | None:
    """An array for decoded images, if they are kept; on disk a file without a name, which goes with the process."""
    if cache == "none":
        return None
    # A file without bytes cannot be mapped.
    if cache in ("memory", "device") or 0 in shape:
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


def cached(
    pixels: np.ndarray, places: np.ndarray, *, wait: Callable[[np.ndarray], None], others: ImageBatches
) -> ImageBatches:
    """Decoded images in an array, in memory or mapped from disk.

    `places`, int64 [n], has the place of each image in `pixels`, or NOT_KEPT; an order with one that is not kept is
    read from `others`. `wait` is called with the indices of a batch, int64 [batch], and returns when they are in
    `pixels`, or raises.
    """

    def read(indices: np.ndarray) -> np.ndarray:
        wait(indices)
        return np.asarray(pixels[places[indices]])

    @as_it_is
    def gather(indices: tf.Tensor) -> tf.Tensor:
        images = tf.numpy_function(read, [indices], tf.uint8, stateful=False)
        return tf.ensure_shape(images, [None, *pixels.shape[1:]])

    def batches(order: np.ndarray, batch_size: int) -> tf.data.Dataset:
        if (places[order] == NOT_KEPT).any():
            return others(order, batch_size)
        return tf.data.Dataset.from_tensor_slices(order).batch(batch_size).map(gather)

    return batches


def decoded_again(examples: Examples, resizing: Resizing) -> ImageBatches:
    """Images that are decoded each time they are wanted, from examples that are in any order."""
    load = partial(decode, resizing=resizing)
    return lambda order, batch_size: examples.mapped(order, load).batch(batch_size)
