"""Exact metrics of a model over a split.

The model is the exported one, in float32. Metrics are computed in float64 from the logits of every example at once,
not averaged over batches.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from job.data.splits import Split
from job.train.collective import Collective

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the normal distribution: 95 % lie within it on both sides."""

NUM_CALIBRATION_BINS = 10


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics over a split; `confusion[i][j]` counts examples of class i that were predicted as class j."""

    num_examples: int
    loss: float
    accuracy: float
    accuracy_interval: tuple[float, float]
    auroc: float | None
    confusion: list[list[int]]
    per_class: list[dict[str, Any]]
    calibration: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def forward_of(model: keras.Model) -> Callable[[np.ndarray], tf.Tensor]:
    """The function from uint8 [b, s, s, 3], for any b, to logits float32 [b, 1 or k]; traced once."""
    return tf.function(
        lambda images: model(tf.cast(images, tf.float32), training=False),
        input_signature=[tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8)],
        autograph=False,
    )


def predict_logits(model: keras.Model, split: Split, collective: Collective, *, batch_size: int) -> np.ndarray:
    """Logits float64 [n, 1 or k] of every example of a split, in order; workers share the batches."""
    forward = forward_of(model)
    logits = np.zeros((len(split), model.output_shape[-1]), np.float32)
    for start, images, _ in split.evaluation_batches(batch_size, collective.share):
        logits[start : start + len(images)] = forward(images).numpy()
    return collective.total(logits).astype(np.float64)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Class probabilities float64 [n, k] from logits [n, 1] (two classes) or [n, k]."""
    return np.exp(_log_softmax(_of_each_class(logits)))


def predicted_classes(logits: np.ndarray) -> np.ndarray:
    """The predicted class of each example, int64 [n], from logits [n, 1] (two classes) or [n, k]."""
    return _of_each_class(logits).argmax(axis=1)


def evaluate(logits: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Evaluation:
    """The metrics of logits float64 [n, 1 or k] against labels int64 [n]."""
    logits = _of_each_class(logits)
    num_examples, num_classes = logits.shape
    predicted = predicted_classes(logits)
    correct = int((predicted == labels).sum())
    confusion = np.zeros((num_classes, num_classes), dtype=int)
    np.add.at(confusion, (labels, predicted), 1)
    log_probability = _log_softmax(logits)
    # Of two classes the difference of the logits: it orders as the probability does, and does not round to ties.
    ranking = logits - logits[:, ::-1] if num_classes == 2 else log_probability
    scores = [auroc(ranking[:, index], labels == index) for index in range(num_classes)]
    known = [score for score in scores if score is not None]
    return Evaluation(
        num_examples=num_examples,
        loss=float(-log_probability[np.arange(num_examples), labels].mean()),
        accuracy=correct / num_examples,
        accuracy_interval=wilson_interval(correct, num_examples),
        auroc=float(np.mean(known)) if known else None,
        confusion=confusion.tolist(),
        per_class=[
            {
                "name": name,
                "num_examples": int(confusion[index].sum()),
                "num_correct": int(confusion[index, index]),
                "num_predicted": int(confusion[:, index].sum()),
                "auroc": scores[index],
            }
            for index, name in enumerate(class_names)
        ],
        calibration=calibration(np.exp(log_probability), labels),
    )


def calibration(probability: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """How far the probability of the predicted class is its accuracy: a reliability diagram and its one number.

    `probability` is float64 [n, k], `labels` int64 [n]. Examples fall into bins of equal width by the probability of
    their predicted class, lower edge excluded. The expected calibration error is the mean over the examples of
    |accuracy - mean probability| of their bin (C. Guo et al., On calibration of modern neural networks, 2017, ICML,
    equation 3; M. P. Naeini et al., 2015, AAAI).
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


def wilson_interval(num_correct: int, num_examples: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (E. B. Wilson, 1927, JASA 22, 209-212)."""
    p, n, z = num_correct / num_examples, num_examples, Z_95
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


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


def _of_each_class(logits: np.ndarray) -> np.ndarray:
    """Logits [n, k] from [n, 1] (two classes) or [n, k]."""
    return np.concatenate([np.zeros_like(logits), logits], axis=1) if logits.shape[1] == 1 else logits


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
