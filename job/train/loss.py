"""The loss of examples, how much each class counts in it, and what an epoch sums up of them."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import tensorflow as tf

from job.data.composition import MAX_CLASSES

ClassWeights = tuple[float, ...]


def loss_of(logits: tf.Tensor, labels: tf.Tensor, *, label_smoothing: float = 0.0) -> tf.Tensor:
    """Cross-entropy in nats of each example, float32 [b], from logits [b, 1] (two classes) or [b, k].

    With label smoothing s the target of each class is (1 - s) * target + s / k (Szegedy et al. 2016, arXiv:1512.00567,
    section 7; `label_smoothing` of Keras's crossentropies).
    """
    if logits.shape[-1] == 1:
        targets = tf.cast(labels, logits.dtype)[:, tf.newaxis]
        if label_smoothing > 0:
            targets = targets * (1 - label_smoothing) + label_smoothing / 2
        return tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)[:, 0]
    if label_smoothing > 0:
        num_classes = logits.shape[-1]
        targets = tf.one_hot(labels, num_classes, 1 - label_smoothing + label_smoothing / num_classes,
                             label_smoothing / num_classes, dtype=logits.dtype)  # fmt: skip
        return tf.nn.softmax_cross_entropy_with_logits(targets, logits)
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)


def most_probable(logits: tf.Tensor) -> tf.Tensor:
    """The class of each example, int64 [b]; for one logit, class 1 above 0."""
    if logits.shape[-1] == 1:
        return tf.cast(logits[:, 0] > 0, tf.int64)
    return tf.argmax(logits, axis=-1)


def sums_of(logits: tf.Tensor, labels: tf.Tensor, losses: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
    """Loss, correct answers and number of examples with these losses, float32 [b]: float64 [3].

    `counts`, float32 [b], is 1 for each row that counts and else 0, as its loss is then.
    """
    # Not as int32, which TensorFlow compares in the memory of the host: a step would wait for the GPU (2.21).
    is_correct = tf.cast(most_probable(logits) == tf.cast(labels, tf.int64), counts.dtype)
    return tf.stack([tf.reduce_sum(tf.cast(each, tf.float64)) for each in (losses, is_correct * counts, counts)])


def means_of(sums: np.ndarray) -> tuple[float, float]:
    """Mean loss and accuracy of such sums, float64 [3]; (0, 0) of no example."""
    loss, correct, examples = sums
    return (loss / examples, correct / examples) if examples else (0.0, 0.0)


def class_weights(kind: Literal["none", "balanced"], counts: np.ndarray) -> ClassWeights | None:
    """The weight of each class, from its training examples, int64 [classes]; None: the loss is not weighted.

    `balanced` is n / (k * n_c) for class c: n examples, n_c of them of class c, and k classes that have examples. So
    each class has the same part in the loss, and the mean weight of an example is 1. A class without examples has
    weight 1. This is `class_weight="balanced"` of scikit-learn, which refers to King & Zeng 2001, "Logistic Regression
    in Rare Events Data", Political Analysis 9(2).
    """
    if kind == "none":
        return None
    total, num_present = int(counts.sum()), int((counts > 0).sum())
    return tuple(total / (num_present * count) if count else 1.0 for count in counts.tolist())


def weights_summary(weights: ClassWeights | None, class_names: Sequence[str]) -> dict[str, float] | None:
    """For a line of the log, in four digits: each weight by class name; of many, the smallest and the largest."""
    if weights is None:
        return None
    named = dict(zip(class_names, weights, strict=True))
    if len(named) > MAX_CLASSES:
        named = {"smallest": min(weights), "largest": max(weights)}
    return {name: float(f"{weight:.4g}") for name, weight in named.items()}
