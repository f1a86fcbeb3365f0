"""Mixing each image with another: mixup and CutMix, as pure functions of a seed.

The caller provides the other images, and mixes the losses of both labels by the share of the own one. Draws are made
for a whole batch, of which each worker uses its rows, as those of `augmentation` are.
"""

import numpy as np
import tensorflow as tf

from job.model import draws
from job.model.augmentation import Rows
from job.model.colour import for_pixels


def beta_shares(alpha: float, seed: tf.Tensor, rows: Rows, like: tf.Tensor) -> tf.Tensor:
    """The share of each example's own image and label, drawn from Beta(alpha, alpha): float32 [b], 0..1.

    `alpha` is above 0, `seed` int32 [2]; `like` has the b rows at hand, in any shape. A beta variable is
    G1 / (G1 + G2) of two gamma variables, and Gamma(alpha) is Gamma(alpha + 1) * U ** (1 / alpha) (Marsaglia and Tsang
    2000, section 6). In logarithms, so that a small alpha, where both are 0 in float64, does not give 0 / 0; with one
    division by alpha, so that the smallest does not give the difference of two infinities.
    """
    gamma_seed, uniform_seed = draws.split(seed, 2)
    shape = [rows.batch_size, 2]
    gammas = draws.gamma(shape, gamma_seed, alpha + 1)
    uniforms = 1 - draws.uniform(shape, uniform_seed, dtype=tf.float64)
    of_gammas, of_uniforms = (tf.math.log(drawn[:, 0]) - tf.math.log(drawn[:, 1]) for drawn in (gammas, uniforms))
    shares = tf.sigmoid(of_gammas + of_uniforms / alpha)
    return tf.cast(rows.of(shares, like), tf.float32)


def mixup(images: tf.Tensor, partners: tf.Tensor, shares: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Each image blended with its partner (Zhang et al. 2018, arXiv:1710.09412).

    `images` and `partners` are numbers [b, h, w, c], `shares` float32 [b] those of `images`. Returns float32
    [b, h, w, c] and `shares`.
    """
    images, partners = tf.cast(images, tf.float32), tf.cast(partners, tf.float32)
    return partners + (images - partners) * for_pixels(shares), shares


def cutmix(
    images: tf.Tensor, partners: tf.Tensor, shares: tf.Tensor, seed: tf.Tensor, rows: Rows
) -> tuple[tf.Tensor, tf.Tensor]:
    """Each image with a box of its partner pasted in at the same place (Yun et al. 2019, arXiv:1905.04899).

    `images` and `partners` are numbers [b, h, w, c], `shares` float32 [b] those of `images`, `seed` int32 [2]. The box
    has the shape of the image and 1 - share of its area. Its centre is any pixel, and what is outside of the image is
    cut off. Returns float32 [b, h, w, c], and the share of the area that is left of each of `images`, float32 [b].
    """
    images, partners = tf.cast(images, tf.float32), tf.cast(partners, tf.float32)
    size = tf.constant(images.shape[1:3].as_list(), tf.float32)
    drawn = draws.uniform([rows.batch_size, 2], seed)
    centres = tf.floor(rows.of(drawn, images) * size)
    halves = tf.floor(tf.floor(size * tf.sqrt(1 - shares)[:, tf.newaxis]) / 2)
    first, end = tf.maximum(centres - halves, 0), tf.minimum(centres + halves, size)
    is_row, is_column = (
        (pixels >= first[:, axis, tf.newaxis]) & (pixels < end[:, axis, tf.newaxis])
        for axis, pixels in enumerate(np.arange(length, dtype=np.float32) for length in images.shape[1:3])
    )
    is_pasted = is_row[:, :, tf.newaxis, tf.newaxis] & is_column[:, tf.newaxis, :, tf.newaxis]
    return tf.where(is_pasted, partners, images), 1 - tf.reduce_prod(end - first, axis=1) / tf.reduce_prod(size)


def mix(
    images: tf.Tensor, partners: tf.Tensor, *, mixup_alpha: float, cutmix_alpha: float, seed: tf.Tensor, rows: Rows
) -> tuple[tf.Tensor, tf.Tensor]:
    """Each image mixed with its partner, in the way whose alpha is above 0, with shares from Beta(alpha, alpha).

    If both are, each image is mixed in one of the two ways, with equal probability (as `Mixup` of timm with
    `mode="elem"` and `switch_prob=0.5`). Takes and returns what `mixup` and `cutmix` do.
    """
    mixup_seed, cutmix_seed, box_seed, switch_seed = draws.split(seed, 4)
    ways = []
    if mixup_alpha > 0:
        ways.append(mixup(images, partners, beta_shares(mixup_alpha, mixup_seed, rows, images)))
    if cutmix_alpha > 0:
        shares = beta_shares(cutmix_alpha, cutmix_seed, rows, images)
        ways.append(cutmix(images, partners, shares, box_seed, rows))
    if len(ways) == 1:
        return ways[0]
    (blended, blended_shares), (pasted, pasted_shares) = ways
    drawn = draws.uniform([rows.batch_size], switch_seed)
    is_pasted = rows.of(drawn, images) < 0.5
    mixed = tf.where(for_pixels(is_pasted), pasted, blended)
    return mixed, tf.where(is_pasted, pasted_shares, blended_shares)
