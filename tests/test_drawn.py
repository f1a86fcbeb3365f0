"""The built-in data set: the same for ever, balanced, of the same colors, and a TFDS data set like any other."""

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from demo import drawn


def test_drawings_never_change() -> None:
    """Whatever was drawn before; another drawing needs another VERSION. Sides are 96 to 160 pixels."""
    images = [drawn.draw_example(index) for index in (1999, *range(40), 1999)]
    assert images[0] == images[-1]
    assert all(96 <= side <= 160 for image in images for side in image.size)
    assert drawn.DrawnCatsVsDogs.VERSION == "1.0.0"
    assert [np.asarray(image).mean() for image in images[:3]] == pytest.approx([125.182, 112.762, 122.858], abs=0.02)


def test_classes_are_balanced_in_any_tenth_of_the_split() -> None:
    """Wherever a tenth of the split begins, its classes differ by at most two examples."""
    num_examples = drawn.DrawnCatsVsDogs.num_examples
    is_dog = np.array([drawn.draw_label(index) == "dog" for index in range(num_examples)])
    tenth = num_examples // 10
    num_dogs = np.convolve(is_dog, np.ones(tenth, dtype=int), mode="valid")
    assert np.abs(2 * num_dogs - tenth).max() <= 2


@pytest.mark.slow
def test_color_alone_does_not_tell_the_class() -> None:
    """Least squares on mean and spread of each channel, fitted on one half, is near chance on the other."""
    pixels = [np.asarray(drawn.draw_example(index)).reshape(-1, 3) / 255 for index in range(400)]
    features = np.array([[*image.mean(axis=0), *image.std(axis=0), 1.0] for image in pixels])
    signs = np.array([1 if drawn.draw_label(index) == "dog" else -1 for index in range(400)])
    first, second = slice(0, 200), slice(200, 400)
    num_correct = 0
    for fitted, held_out in ((first, second), (second, first)):
        weights, *_ = np.linalg.lstsq(features[fitted], signs[fitted])
        num_correct += int(np.sum(features[held_out] @ weights * signs[held_out] > 0))
    assert num_correct / 400 < 0.65


def test_tfds_load_draws_once_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first load draws every example once; the second reads what is there, in the order of the index."""
    connections, indices = [], []
    encode_example = drawn.encode_example

    def refuse(_: socket.socket, address: Any) -> None:
        connections.append(address)
        raise ConnectionRefusedError(address)

    def count(index: int) -> bytes:
        indices.append(index)
        return encode_example(index)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(drawn, "encode_example", count)
    monkeypatch.setattr(drawn.DrawnCatsVsDogs, "num_examples", 40)
    for _ in range(2):
        examples = tfds.load("drawn_cats_vs_dogs", split="train[:70%]", as_supervised=True, data_dir=tmp_path)
        labels = [int(label) for _, label in examples.as_numpy_iterator()]
        assert labels == [drawn.LABELS.index(drawn.draw_label(index)) for index in range(28)]
    assert indices == list(range(40))
    assert connections == []


def test_features_are_named_as_in_cats_vs_dogs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Image, file name and label have the names, types, classes and supervised keys of the real data set."""
    monkeypatch.setattr(drawn.DrawnCatsVsDogs, "num_examples", 2)
    examples, info = tfds.load("drawn_cats_vs_dogs", split="train", data_dir=tmp_path, with_info=True)
    assert info.supervised_keys == ("image", "label")
    assert info.features["label"].names == ["cat", "dog"]
    example = next(examples.as_numpy_iterator())
    assert set(example) == {"image", "image/filename", "label"}
    assert example["image"].dtype == np.uint8
    assert example["image"].shape[::-1] == (3, *drawn.draw_example(0).size)
    assert example["image/filename"].decode() == f"{drawn.draw_label(0)}.0.jpg"
