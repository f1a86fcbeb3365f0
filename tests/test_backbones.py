"""Backbones against Keras's own: weights as they are published, and networks of other people's making."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from job.errors import InvalidSettings, WeightsUnusable
from job.model import networks
from job.model.backbones import IMAGENET_MEAN, IMAGENET_STD
from tests.classifiers import build
from tests.test_settings import read

SIZE = 32


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), dtype=np.uint8)


def network_of_keras(name: str, weights: str | None = None) -> keras.Model:
    keras.utils.set_random_seed(7)
    return getattr(keras.applications, name)(include_top=False, weights=weights, input_shape=(SIZE, SIZE, 3))


def published(network: keras.Model, path: Path) -> Path:
    """A file of weights in the layout of those that Keras downloads: HDF5, layer by layer."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in network.layers]
        for layer in network.layers:
            group = file.create_group(layer.name)
            weights = [*layer.trainable_weights, *layer.non_trainable_weights]
            group.attrs["weight_names"] = [f"{weight.name}:0".encode() for weight in weights]
            for weight in weights:
                group[f"{weight.name}:0"] = weight.numpy()
    return path


def pooled(network: keras.Model, inputs: np.ndarray) -> np.ndarray:
    return np.array(network(inputs, training=False)).mean(axis=(1, 2))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "module"), [("VGG16", "vgg16"), ("VGG19", "vgg19"), ("ResNet50", "resnet")])
def test_a_network_of_bgr_channels_computes_what_keras_computes(
    images: np.ndarray, tmp_path: Path, name: str, module: str
) -> None:
    """From published weights, from those that Keras saved, and from a model that a run exported."""
    reference = network_of_keras(name)
    preprocessed = getattr(keras.applications, module).preprocess_input(images.astype(np.float32))
    expected = pooled(reference, preprocessed)
    reference.save_weights(tmp_path / "saved.weights.h5")
    reference.save(tmp_path / "saved.keras")
    classifier = build(backbone=name, image_size=SIZE, weights=str(published(reference, tmp_path / "published.h5")))
    exported = classifier.export()
    exported.save(tmp_path / "exported.keras")
    for file in ("published.h5", "saved.weights.h5", "saved.keras", "exported.keras"):
        features = build(backbone=name, image_size=SIZE, weights=str(tmp_path / file)).features(images)
        np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max(), err_msg=file)
    loaded = keras.saving.load_model(tmp_path / "exported.keras")
    logits = classifier.logits(tf.constant(expected))
    np.testing.assert_allclose(loaded(images.astype(np.float32), training=False), logits, rtol=1e-3, atol=1e-4)


