"""Metrics of predictions against labels, in float64: of each class, and over all of them.

Formulas alone: nothing here knows of models, splits or workers.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution: 95 % lie within it on both sides."""

TOP_K = 5
MAX_CURVES = 4
"""Of more than two classes the curves of so many are kept: those with the lowest average precision."""

MAX_CURVE_POINTS = 200


def per_class(confusion: np.ndarray, ranking: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[Any]:
    """A row of metrics for each class, as JSON values.

    `confusion` int [k, k] counts examples of class i predicted as class j, `ranking` float64 [n, k] orders the examples
    by how much each class is theirs, `labels` is int64 [n]. With t examples of a class that are predicted as it:

        recall = t / its examples    precision = t / predicted as it    F1 = 2 t / (its examples + predicted as it)

    F1 is the harmonic mean of both (C. J. van Rijsbergen, Information retrieval, 1979, chapter 7). What would divide by
    zero is None, as is `average_precision` without examples of the class, and `auroc` without those of another too.
    """
    rows = []
    for index, name in enumerate(names):
        num_examples, num_predicted = int(confusion[index].sum()), int(confusion[:, index].sum())
        num_correct, positive = int(confusion[index, index]), labels == index
        rows.append(
            {
                "name": name,
                "num_examples": num_examples,
                "num_correct": num_correct,
                "num_predicted": num_predicted,
                "precision": _ratio(num_correct, num_predicted),
                "recall": _ratio(num_correct, num_examples),
                "f1": _ratio(2 * num_correct, num_examples + num_predicted),
                "auroc": auroc(ranking[:, index], positive),
                "average_precision": average_precision(ranking[:, index], positive),
            }
        )
    return rows


def macro(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The plain mean of each metric of `per_class` over the classes that have examples.

    The precision of a class that is never predicted counts as 0, as scikit-learn counts it. The mean recall is the
    balanced accuracy (K. H. Brodersen et al., The balanced accuracy and its posterior distribution, 2010, ICPR).
    """
    there = [row for row in rows if row["num_examples"]]
    num_correct, num_examples = (np.array([row[name] for row in there]) for name in ("num_correct", "num_examples"))
    return {
        "precision": float(np.mean([row["precision"] or 0.0 for row in there])),
        "recall": balanced_accuracy(num_correct, num_examples),
        "f1": float(np.mean([row["f1"] for row in there])),
        "auroc": _mean_of_known([row["auroc"] for row in there]),
        "average_precision": _mean_of_known([row["average_precision"] for row in there]),
    }


def balanced_accuracy(num_correct: np.ndarray, num_examples: np.ndarray) -> float:
    """The mean recall of the classes that have examples, of these numbers of each class; 0 without any example."""
    there = num_examples > 0
    return float(np.mean(num_correct[there] / num_examples[there])) if there.any() else 0.0


def top_k_accuracy(logits: np.ndarray, labels: np.ndarray, k: int = TOP_K) -> float | None:
    """The share of examples with fewer than k classes above their own; None unless there are more than k classes.

    `logits` float64 [n, classes], `labels` int64 [n]. A tie counts for the example, as in TensorFlow's `in_top_k`.
    """
    if logits.shape[1] <= k:
        return None
    own = logits[np.arange(len(labels)), labels][:, np.newaxis]
    return float(((logits > own).sum(axis=1) < k).mean())


def auroc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """The probability that a positive scores above a negative, ties counting half; None without both kinds.

    `scores` float64 [n], `positive` bool [n]. By ranks (Mann and Whitney, 1947; Hanley and McNeil, 1982).
    """
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if num_positive == 0 or num_negative == 0:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(counts)
    mean_ranks = (last_rank - (counts - 1) / 2)[inverse]
    rank_sum = float(mean_ranks[positive].sum())
    return (rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


def precision_recall(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and threshold at each distinct score, the highest first; float64 [m] each.

    At a threshold the examples with that score or a higher one are predicted as positive. `scores` float64 [n],
    `positive` bool [n] with at least one positive.
    """
    order = np.argsort(-scores, kind="stable")
    last_of_score = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    num_correct = np.cumsum(positive[order])[last_of_score]
    return num_correct / (last_of_score + 1), num_correct / positive.sum(), scores[order][last_of_score]


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """The area under the steps of the precision-recall curve; None without positives.

    The sum of (R_i - R_(i-1)) P_i over the thresholds, the highest first, as scikit-learn has it: nothing is
    interpolated, since a line between two points would be too optimistic (J. Davis and M. Goadrich, The relationship
    between precision-recall and ROC curves, 2006, ICML).
    """
    if not positive.any():
        return None
    precision, recall, _ = precision_recall(scores, positive)
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def curves(rows: Sequence[dict[str, Any]], ranking: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """Precision-recall curves as JSON values, each with the `class` that is positive, and the share of its examples.

    Of two classes that of the second; of more, those of the classes with the lowest average precision. A curve has at
    most 200 points, evenly spread over its thresholds.
    """
    known = [index for index, row in enumerate(rows) if row["average_precision"] is not None]
    if len(rows) == 2:
        chosen = [index for index in known if index == 1]
    else:
        chosen = sorted(known, key=lambda index: float(rows[index]["average_precision"]))[:MAX_CURVES]
    found = []
    for index in chosen:
        precision, recall, _ = precision_recall(ranking[:, index], labels == index)
        kept = np.unique(np.linspace(0, len(recall) - 1, min(len(recall), MAX_CURVE_POINTS)).round().astype(int))
        found.append(
            {
                "class": rows[index]["name"],
                "prevalence": rows[index]["num_examples"] / len(labels),
                "recall": recall[kept].tolist(),
                "precision": precision[kept].tolist(),
            }
        )
    return found


def wilson_interval(num_correct: int, num_examples: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (E. B. Wilson, 1927, JASA 22, 209-212)."""
    p, n, z = num_correct / num_examples, num_examples, Z_95
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
