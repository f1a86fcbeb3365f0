"""The classifier: weights that are the right ones, random draws from a seed, and a model that is what was trained."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from job.errors import WeightsUnusable
from job.model.augmentation import Rows
from job.model.backbones import BACKBONES
from tests.classifiers import build, other_weights


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3)).astype(np.uint8)


FAMILIES = [
    ("Xception", "xception"), ("InceptionV3", "inception_v3"), ("InceptionResNetV2", "inception_resnet_v2"),
    ("MobileNet", "mobilenet"), ("MobileNetV2", "mobilenet_v2"), ("ResNet50V2", "resnet_v2"),
    ("NASNetMobile", "nasnet"), ("DenseNet121", "densenet"), ("EfficientNetV2B0", "efficientnet_v2"),
    ("MobileNetV3Small", "mobilenet_v3"), ("ConvNeXtTiny", "convnext"), ("ResNet50", "resnet"), ("VGG16", "vgg16"),
    ("VGG19", "vgg19"),
]  # fmt: skip
"""One backbone of each family, and the module of the family; EfficientNetB0 is in tests/test_backbones.py."""


@pytest.mark.parametrize(("name", "module"), FAMILIES)
def test_the_rescaling_is_the_one_the_backbone_was_trained_with(name: str, module: str) -> None:
    """Against Keras's own `preprocess_input` of each family."""
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 4, 4, 3)).astype(np.float32)
    expected = getattr(keras.applications, module).preprocess_input(pixels.copy())
    spec = BACKBONES[name]
    rescaled = pixels * np.array(spec.rescaling.scale) + np.array(spec.rescaling.offset)
    np.testing.assert_allclose(rescaled[..., ::-1] if spec.bgr else rescaled, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`input_shape` is undefined or non-square:UserWarning")
@pytest.mark.parametrize("name", [name for name, spec in BACKBONES.items() if spec.has_imagenet_weights])
def test_the_default_size_is_that_of_its_imagenet_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras names it where a network with its top is asked for at another size; MobileNetV3 takes any."""
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", lambda *_, **__: pytest.skip("it takes any size"))
    with pytest.raises(ValueError, match="input_shape` should be") as caught:
        getattr(keras.applications, name)(weights="imagenet", input_shape=(333, 333, 3))
    size = BACKBONES[name].default_image_size
    assert f"should be ({size}, {size}, 3)" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "MobileNetV3Small",
        "DenseNet121",
        "EfficientNetV2B0",
        "ConvNeXtTiny",
        "NASNetMobile",
        "ResNet50V2",
        "ResNet50",
        "VGG16",
        "EfficientNetB0",
        "Tiny",
    ],
)
def test_what_is_shipped_of_a_family_computes_what_was_trained(name: str) -> None:
    """With its rescaling, at its smallest size, with random weights."""
    size = BACKBONES[name].min_image_size
    classifier = build(backbone=name, image_size=size)
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    expected = classifier.logits(classifier.features(images))
    shipped = classifier.export()(images.astype(np.float32), training=False)
    np.testing.assert_allclose(shipped, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["Tiny", "MobileNetV2"])
def test_the_structure_counts_what_trains(name: str) -> None:
    """Layer by layer, what the optimizer would be given; and every parameter, statistics included."""
    classifier = build(backbone=name, image_size=32)
    layers = classifier.structure()
    for part, trained in classifier.num_trainable("all").items():
        assert sum(layer["num_trainable"] for layer in layers if layer["part"] == part) == trained
    total = sum(int(np.prod(variable.shape)) for variable in classifier.trainable_variables())
    assert sum(classifier.num_trainable("all").values()) == total
    everything = classifier.named_variables().values()
    assert sum(layer["num_parameters"] for layer in layers) == sum(int(np.prod(weight.shape)) for weight in everything)
    assert (layers[0]["output_shape"], layers[-1]["output_shape"]) == ([32, 32, 3], [1])


def test_dropout_is_a_function_of_its_seed() -> None:
    """The same seed drops the same features of a row, whichever rows of a batch are at hand; the rest is scaled."""
    classifier, images = build(), tf.zeros([8, 1])
    seeds = [tf.constant(pair) for pair in ([1, 2], [1, 2], [1, 3])]
    first, again, other = (classifier.dropout_mask(seed, Rows(0, 8), images).numpy() for seed in seeds)
    assert first.shape == (8, classifier.head.kernel.shape[0])
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_allclose(np.unique(first), [0, 1 / 0.8])
    np.testing.assert_array_equal(classifier.dropout_mask(seeds[0], Rows(3, 8), images[3:5]).numpy(), first[3:5])
    assert build(dropout=0.0).dropout_mask(seeds[0], Rows(0, 8), images).numpy().tolist() == [[1.0]] * 8


def test_new_weights_are_a_function_of_the_seed_and_the_digest_is_over_each_bit() -> None:
    """An attempt that begins again begins with the same weights."""
    classifier = build()
    before = classifier.digest()
    assert before == build().digest()
    assert not np.array_equal(classifier.head.kernel, build(seed=1).head.kernel)
    bias = classifier.head.bias
    bias.assign(np.nextafter(bias.numpy(), 1, dtype=np.float32))
    assert classifier.digest() != before


def test_a_model_trained_in_bfloat16_is_exported_in_float32() -> None:
    """What is shipped does not depend on the processor that trained it."""
    exported = build(policy="mixed_bfloat16").export()
    assert {layer.compute_dtype for layer in exported.layers} == {"float32"}
    assert {variable.dtype for variable in exported.weights} == {"float32"}


def test_weights_come_from_a_file_or_from_a_model_that_contains_the_backbone(tmp_path: Path) -> None:
    """A model that an earlier run exported can be the start of the next."""
    from_file = build(weights=str(other_weights(tmp_path)))
    assert from_file.digest(with_head=False) != build().digest(with_head=False)
    from_file.export().save(tmp_path / "model.keras")
    from_model = build(weights=str(tmp_path / "model.keras"))
    assert from_model.digest(with_head=False) == from_file.digest(with_head=False)


def truncated(path: Path) -> None:
    content = other_weights(path.parent).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def other_network() -> keras.Model:
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])


@pytest.mark.filterwarnings("ignore:Skipping nested container:UserWarning")
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("nothing.h5", lambda path: None),
        ("text.h5", lambda path: path.write_text("hello")),
        ("truncated.weights.h5", truncated),
        ("other.weights.h5", lambda path: other_network().save_weights(path)),
        ("other.keras", lambda path: other_network().save(path)),
        ("damaged.keras", lambda path: path.write_bytes(b"PK\x03\x04 not really")),
        ("unknown.bin", lambda path: path.write_bytes(b"\x00" * 100)),
    ],
)
def test_wrong_weights_are_refused_by_the_name_of_the_file(
    tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    """Missing, unreadable, or not of this network."""
    make(tmp_path / name)
    with pytest.raises(WeightsUnusable) as caught:
        build(weights=str(tmp_path / name))
    assert str(tmp_path / name) in caught.value.message
    assert "imagenet" in caught.value.hint
