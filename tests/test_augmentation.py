"""Augmentation is a pure function of its seed, and moves pixels as Keras's layers do."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from job.model import colour
from job.model.augmentation import Rows, augment
from job.model.augmentation_policy import OFF, Augmentation, Flip
from job.model.geometry import moved
from job.settings.settings import Settings

EVERYTHING = Augmentation(
    flip="horizontal_and_vertical", rotation=0.1, zoom=0.3, translation=0.2, brightness=0.2, contrast=0.5,
    saturation=0.5, hue=0.1, randaugment_operations=2, randaugment_magnitude=7.0,
)  # fmt: skip
ONE_AT_A_TIME = [
    pytest.param(dataclasses.replace(OFF, **{field.name: getattr(EVERYTHING, field.name)}), id=field.name)
    for field in dataclasses.fields(Augmentation)
    if field.name != "randaugment_magnitude"
]
SLOWLY_ONE_AT_A_TIME = [pytest.param(*one.values, id=one.id, marks=pytest.mark.slow) for one in ONE_AT_A_TIME]


@pytest.fixture(scope="module")
def images() -> tf.Tensor:
    return tf.constant(np.random.default_rng(0).uniform(0, 255, (64, 15, 15, 3)), tf.float32)


def seed(a: int, b: int) -> tf.Tensor:
    return tf.constant([a, b], tf.int32)


def graph_of(augmentation: Augmentation, images: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
    """The augmentation of these images, as the rows of a whole batch, as a function of the seed."""
    rows = Rows(0, len(images))
    return tf.function(lambda drawn: augment(images, augmentation, seed=drawn, rows=rows))


def augmented(images: tf.Tensor, augmentation: Augmentation) -> np.ndarray:
    return graph_of(augmentation, images)(seed(1, 2)).numpy()


# All of them


@pytest.mark.slow
@pytest.mark.parametrize("augmentation", [*ONE_AT_A_TIME, pytest.param(EVERYTHING, id="everything")])
def test_the_same_seed_gives_the_same_images_and_another_others(images: tf.Tensor, augmentation: Augmentation) -> None:
    """To the last bit, in two graphs of the same function; the pixels stay where a photograph has them."""
    one, another = (graph_of(augmentation, images) for _ in range(2))
    once, again, other = one(seed(1, 2)).numpy(), another(seed(1, 2)).numpy(), one(seed(1, 3)).numpy()
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)
    assert (once.min() >= 0, once.max() <= 255, once.shape) == (True, True, images.shape)


@pytest.mark.slow
@pytest.mark.parametrize("augmentation", [*SLOWLY_ONE_AT_A_TIME, pytest.param(EVERYTHING, id="everything")])
def test_a_row_is_augmented_alike_however_many_share_the_batch(images: tf.Tensor, augmentation: Augmentation) -> None:
    """The draws are made for the whole batch: a part of it gets its own, an empty part nothing."""

    @tf.function(input_signature=[tf.TensorSpec([None, *images.shape[1:]]), tf.TensorSpec([], tf.int32)])
    def part(images: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        return augment(images, augmentation, seed=seed(3, 4), rows=Rows(first, 64))

    together = part(images, tf.constant(0)).numpy()
    for first, end in ((0, 21), (21, 64), (33, 34), (64, 64)):
        np.testing.assert_array_equal(part(images[first:end], tf.constant(first)).numpy(), together[first:end])


@pytest.mark.slow
def test_images_differ_in_what_is_done_to_them(images: tf.Tensor) -> None:
    """Equal images become as many different ones."""
    alike = tf.repeat(images[:1], 64, axis=0)
    assert len({image.tobytes() for image in augmented(alike, EVERYTHING)}) == 64


def test_nothing_is_done_unless_it_is_asked_for(images: tf.Tensor) -> None:
    """Not even an operation that gives the same pixels."""
    assert augment(images, OFF, seed=seed(1, 2), rows=Rows(0, 64)) is images


def test_settings_say_what_is_done() -> None:
    """The defaults are the article's; each setting has the name of the field."""
    assert Settings().augmentation() == Augmentation(flip="horizontal", rotation=0.1)
    assert Settings(**dataclasses.asdict(EVERYTHING)).augmentation() == EVERYTHING


