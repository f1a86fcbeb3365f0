"""Augmentation is a pure function of its seed, and moves pixels as Keras's layers do."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from job.model.augmentation import Flip, Rows, augment, rotate


@pytest.fixture(scope="module")
def images() -> tf.Tensor:
    return tf.constant(np.random.default_rng(0).uniform(0, 255, (64, 15, 15, 3)), tf.float32)


def seed(a: int, b: int) -> tf.Tensor:
    return tf.constant([a, b], tf.int32)


def test_the_same_seed_gives_the_same_images_and_another_others(images: tf.Tensor) -> None:
    """To the last bit, in two graphs of the same function."""
    once, again, other = (
        tf.function(augment)(images, flip="horizontal", rotation=0.1, seed=seed(1, last), rows=Rows(0, 64)).numpy()
        for last in (2, 2, 3)
    )
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)


@pytest.mark.parametrize(
    ("flip", "kinds"),
    [
        ("none", {(1, 1)}),
        ("horizontal", {(1, 1), (1, -1)}),
        ("vertical", {(1, 1), (-1, 1)}),
        ("horizontal_and_vertical", {(1, 1), (1, -1), (-1, 1), (-1, -1)}),
    ],
)
def test_images_are_flipped_at_random_and_not_otherwise_changed(
    images: tf.Tensor, flip: Flip, kinds: set[tuple[int, int]]
) -> None:
    """Each direction by itself, so that both together give four kinds."""
    flipped = augment(images, flip=flip, rotation=0, seed=seed(0, 0), rows=Rows(0, 64)).numpy()
    found = [
        next(kind for kind in kinds if np.array_equal(before[:: kind[0], :: kind[1]], after))
        for before, after in zip(images.numpy(), flipped, strict=True)
    ]
    assert all(found.count(kind) >= 64 / len(kinds) / 4 for kind in kinds)


@pytest.mark.parametrize("factor", [0.03, -0.1, 0.25, 0.4])
def test_a_rotation_moves_pixels_as_keras_does(images: tf.Tensor, factor: float) -> None:
    """The same angle through `keras.layers.RandomRotation`, fill included."""
    layer = keras.layers.RandomRotation((factor, factor), fill_mode="reflect", interpolation="bilinear")
    angles = tf.fill([64], tf.constant(factor * 2 * math.pi, tf.float32))
    np.testing.assert_allclose(rotate(images, angles), layer(images, training=True), atol=0.05)


def test_angles_stay_within_the_limit(images: tf.Tensor) -> None:
    """A rotation of 0.1 is at most 36 degrees: the middle row's ends stay in their quarter."""
    marked = np.zeros((64, 41, 41, 1), np.float32)
    marked[:, 20, 38] = 1
    turned = augment(tf.constant(marked), flip="none", rotation=0.1, seed=seed(5, 5), rows=Rows(0, 64)).numpy()[..., 0]
    rows, columns = np.array([np.unravel_index(image.argmax(), image.shape) for image in turned]).T
    angles = np.degrees(np.arctan2(rows - 20, columns - 20))
    assert np.abs(angles).max() <= 36 + 3
    assert np.ptp(angles) > 50


def test_a_row_is_augmented_alike_however_many_share_the_batch(images: tf.Tensor) -> None:
    """The draws are made for the whole batch: a part of it gets its own, an empty part nothing."""
    together = augment(images, flip="horizontal_and_vertical", rotation=0.1, seed=seed(3, 4), rows=Rows(0, 64)).numpy()
    for start, stop in ((0, 21), (21, 64), (64, 64)):
        part = augment(
            images[start:stop], flip="horizontal_and_vertical", rotation=0.1, seed=seed(3, 4), rows=Rows(start, 64)
        )
        np.testing.assert_array_equal(part.numpy(), together[start:stop])
