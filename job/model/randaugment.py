"""RandAugment (Cubuk et al. 2020, arXiv:1909.13719): each image goes through a few operations of one magnitude.

The operations are the fourteen of the paper. At the largest magnitude, 1, they are as strong as those of
`torchvision.transforms.RandAugment`. At 0 the image stays as it is, but for AutoContrast and Equalize, which have no
strength. What a geometric operation leaves empty is filled by reflection, as in the rest of this package.

`keras.layers.RandAugment` is not used: it draws one operation for all images of a batch. Of Keras's layers for one
operation, `Equalization` has one histogram for all images, `RandomSharpness` takes the outside to be black, and
`AutoContrast` refuses to change no image.
"""

import math
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from job.model import colour, geometry
from job.model.colour import for_pixels, keras_layer
from job.model.draws import HOST

Change = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def randaugmented(images: tf.Tensor, choices: tf.Tensor, amounts: tf.Tensor) -> tf.Tensor:
    """Change images by operations of their own, one after the other.

    `images` is float32 [b, h, w, 3], 0..255, `choices` int32 [b, n] with places in `OPERATIONS`, `amounts` float32
    [b, n] magnitudes from -1 to 1; only some operations have two directions. Returns float32 of the same shape.
    """
    for chosen, amount in zip(tf.unstack(choices, axis=1), tf.unstack(amounts, axis=1), strict=True):
        # The images of an operation are brought together, so that each is changed once and by one operation only.
        with tf.device(HOST):
            order = tf.argsort(chosen, stable=True)
            back = tf.argsort(order)
            counts = tf.reduce_sum(tf.one_hot(chosen, len(OPERATIONS), dtype=tf.int32), axis=0)
        parts = zip(
            OPERATIONS.values(),
            tf.split(tf.gather(images, order), counts, num=len(OPERATIONS)),
            tf.split(tf.gather(amount, order), counts, num=len(OPERATIONS)),
            strict=True,
        )
        changed = tf.concat([operation(part, of_part) for operation, part, of_part in parts], axis=0)
        images = tf.gather(changed, back)
    return images


def stretched(images: tf.Tensor, amounts: tf.Tensor) -> tf.Tensor:
    """Autocontrast: the darkest value of each channel becomes 0, the brightest 255."""
    low = tf.reduce_min(images, axis=[1, 2], keepdims=True)
    high = tf.reduce_max(images, axis=[1, 2], keepdims=True)
    return tf.where(high > low, 255 * tf.math.divide_no_nan(images - low, high - low), images)


