"""The classifier: statistics that never move, names that never change, weights that are the right ones."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from job.errors import WeightsUnusable
from job.model.backbones import BACKBONES
from job.model.networks import tiny_backbone
from tests.classifiers import build, other_weights


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3)).astype(np.uint8)


@pytest.mark.parametrize(("num_classes", "num_logits"), [(2, 1), (3, 3), (10, 10)])
def test_two_classes_have_one_logit_and_more_have_one_each(
    images: np.ndarray, num_classes: int, num_logits: int
) -> None:
    """As the article has it, and CIFAR-10 needs it."""
    classifier = build(num_classes=num_classes)
    logits = classifier.logits(classifier.features(images))
    assert logits.shape == (6, num_logits)
    assert logits.dtype == tf.float32


@pytest.mark.parametrize("name", [name for name, spec in BACKBONES.items() if spec.has_imagenet_weights])
def test_every_backbone_is_one_of_keras(name: str) -> None:
    """No name in the table is misspelt."""
    assert callable(getattr(keras.applications, name))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["MobileNetV3Small", "DenseNet121", "EfficientNetV2B0", "ConvNeXtTiny", "NASNetMobile", "ResNet50V2"]
)
def test_what_is_shipped_of_a_family_computes_what_was_trained(name: str) -> None:
    """With its rescaling, at its smallest size, with random weights."""
    size = BACKBONES[name].min_image_size
    classifier = build(backbone=name, image_size=size)
    images = np.random.default_rng(0).integers(0, 256, (3, size, size, 3), dtype=np.uint8)
    expected = classifier.logits(classifier.features(images))
    shipped = classifier.export()(images.astype(np.float32), training=False)
    np.testing.assert_allclose(shipped, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("Xception", "xception"),
        ("InceptionV3", "inception_v3"),
        ("InceptionResNetV2", "inception_resnet_v2"),
        ("MobileNet", "mobilenet"),
        ("MobileNetV2", "mobilenet_v2"),
        ("ResNet50V2", "resnet_v2"),
        ("NASNetMobile", "nasnet"),
        ("DenseNet121", "densenet"),
        ("EfficientNetV2B0", "efficientnet_v2"),
        ("MobileNetV3Small", "mobilenet_v3"),
        ("ConvNeXtTiny", "convnext"),
    ],
)
def test_the_rescaling_is_the_one_the_backbone_was_trained_with(name: str, module: str) -> None:
    """Against Keras's own `preprocess_input` of each family."""
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 4, 4, 3)).astype(np.float32)
    expected = getattr(keras.applications, module).preprocess_input(pixels.copy())
    rescaling = BACKBONES[name].rescaling
    np.testing.assert_allclose(pixels * np.array(rescaling.scale) + np.array(rescaling.offset), expected, atol=1e-5)


def test_statistics_do_not_move_and_everything_else_trains() -> None:
    """What trains in fine-tuning is every weight but the moving means and variances."""
    classifier = build()
    trained = {variable.path for variable in classifier.trainable_variables(("backbone", "head"))}
    everything = {variable.path for variable in classifier.named_variables(("backbone", "head")).values()}
    assert {path.rsplit("/", 1)[1] for path in everything - trained} == {"moving_mean", "moving_variance"}
    assert any(path.endswith("gamma") for path in trained)
    assert any(path.endswith("beta") for path in trained)


def test_a_forward_pass_changes_no_weight(images: np.ndarray) -> None:
    """Not even with every part trainable."""
    classifier = build()
    before = classifier.digest()
    with tf.GradientTape():
        classifier.logits(classifier.features(images), dropout_seed=tf.constant([1, 2]))
    assert classifier.digest() == before


@pytest.mark.parametrize("name", ["Tiny", "MobileNetV2"])
def test_the_structure_counts_what_trains(name: str) -> None:
    """Layer by layer, what the optimizer would be given; and every parameter, statistics included."""
    classifier = build(backbone=name, image_size=32)
    layers = classifier.structure()
    for part in ("backbone", "head"):
        trained = sum(int(np.prod(variable.shape)) for variable in classifier.trainable_variables((part,)))
        assert sum(layer["num_trainable"] for layer in layers if layer["part"] == part) == trained
    everything = classifier.named_variables(("backbone", "head")).values()
    assert sum(layer["num_parameters"] for layer in layers) == sum(int(np.prod(weight.shape)) for weight in everything)
    assert (layers[0]["output_shape"], layers[-1]["output_shape"]) == ([32, 32, 3], [1])


