"""Augmentation is a pure function of its seed, and moves pixels as Keras's layers do."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from job.model.augmentation import augment, rotate


@pytest.fixture(scope="module")
def images() -> tf.Tensor:
    return tf.constant(np.random.default_rng(0).uniform(0, 255, (64, 15, 15, 3)), tf.float32)


def seed(a: int, b: int) -> tf.Tensor:
    return tf.constant([a, b], tf.int32)


def test_the_same_seed_gives_the_same_images(images: tf.Tensor) -> None:
    """To the last bit, in two graphs of the same function."""
    once = tf.function(augment)(images, flip="horizontal", rotation=0.1, seed=seed(1, 2))
    again = tf.function(augment)(images, flip="horizontal", rotation=0.1, seed=seed(1, 2))
    np.testing.assert_array_equal(once, again)


def test_another_seed_gives_other_images(images: tf.Tensor) -> None:
    """Every step has its own."""
    once = augment(images, flip="horizontal", rotation=0.1, seed=seed(1, 2))
    other = augment(images, flip="horizontal", rotation=0.1, seed=seed(1, 3))
    assert not np.array_equal(once, other)


def test_about_half_of_the_images_are_flipped_and_none_otherwise_changed(images: tf.Tensor) -> None:
    """Each is itself or its mirror image."""
    flipped = augment(images, flip="horizontal", rotation=0, seed=seed(0, 0)).numpy()
    mirrored = 0
    for before, after in zip(images.numpy(), flipped, strict=True):
        same = np.array_equal(before, after)
        assert same or np.array_equal(before[:, ::-1], after)
        mirrored += not same
    assert 16 <= mirrored <= 48


def test_both_flips_together_give_four_kinds(images: tf.Tensor) -> None:
    """The two are drawn independently."""
    flipped = augment(images, flip="horizontal_and_vertical", rotation=0, seed=seed(0, 0)).numpy()
    kinds = set()
    for before, after in zip(images.numpy(), flipped, strict=True):
        for x in (1, -1):
            for y in (1, -1):
                if np.array_equal(before[::y, ::x], after):
                    kinds.add((x, y))
    assert len(kinds) == 4


def test_nothing_asked_for_is_nothing_done(images: tf.Tensor) -> None:
    """FLIP=none and ROTATION=0 leave every pixel."""
    np.testing.assert_array_equal(augment(images, flip="none", rotation=0, seed=seed(0, 0)), images)


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
    turned = augment(tf.constant(marked), flip="none", rotation=0.1, seed=seed(5, 5)).numpy()[..., 0]
    rows, columns = np.array([np.unravel_index(image.argmax(), image.shape) for image in turned]).T
    angles = np.degrees(np.arctan2(rows - 20, columns - 20))
    assert np.abs(angles).max() <= 36 + 3
    assert np.ptp(angles) > 50
