"""Random changes of training images as pure functions of a seed.

The same seed gives the same images on every device and after every restart, which Keras's layers, whose seeds are
state, do not promise; the algorithm of the random bits is named for the same reason. Draws are made for a whole batch,
of which each worker uses its rows, so they do not depend on the number of workers. What the numbers mean is as in
Keras's layers, and tests hold them together.
"""

import enum
import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from job.model import colour, draws, geometry, randaugment
from job.model.augmentation_policy import OFF, Augmentation


class Rows(NamedTuple):
    """Which rows of a batch of `batch_size` examples are at hand: those from `first` on. Both are int32 []."""

    first: tf.Tensor | int
    batch_size: tf.Tensor | int

    def of(self, drawn: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
        """Of what was `drawn` for the whole batch, the rows that `like` has."""
        return drawn[self.first : self.first + tf.shape(like)[0]]


class Stream(enum.IntEnum):
    """What random numbers are for. Each has its own, which its number is part of: it must stay."""

    FLIP = 0
    MIRROR = 1
    ROTATION = 2
    ZOOM = 3
    TRANSLATION = 4
    BRIGHTNESS = 5
    CONTRAST = 6
    SATURATION = 7
    HUE = 8
    RANDAUGMENT_CHOICE = 9
    RANDAUGMENT_SIGN = 10


class Draws:
    """Random numbers of the rows that `images` has of a batch, by a seed, int32 [2]."""

    def __init__(self, seed: tf.Tensor, rows: Rows, images: tf.Tensor) -> None:
        self._seed = seed
        self._rows = rows
        self._images = images
        self._first_seeds = draws.split(seed, Stream.ZOOM)

    def coins(self, stream: Stream, *shape: int) -> tf.Tensor:
        """True in half of all cases: bool [b, *shape]."""
        return self._uniform(stream, shape, 0, 1) < 0.5

    def amounts(self, stream: Stream, limit: float, *shape: int) -> tf.Tensor:
        """Between -limit and limit: float32 [b, *shape]."""
        return self._uniform(stream, shape, -limit, limit)

    def choices(self, stream: Stream, number: int, *shape: int) -> tf.Tensor:
        """One of 0, 1, ... number - 1: int32 [b, *shape]."""
        return self._uniform(stream, shape, 0, number, tf.int32)

    def _uniform(
        self, stream: Stream, shape: tuple[int, ...], low: float, high: float, dtype: tf.DType = tf.float32
    ) -> tf.Tensor:
        # Flip, mirror and rotation have seeds of an older scheme, which they keep.
        is_first = stream < len(self._first_seeds)
        seed = self._first_seeds[stream] if is_first else draws.numbered(self._seed, int(stream))
        drawn = draws.uniform([self._rows.batch_size, *shape], seed, low, high, dtype)
        return self._rows.of(drawn, self._images)


Change = Callable[[tf.Tensor, Augmentation, Draws], tf.Tensor]


class Operation(NamedTuple):
    """A random change of images float32 [b, h, w, c], 0..255; done when one of its `settings` is not off."""

    settings: tuple[str, ...]
    change: Change


def augment(images: tf.Tensor, augmentation: Augmentation, *, seed: tf.Tensor, rows: Rows) -> tf.Tensor:
    """Change each image at random, by the rows of `OPERATIONS` in order.

    `images` is float32 [b, h, w, c] from 0 to 255, with c = 3 if colours change, `seed` int32 [2]. Returns float32 of
    the same shape, from 0 to 255.
    """
    random = Draws(seed, rows, images)
    for operation in OPERATIONS:
        if any(getattr(augmentation, setting) != getattr(OFF, setting) for setting in operation.settings):
            images = operation.change(images, augmentation, random)
    return images


def _flipped(images: tf.Tensor, augmentation: Augmentation, random: Draws) -> tf.Tensor:
    if augmentation.flip in ("horizontal", "horizontal_and_vertical"):
        images = tf.where(random.coins(Stream.FLIP, 1, 1, 1), tf.reverse(images, axis=[2]), images)
    if augmentation.flip in ("vertical", "horizontal_and_vertical"):
        images = tf.where(random.coins(Stream.MIRROR, 1, 1, 1), tf.reverse(images, axis=[1]), images)
    return images


def _moved(images: tf.Tensor, augmentation: Augmentation, random: Draws) -> tf.Tensor:
    """Rotated, zoomed and shifted: one transform, since each costs time and sharpness."""
    angles = random.amounts(Stream.ROTATION, augmentation.rotation * 2 * math.pi)
    zooms = shifts = None
    if augmentation.zoom > 0:
        zooms = 1 + random.amounts(Stream.ZOOM, augmentation.zoom)
    if augmentation.translation > 0:
        height, width = images.shape[1], images.shape[2]
        shifts = random.amounts(Stream.TRANSLATION, augmentation.translation, 2) * [float(height), float(width)]
    return geometry.moved(images, angles, zooms, shifts)


def _by_amount(setting: str, stream: Stream, change: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> Operation:
    """`change` by an amount for each image, at most that of the setting either way."""

    def changed(images: tf.Tensor, augmentation: Augmentation, random: Draws) -> tf.Tensor:
        return change(images, random.amounts(stream, getattr(augmentation, setting)))

    return Operation((setting,), changed)


def _randaugmented(images: tf.Tensor, augmentation: Augmentation, random: Draws) -> tf.Tensor:
    number, magnitude = augmentation.randaugment_operations, augmentation.randaugment_magnitude / 10
    choices = random.choices(Stream.RANDAUGMENT_CHOICE, len(randaugment.OPERATIONS), number)
    amounts = tf.where(random.coins(Stream.RANDAUGMENT_SIGN, number), magnitude, -magnitude)
    return randaugment.randaugmented(images, choices, amounts)


OPERATIONS = (
    Operation(("flip",), _flipped),
    Operation(("rotation", "zoom", "translation"), _moved),
    _by_amount("brightness", Stream.BRIGHTNESS, colour.brightened),
    _by_amount("contrast", Stream.CONTRAST, colour.contrasted),
    _by_amount("saturation", Stream.SATURATION, colour.saturated),
    _by_amount("hue", Stream.HUE, colour.hue_shifted),
    Operation(("randaugment_operations",), _randaugmented),
)
"""In the order in which they are done."""
