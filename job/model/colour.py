"""Brightness, contrast and colour of images, by an amount for each.

The pixels are computed by Keras's layers, whose `transform_images` takes the numbers that the layer would have drawn.
Their own draws would depend on a state. All take and return float32 [b, h, w, 3], 0..255.
"""

import functools
from typing import Any

import keras
import tensorflow as tf


@functools.cache
def keras_layer(kind: type[keras.layers.Layer], **arguments: Any) -> Any:
    """A layer of Keras for its arithmetic; a seed, which it does not use, keeps it from drawing one."""
    return kind(dtype="float32", **arguments)


def for_pixels(amounts: tf.Tensor) -> tf.Tensor:
    """A value for each image, [b], as one for each of its pixels, [b, 1, 1, 1]."""
    return amounts[:, tf.newaxis, tf.newaxis, tf.newaxis]


def brightened(images: tf.Tensor, amounts: tf.Tensor) -> tf.Tensor:
    """Add `amounts` float32 [b] of white, -1..1; see `keras.layers.RandomBrightness`."""
    layer = keras_layer(keras.layers.RandomBrightness, factor=1.0, seed=0)
    return layer.transform_images(images, {"rgb_delta": for_pixels(amounts * 255)})


def contrasted(images: tf.Tensor, amounts: tf.Tensor) -> tf.Tensor:
    """Multiply the distance to the mean of each channel by 1 + `amounts`; see `keras.layers.RandomContrast`."""
    layer = keras_layer(keras.layers.RandomContrast, factor=1.0, seed=0)
    return layer.transform_images(images, {"contrast_factor": for_pixels(1 + amounts)})


def saturated(images: tf.Tensor, amounts: tf.Tensor) -> tf.Tensor:
    """Multiply the saturation (HSV) by 1 + `amounts`, at most to 1; see `keras.layers.RandomSaturation`."""
    # Keras clips the saturation, which is 0..1 for any pixels, to `value_range`: with 0..255 colours become negative.
    layer = keras_layer(keras.layers.RandomSaturation, factor=1.0, value_range=(0, 1), seed=0)
    return layer.transform_images(images, {"factor": 1 + amounts})


def hue_shifted(images: tf.Tensor, amounts: tf.Tensor) -> tf.Tensor:
    """Turn the hue (HSV) by `amounts` of the colour circle, -1..1; see `keras.layers.RandomHue`."""
    layer = keras_layer(keras.layers.RandomHue, factor=1.0, value_range=(0, 255), seed=0)
    return layer.transform_images(images, {"factor": amounts})
