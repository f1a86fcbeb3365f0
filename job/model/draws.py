"""Random numbers as pure functions of a seed, int32 [2], drawn by the processor, whatever trains.

So a seed gives the same numbers everywhere: the algorithm is named, and no other device rounds. And nothing waits for a
GPU: TensorFlow (2.21) takes seeds apart in the memory of the host, and a value that a GPU has computed comes there only
when all is done that the GPU was given before. `tests/test_gpu_graph.py` shows that a step waits for no such value.
"""

from collections.abc import Sequence

import tensorflow as tf

HOST = "CPU:0"


def split(seed: tf.Tensor, number: int) -> list[tf.Tensor]:
    """That many other seeds."""
    with tf.device(HOST):
        seeds: list[tf.Tensor] = tf.unstack(tf.random.split(seed, number, alg="philox"))
        return seeds


def numbered(seed: tf.Tensor, number: int) -> tf.Tensor:
    """Another seed for each number."""
    with tf.device(HOST):
        return tf.random.fold_in(seed, number, alg="philox")


def uniform(
    shape: Sequence[tf.Tensor | int], seed: tf.Tensor, low: float = 0, high: float = 1, dtype: tf.DType = tf.float32
) -> tf.Tensor:
    """Numbers from `low` to below `high`, of this shape."""
    with tf.device(HOST):
        return tf.random.stateless_uniform(shape, seed, low, high, dtype, alg="philox")


def gamma(shape: Sequence[tf.Tensor | int], seed: tf.Tensor, alpha: float) -> tf.Tensor:
    """Gamma variables with this shape parameter, float64 of this shape."""
    with tf.device(HOST):
        # On CPU and GPU its algorithm is Philox; it has no argument for that (TensorFlow 2.21).
        return tf.random.stateless_gamma(shape, seed, alpha, dtype=tf.float64)
