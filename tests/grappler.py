"""What TensorFlow makes of a graph before it runs it."""

import keras
import numpy as np
import tensorflow as tf


def optimized_operations(network: keras.Model, shape: tuple[int, ...]) -> list[str]:
    """The kinds of the operations that run when `network` is called with an array of `shape`, in a `tf.function`."""
    compute = tf.function(lambda images: network(images, training=False), autograph=False)
    images = tf.constant(np.zeros(shape, np.float32))
    compute.get_concrete_function(images)
    tf.config.experimental  # noqa: B018
    options = tf.config.run_metadata()
    return options
