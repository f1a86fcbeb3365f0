"""Images moved by one affine transform: bilinear, the outside filled by reflection."""

import tensorflow as tf

from job.model.draws import HOST


def moved(
    images: tf.Tensor, angles: tf.Tensor, zooms: tf.Tensor | None = None, shifts: tf.Tensor | None = None
) -> tf.Tensor:
    """Rotate and zoom images about their centres, then shift them, with one interpolation.

    `images` is float32 [b, h, w, c], `angles` float32 [b] in radians, anticlockwise; `zooms` float32 [b] is the part of
    the image that is seen, so above 1 it becomes smaller; `shifts` float32 [b, 2] is in pixels, down and right. The
    senses are those of `keras.layers.RandomRotation`, `RandomZoom` and `RandomTranslation`. Returns float32 of the same
    shape.
    """
    height, width = images.shape[1] - 1, images.shape[2] - 1
    # The matrix maps output to input coordinates, of which x is the first.
    cos, sin = tf.cos(angles), tf.sin(angles)
    if zooms is not None:
        cos, sin = cos * zooms, sin * zooms
    offset_x = (width - (cos * width - sin * height)) / 2
    offset_y = (height - (sin * width + cos * height)) / 2
    if shifts is not None:
        down, right = tf.unstack(shifts, axis=1)
        offset_x -= cos * right - sin * down
        offset_y -= sin * right + cos * down
    return _transformed(images, cos, -sin, offset_x, sin, cos, offset_y)


def sheared(images: tf.Tensor, shears: tf.Tensor, *, axis: int) -> tf.Tensor:
    """Shear images about their centres along an `axis`, 1 (rows move up or down) or 2 (left or right).

    `images` is float32 [b, h, w, c], `shears` float32 [b] the pixels by which the next row or column is moved. Returns
    float32 of the same shape.
    """
    one, zero = tf.ones_like(shears), tf.zeros_like(shears)
    if axis == 1:
        return _transformed(images, one, zero, zero, shears, one, -shears * (images.shape[2] - 1) / 2)
    return _transformed(images, one, shears, -shears * (images.shape[1] - 1) / 2, zero, one, zero)


def _transformed(images: tf.Tensor, *matrix: tf.Tensor) -> tf.Tensor:
    """By the six numbers of the first two rows of a matrix, each float32 [b]."""
    zero = tf.zeros_like(matrix[0])
    with tf.device(HOST):
        # Where a kernel for GPUs reads it: a constant beside the images would come back from the GPU in every step.
        no_fill = tf.constant(0.0)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=images, transforms=tf.stack([*matrix, zero, zero], axis=1), output_shape=images.shape[1:3],
        fill_value=no_fill, interpolation="BILINEAR", fill_mode="REFLECT",
    )  # fmt: skip
    return tf.ensure_shape(moved, images.shape)