def test_dropout_is_a_function_of_its_seed(images: np.ndarray) -> None:
    """The same seed drops the same features; no seed drops none."""
    classifier = build()
    features = tf.ones([8, classifier.head.kernel.shape[0]])
    seeds = [tf.constant(pair) for pair in ([1, 2], [1, 2], [1, 3])]
    first, again, other = (classifier.logits(features, dropout_seed=seed).numpy() for seed in seeds)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len(set(classifier.logits(features).numpy()[:, 0].tolist())) == 1


def test_new_weights_are_a_function_of_the_seed() -> None:
    """An attempt that begins again begins with the same weights."""
    assert build().digest() == build().digest()
    assert build(seed=1).digest(("head",)) != build().digest(("head",))


def test_names_do_not_depend_on_what_the_process_has_built() -> None:
    """Keras numbers its layers as it goes; checkpoints and digests must not."""
    names = list(build(backbone="MobileNetV2", image_size=32).named_variables(("backbone", "head")))
    keras.layers.Conv2D(1, 1)
    assert list(build(backbone="MobileNetV2", image_size=32).named_variables(("backbone", "head"))) == names


def test_the_digest_sees_one_changed_bit() -> None:
    """It is over every weight."""
    classifier = build()
    before = classifier.digest()
    bias = classifier.head.bias
    bias.assign(np.nextafter(bias.numpy(), 1, dtype=np.float32))
    assert classifier.digest() != before


LOAD_WITH_PLAIN_KERAS = """
import sys
import keras, numpy as np
model = keras.saving.load_model(sys.argv[1])
print(np.array(model(np.load(sys.argv[2]).astype("float32"), training=False)).tolist())
assert not any(name == "job" or name.startswith("job.") for name in sys.modules)
"""


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_exported_model_loads_with_plain_keras_and_gives_the_same_numbers(
    images: np.ndarray, tmp_path: Path, num_classes: int
) -> None:
    """In a process that has never seen this package, from raw pixels."""
    classifier = build(num_classes=num_classes)
    classifier.export().save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", images)
    done = subprocess.run(
        [sys.executable, "-c", LOAD_WITH_PLAIN_KERAS, str(tmp_path / "model.keras"), str(tmp_path / "images.npy")],
        capture_output=True, text=True, check=True, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    expected = classifier.logits(classifier.features(images))
    np.testing.assert_allclose(eval(done.stdout), expected, rtol=1e-5, atol=1e-6)


def test_a_model_trained_in_bfloat16_is_exported_in_float32(images: np.ndarray) -> None:
    """What is shipped does not depend on the processor that trained it."""
    exported = build(policy="mixed_bfloat16").export()
    assert {layer.compute_dtype for layer in exported.layers} == {"float32"}
    assert {variable.dtype for variable in exported.weights} == {"float32"}


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    """Every one of them, statistics included."""
    path = other_weights(tmp_path)
    keras.utils.set_random_seed(7)
    expected = tiny_backbone(16).get_weights()
    loaded = build(weights=str(path)).backbone.get_weights()
    for weight, other in zip(loaded, expected, strict=True):
        np.testing.assert_array_equal(weight, other)


def test_weights_come_from_a_model_that_contains_the_backbone(tmp_path: Path) -> None:
    """A model that an earlier run exported can be the start of the next."""
    earlier = build(weights=str(other_weights(tmp_path)))
    earlier.export().save(tmp_path / "model.keras")
    assert build(weights=str(tmp_path / "model.keras")).digest(("backbone",)) == earlier.digest(("backbone",))


def no_file(folder: Path) -> Path:
    return folder / "nothing.h5"


def no_weights(folder: Path) -> Path:
    (folder / "text.h5").write_text("hello")
    return folder / "text.h5"


def truncated(folder: Path) -> Path:
    path = other_weights(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def of_another_network(folder: Path) -> Path:
    path = folder / "other.weights.h5"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]).save_weights(path)
    return path


def model_without_the_backbone(folder: Path) -> Path:
    path = folder / "other.keras"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]).save(path)
    return path


def damaged_model(folder: Path) -> Path:
    path = folder / "damaged.keras"
    path.write_bytes(b"PK\x03\x04 not really")
    return path


def unknown_kind(folder: Path) -> Path:
    path = folder / "weights.bin"
    path.write_bytes(b"\x00" * 100)
    return path


@pytest.mark.parametrize(
    "make",
    [no_file, no_weights, truncated, of_another_network, model_without_the_backbone, damaged_model, unknown_kind],
)
def test_wrong_weights_are_told_with_the_file_and_the_ways_out(make: Callable[[Path], Path], tmp_path: Path) -> None:
    """Missing, unreadable, or not of this network."""
    path = make(tmp_path)
    with pytest.raises(WeightsUnusable) as caught:
        build(weights=str(path))
    assert str(path) in caught.value.message
    assert "imagenet" in caught.value.hint
