"""Calibration: how far probabilities are frequencies, and the temperature that brings them nearer.

C. Guo et al., On calibration of modern neural networks, 2017, ICML.
"""

from typing import Any

import numpy as np

from job.model.answers import of_classes
from job.train.metrics import wilson_interval

NUM_CALIBRATION_BINS = 10

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.001, 1000.0
NUM_BISECTIONS = 80
"""More than float64 has digits for between the two."""


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
    logits by their probabilities - logit of the label), and bisection finds that. Without a mistake it falls for ever
    as T does, and such a split says nothing of T. Nor does one on which the logits are no better than none.
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
