"""How much each class counts in the training loss. Numbers alone: the loop multiplies by them."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from job.data.composition import MAX_CLASSES

Weights = tuple[float, ...]


def choose(kind: Literal["none", "balanced"], counts: np.ndarray) -> Weights | None:
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


def summary(weights: Weights | None, class_names: Sequence[str]) -> dict[str, float] | None:
    """For a line of the log, in four digits: each weight by class name; of many, the smallest and the largest."""
    if weights is None:
        return None
    named = dict(zip(class_names, weights, strict=True))
    if len(named) > MAX_CLASSES:
        named = {"smallest": min(weights), "largest": max(weights)}
    return {name: float(f"{weight:.4g}") for name, weight in named.items()}
