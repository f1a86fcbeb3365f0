"""Metrics against values worked out by hand or by brute force."""

import math
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.data.splits import load_splits
from job.train.calibration import calibration
from job.train.collective import Collective
from job.train.evaluation import evaluate, forward_of, predict_logits, probabilities, thresholds
from job.train.metrics import auroc, average_precision, precision_recall, top_k_accuracy, wilson_interval
from job.workers.share import Share
from job.workers.team import Alone
from tests import shapes
from tests.classifiers import build

SIX_LABELS = np.array([0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 0, 1, 2, 0, 1, 0, 0, 2, 3, 5])
SIX_LOGITS = np.array([
    [3.06, -3.83, 0.63, -0.85, -0.68, -0.32], [-3.03, -0.35, -1.3, 4.98, 0.34, -0.53],
    [-0.42, -1.0, 0.42, -0.59, 0.72, -0.36], [1.44, -0.3, 0.04, 4.32, 0.82, -0.76],
    [-0.27, 0.81, 2.9, -0.4, 1.63, 1.5], [-1.33, -0.44, 1.32, 0.87, 0.14, 3.01],
    [-2.24, 1.53, -1.44, -2.5, 0.41, 1.05], [-0.67, 0.39, 0.04, -0.08, 2.11, 1.12],
    [0.29, 1.67, -0.31, -1.39, 0.88, 0.87], [-0.32, -1.17, 0.34, -1.74, 1.04, 0.74],
    [-0.46, 0.09, -1.45, 1.14, -3.05, -1.37], [1.06, 3.73, -3.24, -0.75, 0.49, -0.91],
    [2.39, -1.79, 2.53, -1.57, 2.11, -0.03], [-0.56, -2.58, 2.52, 1.13, 1.13, 1.71],
    [0.52, 1.04, -1.2, -1.2, 2.06, -2.19], [1.11, -0.48, 0.34, 0.86, -1.87, -2.6],
    [1.99, 1.82, 1.14, 0.32, -0.48, 0.44], [-0.37, 1.23, 0.81, 0.2, -0.17, 0.82],
    [0.34, 3.83, 2.25, 2.25, -3.06, -0.51], [-0.91, 0.8, -3.42, 1.76, 1.6, 0.05],
])  # fmt: skip


def test_the_metrics_are_those_of_scikit_learn() -> None:
    """Of six classes, one never predicted right; the numbers are from scikit-learn 1.9.1, with zero_division=0."""
    found = evaluate(SIX_LOGITS, SIX_LABELS, tuple("abcdef"))
    expected = {
        "precision": [1.0, 1 / 5, 1 / 3, 1 / 4, 0.0, 1.0],
        "recall": [1 / 2, 1 / 4, 1 / 4, 1 / 3, 0.0, 1 / 2],
        "f1": [2 / 3, 2 / 9, 2 / 7, 2 / 7, 0.0, 2 / 3],
        "average_precision": [
            0.7187499999999999, 0.45198412698412693, 0.4352564102564102, 0.35470085470085466, 0.125, 0.5909090909090909,
        ],
        "auroc": [0.7023809523809523, 0.59375, 0.765625, 0.7058823529411764, 0.631578947368421, 0.75],
    }  # fmt: skip
    for name, values in expected.items():
        assert [row[name] for row in found.per_class] == pytest.approx(values), name
        assert found.macro[name] == pytest.approx(np.mean(values)), name
    assert found.macro["f1"] == pytest.approx(0.3544973544973544)
    assert found.top_5_accuracy == 0.95
    assert found.loss == pytest.approx(1.9569972731367808)


def test_the_curve_is_that_of_scikit_learn() -> None:
    """With ties; scikit-learn adds a last point of recall 0, and begins at the lowest threshold."""
    scores = np.array([0.1, 0.4, 0.35, 0.8, 0.8, 0.35, 0.9, 0.65, 0.2, 0.5])
    positive = np.array([0, 1, 1, 0, 1, 0, 1, 1, 0, 0], bool)
    precision, recall, threshold = precision_recall(scores, positive)
    assert precision[::-1] == pytest.approx([0.5, 5 / 9, 0.625, 2 / 3, 0.6, 0.75, 2 / 3, 1.0])
    assert recall[::-1] == pytest.approx([1.0, 1.0, 1.0, 0.8, 0.6, 0.6, 0.4, 0.2])
    assert threshold[::-1].tolist() == [0.1, 0.2, 0.35, 0.4, 0.5, 0.65, 0.8, 0.9]
    assert average_precision(scores, positive) == pytest.approx(0.7416666666666667)
    assert average_precision(scores, np.zeros(10, bool)) is None


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=40))
def test_average_precision_is_the_mean_precision_at_the_positives(pairs: list[tuple[int, bool]]) -> None:
    """Counted at each positive: of all that score as high or higher, the share that is positive."""
    scores = np.array([float(score) for score, _ in pairs])
    positive = np.array([kind for _, kind in pairs])
    if positive.any():
        at_each = [positive[scores >= score].mean() for score in scores[positive]]
        assert average_precision(scores, positive) == pytest.approx(np.mean(at_each))


