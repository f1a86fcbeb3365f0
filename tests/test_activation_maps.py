"""Activation maps against Grad-CAM by its definition, and what a picture shows of one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from job.model.activation_maps import activation_maps
from job.report.overlay import color_scale, overlay
from tests.classifiers import build


def grad_cam(model: keras.Model, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Equations 1 and 2 of Selvaraju et al. (2017), by TensorFlow's gradients; its greatest value 1."""
    maps = keras.Model(model.input, model.get_layer("pooling").input)(images.astype(np.float32))
    with tf.GradientTape() as tape:
        tape.watch(maps)
        logits = model.get_layer("head")(model.get_layer("pooling")(maps))
        logits = tf.concat([-logits, logits], axis=1) if logits.shape[1] == 1 else logits
        chosen = tf.gather(logits, classes, axis=1, batch_dims=1)
    weights = tf.reduce_mean(tape.gradient(chosen, maps), axis=[1, 2])
    found = tf.nn.relu(tf.einsum("nhwd,nd->nhw", maps, weights)).numpy()
    return np.asarray(found / found.max(axis=(1, 2), keepdims=True))


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_maps_are_those_of_the_gradients(num_classes: int) -> None:
    """Of either class of one logit, and of each of three."""
    model = build(num_classes=num_classes, image_size=96).export()
    images = np.random.default_rng(0).integers(0, 256, (6, 96, 96, 3), dtype=np.uint8)
    classes = np.arange(6) % num_classes
    maps = activation_maps(model, images, classes)
    assert (maps.shape, maps.dtype) == ((6, 3, 3), np.float32)
    np.testing.assert_allclose(maps, grad_cam(model, images, classes), atol=1e-4)
    assert maps.max(axis=(1, 2)).tolist() == [1] * 6
    if num_classes == 2:
        against = activation_maps(model, images, 1 - classes)
        assert not (maps * against).any(), "what speaks for one class speaks against the other"


def test_an_image_in_which_nothing_speaks_for_the_class_has_an_empty_map() -> None:
    """And no image has none."""
    model = build().export()
    model.get_layer("head").set_weights([np.zeros((128, 1)), np.ones(1)])
    assert not activation_maps(model, np.full((1, 16, 16, 3), 99, np.uint8), [1]).any()
    assert len(activation_maps(model, [], [])) == 0


def test_a_picture_is_lighter_and_yellower_where_the_map_is_greater() -> None:
    """Of the size of the image, whose own colours are gone and whose shapes are not."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :, 0] = 200
    pixels[10:30, 20:40] = 255
    heat = np.linspace(0, 1, 5, dtype=np.float32)[np.newaxis].repeat(4, axis=0)
    drawn = overlay(pixels, heat).astype(int)
    assert drawn.shape == pixels.shape
    edge = drawn[2]
    lightness = edge @ [0.299, 0.587, 0.114]
    assert (np.diff(lightness) > -1.5).all()
    assert lightness[-1] > lightness[0] + 80
    yellowness = edge[:, 0] - edge[:, 2]
    assert yellowness[-1] > 80
    assert yellowness[0] < 0
    assert (drawn[20, 20:40].sum(axis=1) > drawn[2, 20:40].sum(axis=1) + 200).all(), "a white square is still seen"
    assert color_scale().count("rgb(") == 9
