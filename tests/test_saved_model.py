"""The SavedModel: what each of its signatures answers, of what images, and how large it is."""

import io
from pathlib import Path
from typing import get_args

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from job.data.pixels import decode_bytes
from job.data.resizing import Resizing, Way
from job.errors import ScratchUnavailable
from job.report import saved_model
from tests.classifiers import build
from tests.shapes import encode


def pictures(count: int = 5, side: int = 40) -> list[np.ndarray]:
    """Images that are not of the model's size."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (side, side + 8, 3), dtype=np.uint8) for _ in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("class_names", [("cat", "dog"), ("a", "b", "c")])
def test_every_signature_gives_the_numbers_of_the_model(tmp_path: Path, class_names: tuple[str, ...]) -> None:
    """From files of any size, from bytes and from floats: within 1e-5, with the names of the classes.

    A process without this package, which does what the card says: in test_card.py.
    """
    model = build(num_classes=len(class_names)).export()
    saved_model.save(model, class_names, tmp_path / "saved_model")
    encoded = [encode(image) for image in pictures()]
    images = np.stack([decode_bytes(content, Resizing(16)) for content in encoded])
    expected = np.array(model(images.astype(np.float32), training=False))
    of_classes = np.concatenate([np.zeros_like(expected), expected], axis=1) if len(class_names) == 2 else expected
    signatures = tf.saved_model.load(tmp_path / "saved_model").signatures
    for answer in (
        signatures["serving_default"](encoded_images=tf.constant(encoded)),
        signatures["uint8_images"](images=images),
        signatures["float32_images"](images=images.astype(np.float32)),
    ):
        np.testing.assert_allclose(answer["logits"], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(answer["probabilities"], keras.ops.softmax(of_classes), rtol=1e-5, atol=1e-5)
        labels = [class_names[index] for index in of_classes.argmax(axis=1)]
        assert answer["label"].numpy().astype(str).tolist() == labels


@pytest.mark.slow
@pytest.mark.parametrize("way", get_args(Way))
def test_files_are_resized_in_the_way_of_the_run(way: Way) -> None:
    """Other ways give other numbers."""
    signatures = saved_model.signatures(build().export(), ("cat", "dog"), resize=way)
    files = [encode(image) for image in pictures()]
    answer = signatures["serving_default"](tf.constant(files))["logits"].numpy()
    for other in get_args(Way):
        images = np.stack([decode_bytes(content, Resizing(16, other)) for content in files])
        expected = signatures["uint8_images"](tf.constant(images))["logits"]
        assert np.allclose(answer, expected, rtol=1e-5, atol=1e-5) == (other == way)


def test_one_bad_image_does_not_fail_the_batch() -> None:
    """It has no label and is marked; the others are answered as without it. All may be bad."""
    good = [encode(image) for image in pictures(2)]
    palette = io.BytesIO()
    Image.fromarray(pictures(1)[0]).convert("P").save(palette, "BMP")
    classify = saved_model.signatures(build().export(), ("cat", "dog"))["serving_default"]

    def answer_of(images: list[bytes]) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in classify(tf.constant(images, tf.string)).items()}

    mixed = answer_of([good[0], b"text", good[0][:-200], b"", palette.getvalue(), good[1]])
    expected = answer_of(good)
    assert mixed["valid"].tolist() == [True, False, False, False, False, True]
    assert mixed["label"][[0, 5]].tolist() == expected["label"].tolist()
    np.testing.assert_allclose(mixed["probabilities"][[0, 5]], expected["probabilities"], rtol=1e-5)
    assert mixed["label"][1:5].tolist() == [b""] * 4
    assert not mixed["logits"][1:5].any()
    assert not mixed["probabilities"][1:5].any()
    assert answer_of([b"text"])["valid"].tolist() == [False]
    assert answer_of([])["label"].tolist() == []


def test_the_class_is_the_greater_logit_where_probabilities_round_to_the_same() -> None:
    """A logit of 1e-9 is class 1, as in the evaluation, though both probabilities are 0.5."""
    inputs = keras.Input((16, 16, 3))
    head = keras.layers.Dense(1, kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(1e-9))
    model = keras.Model(inputs, head(keras.layers.GlobalAveragePooling2D()(inputs)))
    answer = saved_model.signatures(model, ("cat", "dog"))["float32_images"](tf.zeros([1, 16, 16, 3]))
    assert answer["probabilities"].numpy().tolist() == [[0.5, 0.5]]
    assert answer["label"].numpy().tolist() == [b"dog"]


def test_it_is_as_large_as_its_weights_and_a_graph(tmp_path: Path) -> None:
    """Each weight is written once."""
    model = build().export()
    saved_model.save(model, ("cat", "dog"), tmp_path)
    weights = sum(weight.numpy().nbytes for weight in model.weights)
    assert weights <= (tmp_path / "variables/variables.data-00000-of-00001").stat().st_size < 1.05 * weights
    assert (tmp_path / "saved_model.pb").stat().st_size < 300_000
    files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(files) == sorted(saved_model.FILES)


def test_a_disk_that_does_not_take_it_is_an_error_with_a_hint(tmp_path: Path) -> None:
    """With the folder."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ScratchUnavailable, match="cannot be used"):
        saved_model.save(build().export(), ("cat", "dog"), tmp_path / "file" / "saved_model")
