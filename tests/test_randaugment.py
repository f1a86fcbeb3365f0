"""RandAugment: each operation against Pillow's or Keras's, and which of them an image goes through."""

import math
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from job.model import randaugment
from job.model.augmentation import Rows, augment
from job.model.augmentation_policy import Augmentation
from job.model.randaugment import OPERATIONS, randaugmented

SIZE = 40


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Photograph-like: smooth, with noise, of different ranges; one of a single colour."""
    random = np.random.default_rng(0)
    smooth = tf.image.resize(random.uniform(0, 255, (8, 5, 5, 3)), (SIZE, SIZE), "bicubic").numpy()
    noisy = smooth * np.linspace(0.3, 1, 8)[:, None, None, None] + random.normal(0, 4, smooth.shape)
    noisy[-1] = 77
    return np.clip(noisy, 0, 255).astype(np.uint8)


def changed(name: str, images: np.ndarray, amount: float) -> np.ndarray:
    """By one operation, all alike."""
    return OPERATIONS[name](tf.constant(images, tf.float32), tf.fill([len(images)], amount)).numpy()


def by_pillow(images: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(change(Image.fromarray(image))) for image in images]).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "amount", "change", "tolerance"),
    [
        ("Identity", 0.9, lambda image: image, 0),
        ("AutoContrast", 0.9, ImageOps.autocontrast, 1),
        ("Equalize", 0.9, ImageOps.equalize, 0),
        ("Posterize", 0.9, lambda image: ImageOps.posterize(image, 4), 0),
        ("Posterize", -0.5, lambda image: ImageOps.posterize(image, 6), 0),
        ("Solarize", 0.25, lambda image: ImageOps.solarize(image, 192), 0),
        ("Solarize", -0.75, lambda image: ImageOps.solarize(image, 64), 0),
        ("Color", 0.5, lambda image: ImageEnhance.Color(image).enhance(1.45), 2),
        ("Color", -1.0, lambda image: ImageEnhance.Color(image).enhance(0.1), 2),
        ("Brightness", 0.5, lambda image: ImageEnhance.Brightness(image).enhance(1.45), 1),
        ("Brightness", -1.0, lambda image: ImageEnhance.Brightness(image).enhance(0.1), 1),
        ("Sharpness", 1.0, lambda image: ImageEnhance.Sharpness(image).enhance(1.9), 2),
        ("Sharpness", -0.5, lambda image: ImageEnhance.Sharpness(image).enhance(0.55), 2),
    ],
)
def test_an_operation_is_that_of_pillow(
    images: np.ndarray, name: str, amount: float, change: Callable[[Image.Image], Image.Image], tolerance: float
) -> None:
    """Which the authors used; apart from rounding, since Pillow's pixels are whole numbers."""
    np.testing.assert_allclose(changed(name, images, amount), by_pillow(images, change), atol=tolerance)


def test_contrast_is_that_of_keras(images: np.ndarray) -> None:
    """Pillow takes the mean of the grey image for all channels, Keras that of each channel."""
    expected = keras.layers.RandomContrast((-0.45, 0.45))(images.astype(np.float32), training=True)
    np.testing.assert_allclose(changed("Contrast", images, 0.5), expected, atol=0.01)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("Rotate", keras.layers.RandomRotation((0.5 / 12, 0.5 / 12))),
        ("TranslateX", keras.layers.RandomTranslation((0, 0), (75 / 331, 75 / 331))),
        ("TranslateY", keras.layers.RandomTranslation((75 / 331, 75 / 331), (0, 0))),
    ],
)
def test_a_geometric_operation_is_that_of_keras(images: np.ndarray, name: str, layer: keras.layers.Layer) -> None:
    """Half of the largest: 15 degrees, and 75 of 331 pixels."""
    pixels = images.astype(np.float32)
    np.testing.assert_allclose(changed(name, images, 0.5), layer(pixels, training=True), atol=0.1)


@pytest.mark.parametrize("amount", [0.5, -1.0])
@pytest.mark.parametrize("name", ["ShearX", "ShearY"])
def test_a_shear_is_that_of_pillow(images: np.ndarray, name: str, amount: float) -> None:
    """About the centre of the image, away from the outside, which Pillow leaves black."""
    shear, middle = 0.3 * amount, SIZE / 2
    matrix = (1, shear, -shear * middle, 0, 1, 0) if name == "ShearX" else (1, 0, 0, shear, 1, -shear * middle)

    def sheared(image: Image.Image) -> Image.Image:
        return image.transform((SIZE, SIZE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)

    inner = slice(7, -7)
    expected = by_pillow(images, sheared)[:, inner, inner]
    np.testing.assert_allclose(changed(name, images, amount)[:, inner, inner], expected, atol=2)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("AutoContrast", "Equalize", "Solarize")])
def test_the_smallest_magnitude_changes_nothing(images: np.ndarray, name: str) -> None:
    """But for the operations that have no magnitude, and Solarize, which inverts from 256 on: nothing, too."""
    np.testing.assert_allclose(changed(name, images, 0.0), images, atol=1e-3)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_greatest_magnitude_gives_pixels(images: np.ndarray, name: str) -> None:
    """From 0 to 255, either way, also of black, of white and of a single colour."""
    extremes = np.stack([np.full((SIZE, SIZE, 3), value, np.uint8) for value in (0, 255)])
    for amount in (1.0, -1.0):
        result = changed(name, np.concatenate([images, extremes]), amount)
        assert (result.min() >= 0, result.max() <= 255) == (True, True)


def test_an_image_goes_through_its_own_operations_in_order(images: np.ndarray) -> None:
    """Whatever the others of the batch go through."""
    names = list(OPERATIONS)
    choices = np.random.default_rng(3).integers(0, len(names), (8, 3))
    amounts = np.random.default_rng(4).uniform(-1, 1, (8, 3)).astype(np.float32)
    results = randaugmented(tf.constant(images, tf.float32), tf.constant(choices), tf.constant(amounts)).numpy()
    for image, result, chosen, given in zip(images, results, choices, amounts, strict=True):
        expected = image[np.newaxis].astype(np.float32)
        for choice, amount in zip(chosen, given, strict=True):
            expected = OPERATIONS[names[choice]](tf.constant(expected), tf.constant([amount])).numpy()
        np.testing.assert_array_equal(result, expected[0])


def test_every_operation_is_as_likely_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each leaves a mark of its own, with the amount that it was given."""
    marks = {
        name: (lambda images, amounts, mark=mark: images + 100 * mark + amounts[:, None, None, None])
        for mark, name in enumerate(OPERATIONS, start=1)
    }
    monkeypatch.setattr(randaugment, "OPERATIONS", marks)
    number = 14 * 400
    augmentation = Augmentation(randaugment_operations=1, randaugment_magnitude=4.0)
    blank = tf.zeros([number, 1, 1, 3])
    left = augment(blank, augmentation, seed=tf.constant([1, 2]), rows=Rows(0, number)).numpy()[:, 0, 0, 0]
    counts = np.bincount(np.round(left / 100).astype(int), minlength=15)[1:]
    assert counts.min() > 400 - 5 * math.sqrt(400)
    assert counts.max() < 400 + 5 * math.sqrt(400)
    amounts = left - 100 * np.round(left / 100)
    np.testing.assert_allclose(np.abs(amounts), 0.4, atol=1e-3)
    assert np.mean(amounts > 0) == pytest.approx(0.5, abs=0.03)
