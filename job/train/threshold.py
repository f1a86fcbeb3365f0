"""The threshold of the probability of the second of two classes, from the validation split."""

import math

import numpy as np

from job.model.answers import DEFAULT_THRESHOLD, logit_of, of_classes

LOWEST_THRESHOLD, HIGHEST_THRESHOLD = 1e-6, 1 - 1e-6


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