def equalized(images: tf.Tensor, amounts: tf.Tensor) -> tf.Tensor:
    """All values of a channel equally frequent, as far as possible: each image and channel by its own histogram.

    With the table of values of `PIL.ImageOps.equalize`.
    """
    # The numbers are whole, and exact as float32; TensorFlow computes with int32 in the memory of the host (2.21).
    channels = tf.transpose(tf.round(images), [0, 3, 1, 2])
    values = tf.reshape(channels, [-1, images.shape[1] * images.shape[2]])
    num_rows = tf.shape(values)[0]
    rows = tf.cast(tf.range(num_rows), tf.float32)[:, tf.newaxis]
    # As a sum over segments, since a count (`bincount`) has no deterministic kernel for GPUs (TensorFlow 2.21).
    segments = tf.reshape(values + 256 * rows, [-1])
    ones = tf.cast(tf.ones_like(segments), tf.int32)
    counts = tf.math.unsorted_segment_sum(ones, tf.cast(segments, tf.int32), 256 * num_rows)
    histograms = tf.reshape(tf.cast(counts, tf.float32), [-1, 256])
    brightest = tf.cast(tf.reduce_max(values, axis=1), tf.int32)
    others = tf.reduce_sum(histograms, axis=1) - tf.gather(histograms, brightest, batch_dims=1)
    step = (others // 255)[:, tf.newaxis]
    tables = (step // 2 + tf.cumsum(histograms, axis=1, exclusive=True)) // tf.maximum(step, 1)
    tables = tf.where(step > 0, tf.minimum(tables, 255), np.arange(256, dtype=np.float32))
    changed = tf.gather(tables, tf.cast(values, tf.int32), batch_dims=1)
    return tf.transpose(tf.reshape(changed, tf.shape(channels)), [0, 2, 3, 1])


def solarized(images: tf.Tensor, amounts: tf.Tensor) -> tf.Tensor:
    """Values from a threshold on are inverted: at 1, all."""
    layer = keras_layer(keras.layers.Solarization, addition_factor=0.0, threshold_factor=0.0, seed=0)
    thresholds = for_pixels(256 * (1 - tf.abs(amounts)))
    return layer.transform_images(images, {"additions": tf.zeros_like(thresholds), "thresholds": thresholds})


def coloured(images: tf.Tensor, amounts: tf.Tensor) -> tf.Tensor:
    """More or less colour, by up to 0.9 of the distance to grey."""
    layer = keras_layer(keras.layers.RandomColorDegeneration, factor=1.0, seed=0)
    return layer.transform_images(images, {"factor": for_pixels(-0.9 * amounts)})


def posterized(images: tf.Tensor, amounts: tf.Tensor) -> tf.Tensor:
    """Without up to four of the eight bits of a value."""
    layer = keras_layer(keras.layers.RandomPosterization, factor=8, seed=0)
    return layer.transform_images(tf.round(images), {"shift_factor": tf.cast(tf.round(4 * tf.abs(amounts)), tf.uint8)})


def sharpened(images: tf.Tensor, amounts: tf.Tensor) -> tf.Tensor:
    """More or less sharp, by up to 0.9 of the distance to the smoothed image; the border is left as it is.

    Smoothed with the kernel of `PIL.ImageFilter.SMOOTH`: 5 of 13 parts of a pixel, and one of each around it.
    """
    inner = images[:, 1:-1, 1:-1]
    columns = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    squares = columns[:, :, :-2] + columns[:, :, 1:-1] + columns[:, :, 2:]
    difference = tf.pad(inner - (squares + 4 * inner) / 13, [[0, 0], [1, 1], [1, 1], [0, 0]])
    return tf.clip_by_value(images + for_pixels(0.9 * amounts) * difference, 0, 255)


OPERATIONS: dict[str, Change] = {
    "Identity": lambda images, amounts: images,
    "AutoContrast": stretched,
    "Equalize": equalized,
    # By up to 30 degrees.
    "Rotate": lambda images, amounts: geometry.moved(images, amounts * math.radians(30)),
    "Solarize": solarized,
    "Color": coloured,
    "Posterize": posterized,
    # By up to 0.9 of the distance to the mean.
    "Contrast": lambda images, amounts: colour.contrasted(images, 0.9 * amounts),
    # All values multiplied, by up to 0.9 more or less.
    "Brightness": lambda images, amounts: tf.clip_by_value(images * for_pixels(1 + 0.9 * amounts), 0, 255),
    "Sharpness": sharpened,
    # By up to 0.3 of a pixel for each row, and for each column.
    "ShearX": lambda images, amounts: geometry.sheared(images, 0.3 * amounts, axis=2),
    "ShearY": lambda images, amounts: geometry.sheared(images, 0.3 * amounts, axis=1),
    # By up to 150 / 331 of the width, and of the height.
    "TranslateX": lambda images, amounts: _moved(images, amounts, [0.0, 150 / 331 * images.shape[2]]),
    "TranslateY": lambda images, amounts: _moved(images, amounts, [150 / 331 * images.shape[1], 0.0]),
}
"""By the names of the paper; each takes images float32 [b, h, w, 3], 0..255, and amounts float32 [b], -1..1."""


def _moved(images: tf.Tensor, amounts: tf.Tensor, largest: list[float]) -> tf.Tensor:
    return geometry.moved(images, tf.zeros_like(amounts), shifts=amounts[:, tf.newaxis] * largest)
