"""Metrics against values worked out by hand or by brute force."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.train.calibration import calibration
from job.train.evaluation import evaluate, probabilities
from job.train.metrics import auroc, wilson_interval


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