@pytest.fixture
def efficientnet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of EfficientNetB0 as they are published, which Keras then finds as its ImageNet weights."""
    network = network_of_keras("EfficientNetB0")
    (normalization,) = (layer for layer in network.layers if isinstance(layer, keras.layers.Normalization))
    normalization.set_weights([np.array(IMAGENET_MEAN), np.array(IMAGENET_STD), np.array(0)])
    path = published(network, tmp_path / "published.h5")
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", lambda *_, **__: str(path))
    return path


@pytest.mark.slow
def test_the_first_efficientnet_computes_what_keras_computes_with_its_imagenet_weights(
    images: np.ndarray, efficientnet: Path, tmp_path: Path
) -> None:
    """However the weights come, and as it is exported; a network that Keras builds without them computes another."""
    reference = network_of_keras("EfficientNetB0", weights="imagenet")
    expected = pooled(reference, images)
    assert not np.allclose(
        pooled(network_of_keras("EfficientNetB0", weights=str(efficientnet)), images), expected, rtol=0.1
    )
    reference.save(tmp_path / "saved.keras")
    networks.save_imagenet_weights("EfficientNetB0", SIZE, tmp_path / "mirrored.weights.h5")
    classifier = build(backbone="EfficientNetB0", image_size=SIZE, weights="imagenet")
    classifier.export().save(tmp_path / "exported.keras")
    files = [str(tmp_path / name) for name in ("published.h5", "mirrored.weights.h5", "saved.keras", "exported.keras")]
    for weights in ("imagenet", *files):
        features = build(backbone="EfficientNetB0", image_size=SIZE, weights=weights).features(images)
        np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max(), err_msg=weights)
    loaded = keras.saving.load_model(tmp_path / "exported.keras")
    logits = classifier.logits(tf.constant(expected))
    np.testing.assert_allclose(loaded(images.astype(np.float32), training=False), logits, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_an_efficientnet_of_another_normalization_is_refused(tmp_path: Path) -> None:
    """Such as one that was trained from the start, on pixels of 0 to 1."""
    network_of_keras("EfficientNetB0").save_weights(tmp_path / "own.weights.h5")
    with pytest.raises(WeightsUnusable, match="not as ImageNet's were"):
        build(backbone="EfficientNetB0", image_size=SIZE, weights=str(tmp_path / "own.weights.h5"))


def custom_network(size: int | None = None) -> keras.Model:
    """With what its owner may have: statistics of pixels, an operation, a frozen layer, moved BatchNorm statistics."""
    keras.utils.set_random_seed(7)
    normalization = keras.layers.Normalization()
    normalization.adapt(np.random.default_rng(1).uniform(0, 255, (8, SIZE, SIZE, 3)))
    inputs = keras.Input((size, size, 3))
    x = normalization(inputs)
    x = keras.layers.Conv2D(8, 3, strides=2, use_bias=False, trainable=False)(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.ops.leaky_relu(x, 0.1) * 2.0
    network = keras.Model(inputs, keras.layers.Conv2D(5, 3)(x))
    batch_norm = network.layers[3]
    batch_norm.set_weights([np.full(8, value) for value in (1.5, 0.5, 0.3, 2.0)])
    return network


@pytest.mark.parametrize("size", [None, SIZE])
def test_a_network_from_a_file_computes_what_it_did(images: np.ndarray, tmp_path: Path, size: int | None) -> None:
    """All its weights train but for statistics, and what is exported loads without the file."""
    network = custom_network(size)
    expected = pooled(network, images)
    network.save(tmp_path / "network.keras")
    classifier = build(backbone="Custom", image_size=SIZE, weights=str(tmp_path / "network.keras"))
    np.testing.assert_allclose(classifier.features(images), expected, rtol=1e-4, atol=1e-5)
    frozen = classifier.features_training(classifier.num_layers)
    np.testing.assert_allclose(frozen(images), expected, rtol=1e-4, atol=1e-5)
    trained = [variable.path.split("/")[-1] for variable in classifier.trainable_variables()[:-2]]
    assert trained == ["kernel", "gamma", "beta", "kernel", "bias"]
    assert all(None not in layer["output_shape"] for layer in classifier.structure())
    classifier.export().save(tmp_path / "exported.keras")
    loaded = keras.saving.load_model(tmp_path / "exported.keras")
    logits = classifier.logits(tf.constant(expected))
    np.testing.assert_allclose(loaded(images.astype(np.float32), training=False), logits, rtol=1e-4, atol=1e-5)


def test_a_network_from_a_file_computes_in_bfloat16_and_is_exported_in_float32(tmp_path: Path) -> None:
    """As a backbone of a name does."""
    custom_network().save(tmp_path / "network.keras")
    classifier = build(
        backbone="Custom", image_size=SIZE, weights=str(tmp_path / "network.keras"), policy="mixed_bfloat16"
    )
    assert {layer.compute_dtype for layer in classifier.backbone.layers[1:]} == {"bfloat16"}
    exported = classifier.export()
    assert {layer.compute_dtype for layer in (*exported.layers, *exported.layers[2].layers)} == {"float32"}


def digest_of(network: keras.Model, path: Path, policy: str = "float32") -> str:
    network.save(path)
    return build(backbone="Custom", image_size=SIZE, weights=str(path), policy=policy).digest(with_head=False)


def test_a_network_from_a_file_is_known_by_what_it_computes(tmp_path: Path) -> None:
    """The same weights behind another scale are another backbone; at another precision they are the same one."""

    def scaled(scale: float) -> keras.Model:
        keras.utils.set_random_seed(7)
        inputs = keras.Input((SIZE, SIZE, 3), name="pixels")
        x = keras.layers.Rescaling(scale, name="rescaling")(inputs)
        return keras.Model(inputs, keras.layers.Conv2D(4, 3, name="convolution")(x))

    path = tmp_path / "network.keras"
    digest = digest_of(scaled(1 / 255), path)
    assert digest == digest_of(scaled(1 / 255), path)
    assert digest == digest_of(scaled(1 / 255), path, "mixed_bfloat16")
    assert digest != digest_of(scaled(2 / 255), path)
    network = custom_network()
    assert digest_of(network, path) == digest_of(network, path)


def test_a_network_of_attention_is_trained_and_exported(images: np.ndarray, tmp_path: Path) -> None:
    """Its layer has several layers inside; each of their weights has a name of its own."""
    inputs = keras.Input((SIZE, SIZE, 3))
    tokens = keras.layers.Reshape((64, 8))(keras.layers.Conv2D(8, 4, strides=4)(inputs))
    attended = keras.layers.MultiHeadAttention(num_heads=2, key_dim=4)(tokens, tokens)
    network = keras.Model(inputs, keras.layers.Reshape((8, 8, 8))(attended))
    network.save(tmp_path / "network.keras")
    classifier = build(backbone="Custom", image_size=SIZE, weights=str(tmp_path / "network.keras"))
    np.testing.assert_allclose(classifier.features(images), pooled(network, images), rtol=1e-3, atol=1e-3)
    assert len(classifier.named_variables(with_head=False)) == len(network.weights)
    shipped = classifier.export()(images.astype(np.float32), training=False)
    np.testing.assert_allclose(shipped, classifier.logits(classifier.features(images)), rtol=1e-3, atol=1e-3)


class Unknown(keras.layers.Layer):
    def call(self, inputs: Any) -> Any:
        return inputs


def one_layer(layer: keras.layers.Layer) -> keras.Model:
    inputs = keras.Input((SIZE, SIZE, 3))
    return keras.Model(inputs, layer(inputs))


def shared_layer() -> keras.Model:
    inputs = keras.Input((SIZE, SIZE, 3))
    convolution = keras.layers.Conv2D(3, 3, name="convolution")
    return keras.Model(inputs, keras.layers.BatchNormalization()(convolution(convolution(inputs))))


@pytest.mark.parametrize(
    ("network", "problem"),
    [
        (lambda: one_layer(keras.layers.Lambda(lambda x: x + 1)), "unsafe"),
        (lambda: one_layer(Unknown()), "Unknown"),
        (lambda: one_layer(keras.layers.GlobalAveragePooling2D()), r"\(None, 3\)"),
        (lambda: one_layer(one_layer(keras.layers.Conv2D(3, 3))), "a model inside"),
        (shared_layer, "its layer convolution is called more than once"),
        (lambda: custom_network(64), "THAW_IMAGE_SIZE=32"),
        (lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]), r"\(None, 4\)"),
    ],
    ids=["lambda", "unknown layer", "features", "nested", "shared", "other size", "no images"],
)
def test_a_network_that_cannot_be_used_is_refused(
    tmp_path: Path, network: Callable[[], keras.Model], problem: str
) -> None:
    """By the name of its file, and with a reason; nothing of it is run."""
    path = tmp_path / "network.keras"
    network().save(path)
    # It is registered in this process, which has not made the file.
    keras.saving.get_custom_objects().clear()
    with pytest.raises(WeightsUnusable, match=problem) as caught:
        build(backbone="Custom", image_size=SIZE, weights=str(path))
    assert str(path) in caught.value.message


@pytest.mark.parametrize("weights", ["imagenet", "none", "/tmp/x.weights.h5"])
def test_a_custom_backbone_wants_a_file(weights: str) -> None:
    """Before anything is loaded."""
    with pytest.raises(InvalidSettings, match=r"Custom is the network of a \.keras file"):
        read(THAW_BACKBONE="Custom", THAW_WEIGHTS=weights)


def test_a_network_whose_output_is_missing_is_refused(tmp_path: Path) -> None:
    """Keras raises a RuntimeError for it."""
    path, damaged = tmp_path / "network.keras", tmp_path / "damaged.keras"
    one_layer(keras.layers.Conv2D(3, 3)).save(path)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(damaged, "w") as copy:
        for name in whole.namelist():
            content = whole.read(name)
            if name == "config.json":
                config = json.loads(content)
                config["config"]["output_layers"] = [["nowhere", 0, 0]]
                content = json.dumps(config).encode()
            copy.writestr(name, content)
    with pytest.raises(WeightsUnusable, match="nowhere"):
        build(backbone="Custom", image_size=SIZE, weights=str(damaged))


def test_weights_that_cannot_be_downloaded_are_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With the address, the reason and the proxy; Keras announces nothing on standard output, which is the log."""
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))
    for name in ("https_proxy", "no_proxy"):
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.setenv(name, "http://127.0.0.1:9" if name == "https_proxy" else "")
    # It keeps the proxies of its first request in this process, which is not to be ours.
    monkeypatch.setattr("urllib.request._opener", None)
    keras.config.enable_interactive_logging()
    expected = r"failure on https://\S+\.h5: .*Connection refused"
    with pytest.raises(WeightsUnusable, match=expected) as caught:
        networks.construct("MobileNetV2", SIZE, "imagenet")
    assert "https_proxy=http://127.0.0.1:9 is in use" in caught.value.hint
    assert capfd.readouterr() == ("", "")
