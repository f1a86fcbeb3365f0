"""Which examples a report shows."""

import math
from pathlib import Path

import numpy as np
import pytest

from job.data.order import Portion
from job.data.pixels import decode_bytes
from job.data.resizing import Resizing
from job.data.split_spec import DEFAULT_SPECS
from job.data.splits import Splits, load_splits
from job.model.activation_maps import activation_maps
from job.report.gallery import NUM_VARIANTS, Gallery, gather, names_of_test, predictions, training_sample
from job.workers.share import Share
from tests import shapes
from tests.classifiers import build


def gathered(splits: Splits, logits: np.ndarray) -> Gallery:
    classifier = build()
    return gather(
        classifier,
        splits,
        exported=classifier.export(),
        logits=logits,
        names=names_of_test(splits),
        threshold=0.5,
        seed=0,
    )


def test_the_training_sample_has_every_class_in_turn() -> None:
    """Also where one is rare; which of its examples, the seed decides."""
    labels = np.array([0] * 50 + [1] * 40 + [2])
    sample = training_sample(labels, ("a", "b", "c"), seed=0)
    assert [row["label"] for row in sample] == ["a", "b", "c", *["a", "b"] * 4, "a"]
    assert all("abc"[labels[row["index"]]] == row["label"] for row in sample)
    assert len({row["index"] for row in sample}) == 12
    assert sample == training_sample(labels, ("a", "b", "c"), seed=0)
    assert sample != training_sample(labels, ("a", "b", "c"), seed=1)


def test_a_small_split_is_shown_whole() -> None:
    """Three images are three."""
    assert len(training_sample(np.array([0, 1, 0]), ("a", "b"), seed=0)) == 3


def test_predictions_say_class_and_probability() -> None:
    """Of the first images, in order."""
    logits, labels = np.array([[0.0], [math.log(3)]]), np.array([0, 0])
    assert predictions(logits, labels, ("cat", "dog"))["predictions"] == [
        {"index": 0, "name": None, "label": "cat", "predicted": "cat", "probability": 0.5},
        {"index": 1, "name": None, "label": "cat", "predicted": "dog", "probability": pytest.approx(0.75)},
    ]


def test_the_surest_predictions_come_first_right_and_wrong_apart() -> None:
    """Ties in the order of the split; an empty list where there is none."""
    logits, labels = np.array([[1.0], [-3.0], [2.0], [3.0], [-4.0]]), np.array([1, 0, 0, 1, 1])
    surest = predictions(logits, labels, ("cat", "dog"))["most_confident"]
    assert [row["index"] for row in surest["right"]] == [1, 3, 0]
    assert [row["index"] for row in surest["wrong"]] == [4, 2]
    assert predictions(logits[:2], labels[:2], ("cat", "dog"))["most_confident"]["wrong"] == []


def test_with_a_threshold_a_prediction_may_be_the_less_probable() -> None:
    """Its probability is that of the class that is the answer, and the surest comes first by it."""
    logits, labels = np.array([[math.log(3)], [math.log(9)], [-2.0]]), np.array([1, 1, 0])
    shown = predictions(logits, labels, ("cat", "dog"), threshold=0.8)
    assert [(row["predicted"], round(row["probability"], 2)) for row in shown["predictions"]] == [
        ("cat", 0.25), ("dog", 0.9), ("cat", 0.88),
    ]  # fmt: skip
    assert [row["index"] for row in shown["most_confident"]["right"]] == [1, 2]
    assert [row["index"] for row in shown["most_confident"]["wrong"]] == [0]


@pytest.mark.slow
def test_the_pictures_are_those_of_the_examples(prepared: Path) -> None:
    """Pixel by pixel; augmented ones differ from each other, and are the same each time."""
    splits = load_splits(shapes.request(prepared), check_stop=lambda: None)
    logits = np.linspace(-2, 2, 24)[:, None]
    first, again = (gathered(splits, logits) for _ in range(2))
    for split, images, rows in (
        (splits.train, first.training, first.examples["training_sample"]),
        (splits.test, first.right, first.examples["most_confident"]["right"]),
        (splits.test, first.wrong, first.examples["most_confident"]["wrong"]),
    ):
        ((pixels, _),) = split.batches(len(split))
        np.testing.assert_array_equal(images, pixels.numpy()[[row["index"] for row in rows]])
    assert first.augmented.shape == (4, NUM_VARIANTS, 16, 16, 3)
    assert len({variant.tobytes() for variant in first.augmented[0]}) == NUM_VARIANTS
    np.testing.assert_array_equal(first.augmented, again.augmented)
    assert len(first.right_maps) == min(6, len(first.right))
    predicted = [splits.class_names.index(row["predicted"]) for row in first.examples["most_confident"]["wrong"]]
    np.testing.assert_array_equal(first.wrong_maps, activation_maps(build().export(), first.wrong, predicted))


@pytest.mark.slow
def test_one_of_several_workers_shows_the_same_pictures(prepared: Path) -> None:
    """Though it keeps few of them."""
    portion = Portion(share=Share(0, 8), batch_size=8, evaluation_batch_size=8, seed=0)
    logits = np.linspace(-2, 2, 24)[:, None]
    shown = []
    for of_worker in (None, portion):
        with load_splits(shapes.request(prepared, portion=of_worker), check_stop=lambda: None) as splits:
            shown.append(gathered(splits, logits))
    for name in ("training", "augmented", "right", "wrong", "right_maps", "wrong_maps"):
        np.testing.assert_array_equal(*(getattr(gallery, name) for gallery in shown))


@pytest.mark.slow
def test_own_images_have_their_names(tmp_path: Path) -> None:
    """Each picture is that of the file of its name, also where images were left out; data of TFDS has none."""
    folder = shapes.write_images(tmp_path / "images")
    for name in ("disc/0.png", "disc/40.png", "bar/1.png"):
        (folder / name).write_bytes(b"no image")
    request = shapes.request(tmp_path, dataset=str(folder), specs=DEFAULT_SPECS, on_unreadable="skip")
    with load_splits(request, check_stop=lambda: None) as splits:
        logits = np.linspace(-2, 2, len(splits.test))[:, None]
        shown = gathered(splits, logits)
    surest = shown.examples["most_confident"]
    for rows, images in ((surest["wrong"], shown.wrong), (surest["right"], shown.right)):
        assert rows
        for row, image in zip(rows, images, strict=True):
            assert row["name"].startswith(f"{row['label']}/")
            np.testing.assert_array_equal(image, decode_bytes((folder / row["name"]).read_bytes(), Resizing(16)))