# The article's flip and rotation, which runs under way depend on


def recipe_3(images: tf.Tensor, rotation: float, seed: tf.Tensor, rows: Rows) -> tf.Tensor:
    """Flip and rotation as they were before there was any other augmentation, written out."""
    flip_seed, _, angle_seed = tf.unstack(tf.random.split(seed, 3, alg="philox"))
    chosen = tf.random.stateless_uniform([rows.batch_size, 1, 1, 1], flip_seed, alg="philox") < 0.5
    images = tf.where(rows.of(chosen, images), tf.reverse(images, axis=[2]), images)
    limit = rotation * 2 * math.pi
    angles = tf.random.stateless_uniform([rows.batch_size], angle_seed, -limit, limit, alg="philox")
    angles = rows.of(angles, images)
    height, width = images.shape[1] - 1, images.shape[2] - 1
    cos, sin = tf.cos(angles), tf.sin(angles)
    zero = tf.zeros_like(angles)
    offset_x = (width - (cos * width - sin * height)) / 2
    offset_y = (height - (sin * width + cos * height)) / 2
    matrices = tf.stack([cos, -sin, offset_x, sin, cos, offset_y, zero, zero], axis=1)
    return keras.ops.image.affine_transform(
        images, matrices, interpolation="bilinear", fill_mode="reflect", data_format="channels_last"
    )


def test_flip_and_rotation_are_what_they_were(images: tf.Tensor) -> None:
    """The same pixels, bit for bit, by no more operations of any kind: nothing is added that is not used."""

    def now(images: tf.Tensor, rotation: float, seed: tf.Tensor, rows: Rows) -> tf.Tensor:
        return augment(images, Augmentation(flip="horizontal", rotation=rotation), seed=seed, rows=rows)

    results, operations = [], []
    for function in (recipe_3, now):
        graph = tf.function(function, autograph=False)
        results.append([graph(images, 0.1, seed(8, last), Rows(0, 64)).numpy() for last in range(3)])
        concrete = graph.get_concrete_function(images, 0.1, seed(8, 0), Rows(0, 64))
        operations.append(Counter(operation.type for operation in concrete.graph.get_operations()))
    np.testing.assert_array_equal(*results)
    assert not operations[1] - operations[0]


def test_what_is_drawn_for_the_flip_stays(images: tf.Tensor) -> None:
    """Of one seed, as it was recorded before there was any other augmentation, and whatever else is done."""
    for hue in (0.0, 0.01):
        augmentation = Augmentation(flip="horizontal", hue=hue)
        changes = augment(images, augmentation, seed=seed(8, 0), rows=Rows(0, 64)).numpy() - images.numpy()
        is_flipped = np.abs(changes).max(axis=(1, 2, 3)) > 100
        assert "".join(map(str, is_flipped.astype(int))) == RECORDED_FLIPS


RECORDED_FLIPS = "1010011001011110110000010100001110101011100011110100000111100000"


# Where images are moved to


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
    flipped = augment(images, Augmentation(flip=flip), seed=seed(0, 0), rows=Rows(0, 64)).numpy()
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
    np.testing.assert_allclose(moved(images, angles), layer(images, training=True), atol=0.05)


@pytest.mark.parametrize("factor", [-0.7, -0.2, 0.3, 0.9])
def test_a_zoom_moves_pixels_as_keras_does(images: tf.Tensor, factor: float) -> None:
    """Above 0 it zooms out, and the outside is a reflection."""
    layer = keras.layers.RandomZoom((factor, factor), fill_mode="reflect", interpolation="bilinear")
    result = moved(images, tf.zeros([64]), tf.fill([64], 1 + factor))
    np.testing.assert_allclose(result, layer(images, training=True), atol=0.05)