def test_a_class_that_is_never_predicted_has_no_precision_and_counts_as_0_in_the_mean() -> None:
    """And one without examples has no recall, and counts in no mean."""
    found = evaluate(np.eye(4)[[0, 0, 3]] * 5, np.array([0, 1, 0]), tuple("abcd"))
    assert [row["precision"] for row in found.per_class] == [0.5, None, None, 0.0]
    assert [row["recall"] for row in found.per_class] == [0.5, 0.0, None, None]
    assert [row["f1"] for row in found.per_class] == [0.5, 0.0, None, 0.0]
    assert (found.macro["precision"], found.macro["recall"], found.macro["f1"]) == (0.25, 0.25, 0.25)


@given(st.lists(st.lists(st.integers(-2, 2), min_size=7, max_size=7), min_size=1, max_size=8), st.integers(0, 6))
def test_top_5_is_that_of_keras(rows: list[list[int]], label: int) -> None:
    """Ties included; and of five classes there is none."""
    logits, labels = np.array(rows, np.float32), np.full(len(rows), label)
    metric = keras.metrics.sparse_top_k_categorical_accuracy(labels, logits, k=5)
    assert top_k_accuracy(logits, labels) == pytest.approx(float(np.mean(metric)))
    assert top_k_accuracy(logits[:, :5], labels % 5) is None


def test_two_classes_have_the_curve_of_the_second_and_many_those_of_the_worst() -> None:
    """A long one is thinned to 200 points, with both ends; the area is that of all."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 1000)
    (curve,) = evaluate(rng.normal(size=(1000, 1)) + labels[:, np.newaxis], labels, ("a", "b")).precision_recall
    assert (curve["class"], curve["prevalence"]) == ("b", labels.mean())
    assert len(curve["recall"]) == len(curve["precision"]) == 200
    assert (curve["recall"][-1], curve["precision"][-1]) == (1.0, labels.mean())
    of_one = [evaluate(np.array([[1.0]]), np.array([label]), ("a", "b")).precision_recall for label in (0, 1)]
    assert [len(curves) for curves in of_one] == [0, 1], "a class without examples has none"
    found = evaluate(SIX_LOGITS, SIX_LABELS, tuple("abcdef"))
    assert [curve["class"] for curve in found.precision_recall] == ["e", "d", "c", "b"]
    of_d = found.precision_recall[1]
    area = np.sum(np.diff([0.0, *of_d["recall"]]) * of_d["precision"])
    assert area == pytest.approx(found.per_class[3]["average_precision"])


def test_a_threshold_moves_the_answers_and_no_probability() -> None:
    """Above 0.7 is class 1: one logit of two is. At 0.5 it is as without."""
    logits, labels = np.log([[3.0], [1.5], [1 / 4]]), np.array([1, 1, 0])
    plain, moved = (evaluate(logits, labels, ("a", "b"), threshold=at) for at in (0.5, 0.7))
    assert (plain.confusion, moved.confusion) == ([[1, 0], [0, 2]], [[1, 0], [1, 1]])
    assert (plain.loss, plain.auroc, plain.calibration) == (moved.loss, moved.auroc, moved.calibration)
    found = thresholds(logits, labels, used=0.7, best=0.55)
    assert [row["threshold"] for row in found["on_test"]] == [0.5, 0.55, 0.7]
    assert [row["balanced_accuracy"] for row in found["on_test"]] == [1.0, 1.0, 0.75]
    assert found["on_test"][2]["recall"] == 0.5


class OneOfThree(Collective):
    """A worker that adds nothing of the others."""

    def __init__(self, worker: int) -> None:
        super().__init__(Alone(lambda: None))
        self.share = Share(worker, 3)


@pytest.mark.slow
def test_several_workers_give_the_bits_of_one(prepared: Path) -> None:
    """Batches of five in parts of two: the last part of each batch is one image, whoever has it."""
    forward = forward_of(build().export())
    sizes = {"num_logits": 1, "batch_size": 5, "at_once": 2}
    with load_splits(shapes.request(prepared), check_stop=lambda: None) as splits:
        alone = predict_logits(forward, splits.test, Collective(Alone(lambda: None)), **sizes)
        parts = [predict_logits(forward, splits.test, OneOfThree(worker), **sizes) for worker in range(3)]
    assert all(part.any() for part in parts)
    np.testing.assert_array_equal(np.sum(parts, axis=0), alone)


def test_the_wilson_interval_has_the_published_values() -> None:
    """81 of 263: 0.2553 to 0.3662 (R. G. Newcombe, 1998, Statistics in Medicine 17, 857-872, table I, method 3)."""
    low, high = wilson_interval(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    low, high = wilson_interval(0, 20)
    assert (round(low, 4), round(high, 4)) == (0.0, 0.1611)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_proportion_and_stays_in_0_to_1(counts: tuple[int, int]) -> None:
    """For every count, none and all included."""
    low, high = wilson_interval(*counts)
    assert 0 <= low <= counts[0] / counts[1] + 1e-12
    assert counts[0] / counts[1] - 1e-12 <= high <= 1


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=40))
def test_auroc_is_the_share_of_pairs_in_order(pairs: list[tuple[int, bool]]) -> None:
    """Counted pair by pair, ties as half."""
    scores = np.array([float(score) for score, _ in pairs])
    positive = np.array([kind for _, kind in pairs])
    ups, downs = scores[positive], scores[~positive]
    found = auroc(scores, positive)
    if len(ups) == 0 or len(downs) == 0:
        assert found is None
    else:
        wins = [float(up > down) + 0.5 * float(up == down) for up in ups for down in downs]
        assert found == pytest.approx(np.mean(wins))


def test_one_logit_is_judged_at_zero() -> None:
    """+0.3 is class 1: a threshold of 0.5 would call it class 0."""
    result = evaluate(np.array([[0.3], [-0.3], [2.0], [0.1]]), np.array([1, 0, 1, 0]), ("cat", "dog"))
    assert result.accuracy == 0.75
    assert result.confusion == [[1, 1], [0, 2]]
    expected = np.mean([math.log1p(math.exp(-x)) for x in (0.3, 0.3, 2.0, -0.1)])
    assert result.loss == pytest.approx(expected)


def test_one_logit_and_its_two_logits_are_the_same() -> None:
    """A single logit stands for (0, logit)."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 1)), rng.integers(0, 2, 50)
    both = np.concatenate([np.zeros_like(logits), logits], axis=1)
    assert evaluate(logits, labels, ("a", "b")) == evaluate(both, labels, ("a", "b"))


