"""The decoded images of a split in one variable of the device, where batches are gathered by index.

A GPU then waits for no images after the first epoch has begun. The bytes are those that were decoded, so a batch has
the same pixels as one from memory. Written for GPUs, and the same on a processor, where it only takes memory.
"""

import functools

import numpy as np
import tensorflow as tf


class OnDevice:
    """Images of a split, all decoded by the time of the first use, which copies them to the device.

    `pixels`, uint8 [k, s, s, 3], has them in memory; `places`, int64 [n], the place there of each image that is kept.
    """

    def __init__(self, pixels: np.ndarray, places: np.ndarray) -> None:
        self._pixels = pixels
        self.places = places

    def load(self) -> None:
        """Copy the images to the device, unless they are there; what it has no memory for is an error of TensorFlow."""
        _ = self._variable

    def gathered(self, places: tf.Tensor) -> tf.Tensor:
        """The images at places, int64 [b], as uint8 [b, s, s, 3]; in a graph, `load` them before."""
        # By TensorFlow's sources a GPU gathers uint8 from a variable, and not from a tensor; it was not tried on one.
        return tf.gather(self._variable, places)

    @functools.cached_property
    def _variable(self) -> tf.Variable:
        # A worker without any images gathers one that does not count.
        pixels = self._pixels if len(self._pixels) else np.zeros((1, *self._pixels.shape[1:]), np.uint8)
        with tf.device("GPU:0" if tf.config.list_logical_devices("GPU") else "CPU:0"):
            return tf.Variable(pixels, trainable=False)