@pytest.mark.parametrize(("down", "right"), [(0.2, -0.1), (-0.55, 0.9)])
def test_a_translation_moves_pixels_as_keras_does(images: tf.Tensor, down: float, right: float) -> None:
    """In fractions of height and width."""
    layer = keras.layers.RandomTranslation((down, down), (right, right), fill_mode="reflect", interpolation="bilinear")
    result = moved(images, tf.zeros([64]), shifts=tf.fill([64, 1], 15.0) * [[down, right]])
    np.testing.assert_allclose(result, layer(images, training=True), atol=0.05)


def test_one_transform_is_rotation_zoom_and_translation_one_after_the_other() -> None:
    """Those of Keras, on an image so smooth that two more interpolations hardly change it, away from its border."""
    y, x = np.mgrid[0:61, 0:61] / 60
    smooth = tf.constant(np.stack([200 * x, 200 * y, 100 * (x + y)], axis=-1)[np.newaxis], tf.float32)
    expected = smooth
    for layer in (
        keras.layers.RandomRotation((0.1, 0.1)),
        keras.layers.RandomZoom((-0.3, -0.3)),
        keras.layers.RandomTranslation((0.1, 0.1), (-0.05, -0.05)),
    ):
        expected = layer(expected, training=True)
    result = moved(smooth, tf.constant([0.2 * math.pi]), tf.constant([0.7]), tf.constant([[6.1, -3.05]]))
    np.testing.assert_allclose(result[0, 12:-12, 12:-12], expected[0, 12:-12, 12:-12], atol=0.1)


def marked(row: int, column: int) -> tf.Tensor:
    """Images [256, 41, 41, 3] with one bright pixel."""
    images = np.zeros((256, 41, 41, 3), np.float32)
    images[:, row, column] = 255
    return tf.constant(images)


