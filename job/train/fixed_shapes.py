"""Batches of one shape, although the last one of a split is smaller.

For each shape that it has not met, a GPU tries out ways to compute each convolution, and XLA compiles the step again.
That takes longer than to compute some rows that do not count. On a processor a smaller batch takes less time.
"""

from collections.abc import Callable

import tensorflow as tf

from job.train import device


def are_faster(*, xla: bool) -> bool:
    """Whether they save time on the device of this process, in a step that XLA compiles or not."""
    return xla or device.gpu() is not None


def padded(rows: tf.Tensor, size: int) -> tf.Tensor:
    """`rows` [b, ...], in a graph, with zeros after them up to `size` rows."""
    missing = size - tf.shape(rows)[0]
    whole = tf.pad(rows, [[0, missing], *[[0, 0]] * (rows.shape.rank - 1)])
    whole.set_shape([size, *rows.shape[1:]])
    return whole


def of_size(function: Callable[[tf.Tensor], tf.Tensor], size: int) -> Callable[[tf.Tensor], tf.Tensor]:
    """`function` of at most `size` rows, in a graph, which is always given so many; the others' answers are dropped."""
    return lambda rows: function(padded(rows, size))[: tf.shape(rows)[0]]
