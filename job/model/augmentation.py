"""Random flip and rotation as pure functions of a seed.

The same seed gives the same images on every device and after every restart, which Keras's layers, whose seeds are
state, do not promise; the algorithm of the random bits is named for the same reason. Draws are made for a whole batch,
of which each worker uses its rows, so they do not depend on the number of workers. Sizes, fill (reflection) and
interpolation are those of `keras.layers.RandomFlip` and `RandomRotation`, and a test holds them together.
"""

import math
from typing import Literal, NamedTuple

import keras
import tensorflow as tf

Flip = Literal["horizontal", "vertical", "horizontal_and_vertical", "none"]


class Rows(NamedTuple):
    """Which rows of a batch of `batch_size` examples are at hand: those from `first` on. Both are int32 []."""

    first: tf.Tensor | int
    batch_size: tf.Tensor | int

    def of(self, drawn: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
        """Of what was `drawn` for the whole batch, the rows that `like` has."""
        return drawn[self.first : self.first + tf.shape(like)[0]]


def augment(images: tf.Tensor, *, flip: Flip, rotation: float, seed: tf.Tensor, rows: Rows) -> tf.Tensor:
    """Flip and rotate each image at random.

    `images` is float32 [b, h, w, c], `rotation` the largest angle either way as a fraction of a full turn,
    `seed` int32 [2]. Returns float32 of the same shape.
    """
    flip_seed, mirror_seed, angle_seed = tf.unstack(tf.random.split(seed, 3, alg="philox"))
    if flip in ("horizontal", "horizontal_and_vertical"):
        images = _flip(images, axis=2, seed=flip_seed, rows=rows)
    if flip in ("vertical", "horizontal_and_vertical"):
        images = _flip(images, axis=1, seed=mirror_seed, rows=rows)
    if rotation > 0:
        limit = rotation * 2 * math.pi
        angles = tf.random.stateless_uniform([rows.batch_size], angle_seed, -limit, limit, alg="philox")
        images = rotate(images, rows.of(angles, images))
    return images


def rotate(images: tf.Tensor, angles: tf.Tensor) -> tf.Tensor:
    """Rotate images about their centres by `angles` in radians, float32 [b], anticlockwise.

    Bilinear, the outside filled by reflection. The matrix maps output to input coordinates.
    """
    height, width = images.shape[1] - 1, images.shape[2] - 1
    cos, sin = tf.cos(angles), tf.sin(angles)
    zero = tf.zeros_like(angles)
    offset_x = (width - (cos * width - sin * height)) / 2
    offset_y = (height - (sin * width + cos * height)) / 2
    matrices = tf.stack([cos, -sin, offset_x, sin, cos, offset_y, zero, zero], axis=1)
    return keras.ops.image.affine_transform(
        images, matrices, interpolation="bilinear", fill_mode="reflect", data_format="channels_last"
    )


def _flip(images: tf.Tensor, *, axis: int, seed: tf.Tensor, rows: Rows) -> tf.Tensor:
    chosen = tf.random.stateless_uniform([rows.batch_size, 1, 1, 1], seed, alg="philox") < 0.5
    return tf.where(rows.of(chosen, images), tf.reverse(images, axis=[axis]), images)
