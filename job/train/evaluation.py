"""Exact metrics of a model over a split.

The model is the exported one, in float32. Metrics are computed in float64 from the logits of every example at once,
not averaged over batches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from job.data.splits import Split
from job.model.answers import DEFAULT_TEMPERATURE, DEFAULT_THRESHOLD, of_classes, predicted_classes
from job.train import fixed_shapes, metrics
from job.train.calibration import calibration, cross_entropy, log_probabilities
from job.train.collective import Collective

Forward = Callable[[np.ndarray], tf.Tensor]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics over a split; `confusion[i][j]` counts examples of class i that were predicted as class j.

    `macro` are means over the classes, of which `auroc` is also a field of its own; the other fields are as
    `job.train.metrics` and `job.train.calibration` have them.
    """

    num_examples: int
    loss: float
    accuracy: float
    accuracy_interval: tuple[float, float]
    top_5_accuracy: float | None
    auroc: float | None
    macro: dict[str, float | None]
    confusion: list[list[int]]
    per_class: list[dict[str, Any]]
    precision_recall: list[dict[str, Any]]
    calibration: dict[str, Any]

    @property
    def balanced_accuracy(self) -> float:
        """The mean recall of the classes that have examples."""
        recall = self.macro["recall"]
        assert recall is not None
        return recall

    def as_json(self) -> dict[str, Any]:
        # Not asdict: of a thousand classes it would copy a million counts, one by one.
        return dict(vars(self))


def forward_of(model: keras.Model, *, at_once: int | None = None) -> Forward:
    """The function from uint8 [b, s, s, 3], for any b, to logits float32 [b, 1 or k]; traced once.

    With `at_once` b is at most that, and where it saves time the model is always given so many. From now on GPUs
    compute in this process with all bits of float32, and not with the ten of TensorFloat-32.
    """
    tf.config.experimental.enable_tensor_float_32_execution(False)

    def forward(images: tf.Tensor) -> tf.Tensor:
        return model(tf.cast(images, tf.float32), training=False)

    size = at_once if fixed_shapes.are_faster(xla=False) else None
    return tf.function(
        forward if size is None else fixed_shapes.of_size(forward, size),
        input_signature=[tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8)],
        autograph=False,
    )


def predict_logits(
    forward: Forward, split: Split, collective: Collective, *, num_logits: int, batch_size: int, at_once: int
) -> np.ndarray:
    """Logits float64 [n, num_logits] of every example of a split, in order.

    Workers share the batches of `batch_size`; each is computed in parts of `at_once` images, so that the parts are the
    same for any number of workers.
    """
    parts = [
        (first + start, forward(images[start : start + at_once]))
        for first, images, _ in split.evaluation_batches(batch_size, collective.share)
        for start in range(0, len(images), at_once)
    ]
    logits = np.zeros((len(split), num_logits), np.float32)
    # Read at the end, so that a GPU has the next images while it computes.
    for start, of_part in parts:
        logits[start : start + len(of_part)] = of_part.numpy()
    return collective.total(logits).astype(np.float64)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Class probabilities float64 [n, k] from logits [n, 1] (two classes) or [n, k]."""
    return np.exp(log_probabilities(logits))


def evaluate(
    logits: np.ndarray, labels: np.ndarray, class_names: Sequence[str], *, threshold: float = DEFAULT_THRESHOLD
) -> Evaluation:
    """The metrics of logits float64 [n, 1 or k] against labels int64 [n].

    The predictions are those of `predicted_classes`. Calibration is of the probabilities, whatever the threshold.
    """
    logits = of_classes(logits)
    num_examples, num_classes = logits.shape
    predicted = predicted_classes(logits, threshold)
    correct = int((predicted == labels).sum())
    confusion = np.zeros((num_classes, num_classes), dtype=int)
    np.add.at(confusion, (labels, predicted), 1)
    log_probability = log_probabilities(logits)
    # Of two classes the difference of the logits: it orders as the probability does, and does not round to ties.
    ranking = logits - logits[:, ::-1] if num_classes == 2 else log_probability
    rows = metrics.per_class(confusion, ranking, labels, class_names)
    macro = metrics.macro(rows)
    return Evaluation(
        num_examples=num_examples,
        loss=cross_entropy(logits, labels),
        accuracy=correct / num_examples,
        accuracy_interval=metrics.wilson_interval(correct, num_examples),
        top_5_accuracy=metrics.top_k_accuracy(logits, labels),
        auroc=macro["auroc"],
        macro=macro,
        confusion=confusion.tolist(),
        per_class=rows,
        precision_recall=metrics.curves(rows, ranking, labels),
        calibration=calibration(np.exp(log_probability), labels),
    )


def temperature_scaling(
    logits: np.ndarray, labels: np.ndarray, *, fitted: float | None, is_used: bool
) -> dict[str, Any]:
    """Loss and calibration of logits float64 [n, 1 or k] before and after their division by a temperature; JSON values.

    Without a fitted temperature it is 1, and nothing changes.
    """
    temperature = DEFAULT_TEMPERATURE if fitted is None else fitted

    def at(scaled: np.ndarray) -> dict[str, Any]:
        return {"loss": cross_entropy(scaled, labels), **calibration(probabilities(scaled), labels)}

    return {
        "temperature": temperature,
        "is_fitted": fitted is not None,
        "is_used": is_used,
        "before": at(logits),
        "after": at(logits / temperature),
    }


def thresholds(logits: np.ndarray, labels: np.ndarray, *, used: float, best: float) -> dict[str, Any]:
    """The results of two classes at the threshold in use, at 0.5, and at the one that is best on validation, as JSON.

    `logits` float64 [n, 1 or 2], `labels` int64 [n]. Precision, recall and F1 are those of the second class.
    """

    def at(threshold: float) -> dict[str, Any]:
        found = evaluate(logits, labels, ("first", "second"), threshold=threshold)
        second = {name: found.per_class[1][name] for name in ("precision", "recall", "f1")}
        return {
            "threshold": threshold,
            "accuracy": found.accuracy,
            "balanced_accuracy": found.balanced_accuracy,
            **second,
        }

    rows = sorted({DEFAULT_THRESHOLD, used, best})
    return {"used": used, "best_on_validation": best, "on_test": [at(threshold) for threshold in rows]}