def where_it_is(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the brightest pixel, from the centre."""
    rows, columns = np.array([np.unravel_index(image.argmax(), image.shape) for image in images[..., 0]]).T
    return rows - 20, columns - 20


def test_angles_stay_within_the_limit() -> None:
    """A rotation of 0.1 is at most 36 degrees: the middle row's ends stay in their quarter."""
    angles = np.degrees(np.arctan2(*where_it_is(augmented(marked(20, 38), Augmentation(rotation=0.1)))))
    assert np.abs(angles).max() <= 36 + 3
    assert np.ptp(angles) > 60


def test_zooms_go_in_and_out_within_the_limit() -> None:
    """At 0.5, what is seen is half to one and a half of the image; both axes alike."""
    down, right = where_it_is(augmented(marked(26, 26), Augmentation(zoom=0.5)))
    assert np.abs(down - right).max() <= 1
    assert (down.min(), down.max()) == (4, 12)


def test_translations_go_all_ways_within_the_limit() -> None:
    """A quarter of 41 pixels is ten; height and width have their own."""
    down, right = where_it_is(augmented(marked(20, 20), Augmentation(translation=0.25)))
    for shifts in (down, right):
        assert (shifts.min(), shifts.max()) == (-10, 10)
    assert abs(np.corrcoef(down, right)[0, 1]) < 0.2


# Colours

GREY = tf.fill([256, 3, 3, 3], 100.0)


def test_brightness_changes_within_the_limit() -> None:
    """Of a grey image by up to a fifth of white, either way."""
    changes = augmented(GREY, Augmentation(brightness=0.2))[:, 0, 0, 0] - 100
    assert (changes.min(), changes.max()) == (pytest.approx(-51, abs=2), pytest.approx(51, abs=2))


def test_contrast_changes_within_the_limit() -> None:
    """The distance of two values by up to a half of it, either way."""
    halves = tf.concat([GREY, GREY + 20], axis=2)
    changed = augmented(halves, Augmentation(contrast=0.5))
    distances = changed[:, 0, -1, 0] - changed[:, 0, 0, 0]
    assert (distances.min(), distances.max()) == (pytest.approx(10, abs=0.3), pytest.approx(30, abs=0.3))


def test_saturation_changes_within_the_limit() -> None:
    """The distance of a colour to grey by up to a half of it, either way; its hue and value stay."""
    colours = tf.constant([200.0, 150.0, 100.0]) * tf.ones([256, 3, 3, 1])
    pixels = augmented(colours, Augmentation(saturation=0.5))[:, 0, 0]
    distances = pixels[:, 0] - pixels[:, 2]
    assert (distances.min(), distances.max()) == (pytest.approx(50, abs=2), pytest.approx(150, abs=2))
    np.testing.assert_allclose(pixels[:, 0], 200, atol=1e-3)
    np.testing.assert_allclose((pixels[:, 0] - pixels[:, 1]) / distances, 0.5, atol=1e-3)


def test_hue_changes_within_the_limit() -> None:
    """Of red by up to 36 degrees either way: towards magenta, or towards yellow."""
    red = tf.constant([200.0, 0.0, 0.0]) * tf.ones([256, 3, 3, 1])
    pixels = augmented(red, Augmentation(hue=0.1))[:, 0, 0]
    turns = (pixels[:, 1] - pixels[:, 2]) / pixels[:, 0] / 6
    assert (turns.min(), turns.max()) == (pytest.approx(-0.1, abs=0.002), pytest.approx(0.1, abs=0.002))


def test_no_colour_leaves_the_range_of_pixels() -> None:
    """The strongest changes there are, of the strongest colours."""
    corners = np.array([[r, g, b] for r in (0, 255) for g in (0, 127, 255) for b in (0, 255)], np.float32)
    images = tf.constant(np.tile(corners, (64, 1, 1, 1)))
    strongest = Augmentation(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.5)
    changed = augmented(images, strongest)
    assert (changed.min(), changed.max()) == (0, 255)
    assert np.isfinite(changed).all()


@pytest.mark.parametrize(
    ("change", "layer", "arguments", "amount"),
    [
        (colour.brightened, keras.layers.RandomBrightness, {"factor": (0.15, 0.15)}, 0.15),
        (colour.brightened, keras.layers.RandomBrightness, {"factor": (-0.5, -0.5)}, -0.5),
        (colour.contrasted, keras.layers.RandomContrast, {"factor": (-0.4, 0.4)}, 0.4),
        (colour.hue_shifted, keras.layers.RandomHue, {"factor": (1.0, 1.0)}, 0.5),
        (colour.saturated, keras.layers.RandomSaturation, {"factor": (0.25, 0.25), "value_range": (0, 1)}, -2 / 3),
    ],
)
def test_colours_change_as_keras_changes_them(
    images: tf.Tensor, change: Any, layer: Any, arguments: dict[str, Any], amount: float
) -> None:
    """The amount through the whole layer, whose factors are so given that it can draw no other."""
    expected = layer(**arguments)(images, training=True)
    np.testing.assert_allclose(change(images, tf.fill([64], amount)), expected, atol=0.05)


@pytest.mark.parametrize(
    ("change", "adjust", "amount", "argument"),
    [
        (colour.brightened, tf.image.adjust_brightness, -0.2, -0.2),
        (colour.contrasted, tf.image.adjust_contrast, -0.7, 0.3),
        (colour.saturated, tf.image.adjust_saturation, 0.5, 1.5),
        (colour.hue_shifted, tf.image.adjust_hue, -0.2, -0.2),
    ],
)
def test_colours_change_as_tensorflow_changes_them(
    images: tf.Tensor, change: Any, adjust: Any, amount: float, argument: float
) -> None:
    """Its functions for one amount, of pixels from 0 to 1."""
    expected = tf.clip_by_value(adjust(images / 255, argument), 0, 1) * 255
    np.testing.assert_allclose(change(images, tf.fill([64], amount)), expected, atol=0.05)