def test_counts_of_each_class_add_up() -> None:
    """Rows of the confusion matrix are the true classes."""
    logits = np.eye(3)[[0, 1, 2, 2, 1, 0]] * 5
    result = evaluate(logits, np.array([0, 1, 2, 1, 1, 2]), ("a", "b", "c"))
    assert result.confusion == [[1, 0, 0], [0, 2, 1], [1, 0, 1]]
    assert [(c["name"], c["num_examples"], c["num_correct"], c["num_predicted"]) for c in result.per_class] == [
        ("a", 1, 1, 2),
        ("b", 3, 2, 2),
        ("c", 2, 1, 2),
    ]


def test_a_class_without_examples_has_no_auroc() -> None:
    """The mean is over the classes that have one."""
    result = evaluate(np.eye(3)[[0, 1]] * 5, np.array([0, 1]), ("a", "b", "c"))
    assert [c["auroc"] for c in result.per_class] == [1.0, 1.0, None]
    assert result.auroc == 1.0


def test_huge_logits_do_not_overflow() -> None:
    """A confident model has a finite loss."""
    result = evaluate(np.array([[1000.0], [-1000.0]]), np.array([1, 1]), ("a", "b"))
    assert result.loss == pytest.approx(500)
    assert probabilities(np.array([[1000.0, -1000.0, 0.0]])).tolist() == [[1.0, 0.0, 0.0]]


def test_the_calibration_error_is_the_mean_gap_of_the_bins() -> None:
    """Four at 0.9 of which three are right, two at 0.65 of which one is: (4 * 0.15 + 2 * 0.15) / 6, by hand."""
    probability = np.array([[0.9, 0.1]] * 4 + [[0.35, 0.65]] * 2)
    found = calibration(probability, np.array([0, 0, 0, 1, 1, 0]))
    assert found["expected_calibration_error"] == pytest.approx(0.15)
    filled = {row["low"]: row for row in found["bins"] if row["num_examples"]}
    assert {low: (row["num_examples"], row["accuracy"]) for low, row in filled.items()} == {
        0.6: (2, 0.5),
        0.8: (4, 0.75),
    }
    assert filled[0.8]["mean_probability"] == pytest.approx(0.9)
    low, high = filled[0.8]["accuracy_interval"]
    assert low < 0.75 < high


def test_a_bin_holds_its_upper_edge_and_all_examples_are_in_one() -> None:
    """1.0 is in the last, and a bin without examples has no accuracy."""
    found = calibration(np.array([[1.0, 0.0], [0.5, 0.5], [0.8, 0.2]]), np.array([0, 0, 0]))
    assert [row["num_examples"] for row in found["bins"]] == [0, 0, 0, 0, 1, 0, 0, 1, 0, 1]
    assert found["bins"][0]["accuracy"] is None


@given(st.lists(st.tuples(st.floats(0.5, 1.0), st.booleans()), min_size=1, max_size=60))
def test_the_calibration_error_is_a_distance(predictions: list[tuple[float, bool]]) -> None:
    """0 to 1, whatever is predicted; each example is counted once."""
    probability = np.array([[p, 1 - p] for p, _ in predictions])
    found = calibration(probability, np.array([0 if right else 1 for _, right in predictions]))
    assert 0 <= found["expected_calibration_error"] <= 1
    assert sum(row["num_examples"] for row in found["bins"]) == len(predictions)
