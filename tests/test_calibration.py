"""Temperature and threshold from a validation split: against values worked out by hand, or found by trying."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.model.answers import calibrated, predicted_classes
from job.train.calibration import cross_entropy, fit_temperature, fit_threshold
from job.train.evaluation import probabilities, temperature_scaling
from job.train.metrics import auroc
from tests.classifiers import build


def drawn(num_classes: int, num_examples: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels that are drawn with their probabilities."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(num_examples, 1 if num_classes == 2 else num_classes)) * 2
    chances = probabilities(logits).cumsum(axis=1)
    return logits, (rng.uniform(size=(num_examples, 1)) > chances).sum(axis=1)


def test_the_temperature_of_equal_logits_is_known() -> None:
    """Nine of ten are right at a logit of 4: the best probability is 0.9, so 4 / T = log 9."""
    logits, labels = np.full((10, 1), 4.0), np.array([1] * 9 + [0])
    assert fit_temperature(logits, labels) == pytest.approx(4 / np.log(9), rel=1e-12)


@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0])
def test_logits_that_were_scaled_get_their_temperature_back(num_classes: int, temperature: float) -> None:
    """Within what 4000 examples tell; and scaled probabilities are then as frequent as they say."""
    logits, labels = drawn(num_classes)
    fitted = fit_temperature(logits * temperature, labels)
    assert fitted == pytest.approx(temperature, rel=0.08)
    scaling = temperature_scaling(logits * temperature, labels, fitted=fitted, is_used=False)
    assert scaling["after"]["expected_calibration_error"] < 0.03
    assert scaling["after"]["loss"] <= scaling["before"]["loss"]
    if temperature != 1:
        assert scaling["before"]["expected_calibration_error"] > 0.08


@given(st.lists(st.tuples(st.floats(-4, 4), st.integers(0, 1)), min_size=2, max_size=30), st.floats(0.1, 10))
def test_a_fitted_temperature_is_a_least_and_scales_with_the_logits(
    examples: list[tuple[float, int]], factor: float
) -> None:
    """Above 0; near it, the loss by Keras is no less; where there is none, other logits have none."""
    logits, labels = np.array([[logit] for logit, _ in examples]), np.array([label for _, label in examples])
    fitted = fit_temperature(logits, labels)
    if fitted is None or not 0.1 < fitted < 10:
        return
    assert fit_temperature(logits * factor, labels) == pytest.approx(fitted * factor, rel=1e-6)

    def loss(temperature: float) -> float:
        targets, scaled = labels[:, np.newaxis].astype(float), logits / temperature
        return float(np.mean(keras.losses.binary_crossentropy(targets, scaled, from_logits=True)))

    assert loss(fitted) == pytest.approx(cross_entropy(logits / fitted, labels), abs=1e-6)
    assert loss(fitted) <= min(loss(fitted * 1.05), loss(fitted / 1.05)) + 1e-6


@pytest.mark.parametrize(
    ("logits", "labels"),
    [([[2.0], [-1.0]], [1, 0]), ([[2.0], [-1.0]], [0, 1]), ([[0.0], [0.0]], [0, 1]), ([[1.0, 0.0, 0.0]], [0])],
    ids=["no mistake", "worse than chance", "no logits", "one example"],
)
def test_a_split_that_says_nothing_of_a_temperature_gives_none(logits: Any, labels: Any) -> None:
    """And then nothing is changed."""
    logits, labels = np.array(logits), np.array(labels)
    assert fit_temperature(logits, labels) is None
    scaling = temperature_scaling(logits, labels, fitted=None, is_used=True)
    assert (scaling["temperature"], scaling["is_fitted"]) == (1.0, False)
    assert scaling["before"] == scaling["after"]


def test_a_temperature_changes_no_answer_and_no_order() -> None:
    logits, labels = drawn(5)
    np.testing.assert_array_equal(predicted_classes(logits / 0.3), predicted_classes(logits))
    logits, labels = drawn(2)
    assert auroc(logits[:, 0] / 0.3, labels == 1) == auroc(logits[:, 0], labels == 1)


def test_a_calibrated_model_is_keras_alone_and_has_the_weights_of_the_other(tmp_path: Path) -> None:
    """It divides the logits, after a load too; at a temperature of 1 it is the same object."""
    model = build(num_classes=3).export()
    assert calibrated(model, 1.0) is model
    calibrated(model, 2.5).save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype(np.float32)
    np.testing.assert_allclose(loaded(images) * 2.5, model(images), rtol=1e-5, atol=1e-7)
    for one, other in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_threshold_is_between_the_examples_that_it_parts() -> None:
    """Logits of the first class up to 1, of the second from 3 on: the middle is 2, and its probability 0.881."""
    logits = np.array([[-2.0], [1.0], [3.0], [4.0]])
    assert fit_threshold(logits, np.array([0, 0, 1, 1])) == pytest.approx(1 / (1 + np.exp(-2)))
    assert fit_threshold(logits, np.array([0, 1, 1, 1])) == 0.5, "it is as good, and nearer"
    assert fit_threshold(logits, np.array([1, 1, 1, 1])) == 0.5, "there is only one class"


@given(st.lists(st.tuples(st.integers(-8, 8), st.integers(0, 1)), min_size=1, max_size=30))
def test_no_threshold_has_a_greater_balanced_accuracy(examples: list[tuple[int, int]]) -> None:
    """Of 0.5 and all that have examples on both sides; and the other class as the second gives as much."""
    scores, labels = (np.array(values) for values in zip(*examples, strict=True))
    logits = scores[:, np.newaxis] + 0.5
    if len(set(labels)) < 2:
        return

    def balanced(logits: np.ndarray, labels: np.ndarray, threshold: float) -> float:
        predicted = predicted_classes(logits, threshold)
        return float(np.mean([(predicted[labels == kind] == kind).mean() for kind in (0, 1)]))

    best = balanced(logits, labels, fit_threshold(logits, labels))
    cuts = [0, *range(min(scores) + 1, max(scores) + 1)]
    tried = [balanced(logits, labels, 1 / (1 + np.exp(-float(cut)))) for cut in cuts]
    assert best >= max(tried) - 1e-12
    assert balanced(-logits, 1 - labels, fit_threshold(-logits, 1 - labels)) == pytest.approx(best)
