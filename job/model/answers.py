"""From logits to an answer: the temperature that divides them, which class is the answer, which classes are the same.

By default the temperature is 1 and of two classes the more probable one is the answer.
"""

import math
from collections import Counter
from collections.abc import Sequence

import keras
import numpy as np

DEFAULT_TEMPERATURE = 1.0
DEFAULT_THRESHOLD = 0.5


def of_classes(logits: np.ndarray) -> np.ndarray:
    """Logits float64 [n, k] of each class; one logit, [n, 1], stands for (0, logit)."""
    return np.concatenate([np.zeros_like(logits), logits], axis=1) if logits.shape[1] == 1 else logits


def logit_of(probability: float) -> float:
    """The logit of a probability between 0 and 1; exactly 0 for one half."""
    return math.log(probability / (1 - probability))


def predicted_classes(logits: np.ndarray, threshold: float = DEFAULT_THRESHOLD) -> np.ndarray:
    """The class of each example, int64 [n], from logits float64 [n, 1 or k].

    Of two classes the second, where its probability is above the threshold; it is compared as a logit, which does not
    round to 0 or 1. Of more, the one with the greatest logit.
    """
    logits = of_classes(logits)
    if logits.shape[1] > 2:
        return logits.argmax(axis=1)
    return (logits[:, 1] - logits[:, 0] > logit_of(threshold)).astype(np.int64)


def same_classes(model_names: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """The class of a model for each name, int64 [n]: the one of the same name, -1 where there is none.

    As to the identity of data, `Cat` and `cat` are the same, where the model does not have both.
    """
    exact = {name: number for number, name in enumerate(model_names)}
    counts_folded = Counter(map(str.casefold, exact))
    folded = {key: number for name, number in exact.items() if counts_folded[key := name.casefold()] == 1}
    return np.array([exact.get(name, folded.get(name.casefold(), -1)) for name in names], np.int64)


def calibrated(model: keras.Model, temperature: float) -> keras.Model:
    """The model with its logits divided by a temperature, by a last layer of Keras's own; at 1 the model itself.

    The layers and weights are those of `model`, and the output of its layer `head` has the logits as they were.
    """
    if temperature == DEFAULT_TEMPERATURE:
        return model
    layer = keras.layers.Rescaling(1 / temperature, name="temperature", dtype="float32")
    return keras.Model(model.input, layer(model.output), name=model.name)
