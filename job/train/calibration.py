"""Calibration: how far probabilities are frequencies; and what the validation split says: temperature and threshold.

C. Guo et al., On calibration of modern neural networks, 2017, ICML.
"""

import math
from typing import Any

import numpy as np

from job.model.answers import DEFAULT_THRESHOLD, logit_of, of_classes
from job.train.metrics import wilson_interval

NUM_CALIBRATION_BINS = 10

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.001, 1000.0
NUM_BISECTIONS = 80
"""More than float64 has digits for between the two."""
LOWEST_THRESHOLD, HIGHEST_THRESHOLD = 1e-6, 1 - 1e-6


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """The logarithms of the class probabilities, float64 [n, k], from logits [n, 1] (two classes) or [n, k]."""
    logits = of_classes(logits)
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The mean cross-entropy in nats of logits float64 [n, 1 or k] against labels int64 [n]."""
    return float(-log_probabilities(logits)[np.arange(len(labels)), labels].mean())


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """The T for which logits / T have the least mean cross-entropy; None where there is none from 0.001 to 1000.

    `logits` float64 [n, 1 or k] and `labels` int64 [n] are those of the validation split (Guo et al., section 4.2). The
    cross-entropy is convex in b = 1 / T; where it is least its slope is 0, the mean over the examples of (mean of the
    logits by their probabilities - logit of the label), and bisection finds that. There is none on a split without a
    mistake, where the cross-entropy falls for ever as T does, nor where the logits are no better than chance.
    """
    logits = of_classes(logits)
    own = logits[np.arange(len(labels)), labels]

    def slope(inverse: float) -> float:
        return float(((np.exp(log_probabilities(logits * inverse)) * logits).sum(axis=1) - own).mean())

    low, high = 1 / HIGHEST_TEMPERATURE, 1 / LOWEST_TEMPERATURE
    if slope(low) >= 0 or slope(high) <= 0:
        return None
    for _ in range(NUM_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 2 / (low + high)


def fit_threshold(logits: np.ndarray, labels: np.ndarray) -> float:
    """The threshold with the greatest balanced accuracy of two classes; the one nearest to 0.5 of several as good.

    `logits` float64 [n, 1 or 2] and `labels` int64 [n] are those of the validation split. The balanced accuracy is the
    mean of both recalls, so its maximum is that of Youden's index (W. J. Youden, 1950, Cancer 3, 32-35), and it does
    not depend on which of the classes is the second. The threshold is 0.5, or the middle of the logits of neighbouring
    examples, so that there are always some on both sides. 0.5 without examples of both classes.
    """
    logits = of_classes(logits)
    scores = logits[:, 1] - logits[:, 0]
    first, second = np.sort(scores[labels == 0]), np.sort(scores[labels == 1])
    if len(first) == 0 or len(second) == 0:
        return DEFAULT_THRESHOLD
    distinct = np.unique(scores)
    cuts = np.append((distinct[1:] + distinct[:-1]) / 2, logit_of(DEFAULT_THRESHOLD))
    cuts = cuts[(cuts >= logit_of(LOWEST_THRESHOLD)) & (cuts <= logit_of(HIGHEST_THRESHOLD))]
    # Counts, not quotients: what is as good is found by equality.
    num_right = len(second) * np.searchsorted(first, cuts, side="right") + len(first) * (
        len(second) - np.searchsorted(second, cuts, side="right")
    )
    best = cuts[num_right == num_right.max()]
    return float(1 / (1 + math.exp(-best[np.abs(best).argmin()])))


def calibration(probability: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """How far the probability of the most probable class is its accuracy: a reliability diagram and its one number.

    `probability` is float64 [n, k], `labels` int64 [n]. Examples fall into bins of equal width by the probability of
    their most probable class, lower edge excluded. The expected calibration error is the mean over the examples of
    |accuracy - mean probability| of their bin (Guo et al., equation 3; M. P. Naeini et al., 2015, AAAI).
    """
    confidence = probability.max(axis=1)
    correct = probability.argmax(axis=1) == labels
    bin_of = np.clip(np.ceil(confidence * NUM_CALIBRATION_BINS) - 1, 0, NUM_CALIBRATION_BINS - 1)
    bins, error = [], 0.0
    for index in range(NUM_CALIBRATION_BINS):
        inside = bin_of == index
        num_examples, num_correct = int(inside.sum()), int(correct[inside].sum())
        mean = accuracy = interval = None
        if num_examples > 0:
            mean, accuracy = float(confidence[inside].mean()), num_correct / num_examples
            interval = wilson_interval(num_correct, num_examples)
            error += abs(accuracy - mean) * num_examples / len(labels)
        bins.append(
            {
                "low": index / NUM_CALIBRATION_BINS,
                "high": (index + 1) / NUM_CALIBRATION_BINS,
                "num_examples": num_examples,
                "mean_probability": mean,
                "accuracy": accuracy,
                "accuracy_interval": interval,
            }
        )
    return {"expected_calibration_error": error, "bins": bins}
