"""Folding: the same function of the same variables, with the same gradients."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from job.model import networks
from job.model.backbones import BACKBONES
from job.model.folding import folded
from tests.conftest import REPOSITORY

SIZE = {"Tiny": 32} | {name: max(32, spec.min_image_size) for name, spec in BACKBONES.items()}


def network_of(name: str) -> keras.Model:
    """A backbone with random weights and statistics that are far from those that fold into nothing."""
    keras.utils.set_random_seed(0)
    size = SIZE[name]
    network = networks.construct(name, size)
    random = np.random.default_rng(0)
    for layer in batch_norms(network):
        for variable in layer.weights:
            low, high = (0.5, 1.5) if variable.name in ("gamma", "moving_variance") else (-0.3, 0.3)
            variable.assign(random.uniform(low, high, variable.shape))
    return network


def batch_norms(network: keras.Model) -> list[keras.layers.BatchNormalization]:
    return [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]


def maps_and_gradients(network: keras.Model, variables: list[keras.Variable]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The maps of two random images in -1..1, and the gradients of a function of them."""
    size = network.input_shape[1]
    images = tf.constant(np.random.default_rng(1).uniform(-1, 1, (2, size, size, 3)), tf.float32)

    @tf.function(autograph=False)
    def compute() -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            maps = network(images, training=False)
            loss = tf.reduce_mean(tf.sin(maps / (1e-6 + tf.stop_gradient(tf.math.reduce_std(maps)))))
        return maps, tape.gradient(loss, [variable.value for variable in variables])

    maps, gradients = compute()
    return maps.numpy(), [gradient.numpy() for gradient in gradients]


NUM_FOLDED = {
    "Tiny": 5, "Xception": 40, "MobileNet": 27, "MobileNetV2": 52, "MobileNetV3Small": 34, "InceptionV3": 94,
    "InceptionResNetV2": 204, "ResNet50V2": 32, "DenseNet121": 59, "EfficientNetV2B0": 59, "NASNetMobile": 188,
    "ResNet50": 53, "EfficientNetB0": 49,
}  # fmt: skip
"""How many BatchNorms follow a convolution of their own."""


FAST = ("Tiny",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in NUM_FOLDED]
)
def test_a_folded_network_computes_the_same_with_the_same_gradients(name: str) -> None:
    """Of every variable that trains, gamma and beta among them."""
    network = network_of(name)
    short = folded(network)
    assert len(batch_norms(network)) - len(batch_norms(short)) == NUM_FOLDED[name]
    variables = network.trainable_weights
    maps, gradients = maps_and_gradients(network, variables)
    folded_maps, folded_gradients = maps_and_gradients(short, variables)
    np.testing.assert_allclose(folded_maps, maps, rtol=1e-3, atol=1e-4 * np.abs(maps).max())
    scale = np.median([np.linalg.norm(gradient) for gradient in gradients])
    for variable, gradient, other in zip(variables, gradients, folded_gradients, strict=True):
        error = np.linalg.norm(gradient - other) / (np.linalg.norm(gradient) + 1e-3 * scale)
        assert error < 3e-2, variable.path


def test_a_frozen_network_has_read_its_variables_once() -> None:
    """The other sees the change; the first stays as it was. The variables stay those of the network."""
    network = network_of("Tiny")
    paths = [variable.path for variable in network.weights]
    images = np.random.default_rng(1).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    frozen, live = folded(network, num_frozen=len(network.layers)), folded(network)
    before = frozen(images).numpy()
    np.testing.assert_array_equal(before, live(images))
    gamma = batch_norms(network)[0].gamma
    gamma.assign(gamma.value * 2)
    np.testing.assert_array_equal(frozen(images), before)
    assert not np.allclose(live(images), before)
    assert [variable.path for variable in network.weights] == paths


def test_a_network_without_such_a_batch_norm_is_left_alone() -> None:
    """ConvNeXt and VGG have none; here another layer reads the convolution too."""
    inputs = keras.Input((8, 8, 3))
    maps = keras.layers.Conv2D(4, 3, padding="same")(inputs)
    network = keras.Model(inputs, keras.layers.Add()([maps, keras.layers.BatchNormalization()(maps)]))
    activated = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3, activation="relu")(inputs))
    for unchanged in (network, keras.Model(inputs, activated)):
        assert folded(unchanged) is unchanged


RESIDUAL = """
import keras, numpy as np, tensorflow as tf
from job.model.folding import folded
inputs = keras.Input((32, 32, 3))
maps = keras.layers.Conv2D(8, 3, padding="same")(inputs)
for _ in range(3):
    x = keras.layers.Conv2D(8, 3, padding="same", use_bias=False)(keras.layers.Activation("relu")(maps))
    x = keras.layers.Activation("relu")(keras.layers.BatchNormalization()(x))
    x = keras.layers.Conv2D(8, 3, padding="same", use_bias=False)(x)
    maps = keras.layers.Add()([keras.layers.BatchNormalization()(x), maps])
network = folded(keras.Model(inputs, maps), num_frozen=100)
tf.function(lambda images: network(images, training=False), autograph=False)(np.zeros((2, 32, 32, 3), np.float32))
"""


@pytest.mark.slow
def test_grappler_does_not_give_up_a_residual_network() -> None:
    """It says so on standard error, and then fuses nothing."""
    done = subprocess.run([sys.executable, "-c", RESIDUAL], cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "remapper failed" not in done.stderr


def test_it_compiles_with_xla_too() -> None:
    """Which knows what keeps Grappler off a residual sum."""
    inputs = keras.Input((16, 16, 3))
    maps = keras.layers.Conv2D(4, 3, padding="same")(inputs)
    summed = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3, padding="same", use_bias=False)(maps))
    network = keras.Model(inputs, keras.layers.Add()([summed, maps]))
    images = np.random.default_rng(1).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    compiled = tf.function(lambda batch: folded(network)(batch, training=False), jit_compile=True, autograph=False)
    np.testing.assert_allclose(compiled(images), network(images, training=False), rtol=1e-4, atol=1e-5)
