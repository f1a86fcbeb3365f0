"""The single images of the report: which examples, their predictions, and their pixels.

The choice is a pure function of seed, labels and logits, and the augmentation is that of the training.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from job.data import image_table
from job.data.order import permutation
from job.data.splits import Split, Splits
from job.model.activation_maps import activation_maps
from job.model.answers import DEFAULT_THRESHOLD, predicted_classes
from job.model.augmentation import Rows
from job.model.classifier import Classifier
from job.train.evaluation import probabilities

NUM_TRAINING_IMAGES = 12
NUM_AUGMENTED_IMAGES = 4
NUM_VARIANTS = 5
NUM_FIRST_PREDICTIONS = 16
NUM_MOST_CONFIDENT = 12
NUM_RIGHT_MAPS = 6


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Examples as JSON values, and the pixels of some of them, uint8 [n, s, s, 3].

    `examples` are those of `training_sample` and `predictions`; `augmented` are variants of the first of `training`,
    uint8 [n, variants, s, s, 3]. `right_maps` and `wrong_maps`, float32 [n, h, w] from 0 to 1, are activation maps of
    the predicted class, of the first of `right` and of all of `wrong`.
    """

    examples: dict[str, Any]
    training: np.ndarray
    augmented: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    right_maps: np.ndarray
    wrong_maps: np.ndarray


def gather(
    classifier: Classifier,
    splits: Splits,
    *,
    exported: keras.Model,
    logits: np.ndarray,
    names: Sequence[str] | None,
    threshold: float,
    seed: int,
) -> Gallery:
    """The gallery of a trained model and its exported one.

    `logits` float64 [n, 1 or k] are over the test split, and `names` those of its n images, where they have any.
    """
    sample = training_sample(splits.train.labels, splits.class_names, seed=seed)
    predicted = predictions(logits, splits.test.labels, splits.class_names, names=names, threshold=threshold)
    training = _pixels(splits.train, sample)
    of_right, of_wrong = predicted["most_confident"]["right"], predicted["most_confident"]["wrong"]
    right, wrong = _pixels(splits.test, of_right), _pixels(splits.test, of_wrong)
    explained = [*of_right[:NUM_RIGHT_MAPS], *of_wrong]
    classes = [splits.class_names.index(example["predicted"]) for example in explained]
    maps = activation_maps(exported, [*right[:NUM_RIGHT_MAPS], *wrong], classes)
    num_right = len(explained) - len(of_wrong)
    return Gallery(
        examples={"training_sample": sample, **predicted},
        training=training,
        augmented=_augmented(classifier, training[:NUM_AUGMENTED_IMAGES], seed=seed),
        right=right,
        wrong=wrong,
        right_maps=maps[:num_right],
        wrong_maps=maps[num_right:],
    )


def training_sample(labels: np.ndarray, class_names: Sequence[str], *, seed: int) -> list[dict[str, Any]]:
    """Up to twelve examples of the training split, one of each class in turn, as index and label."""
    order = permutation(len(labels), f"report/{seed}")
    turn = np.zeros(len(labels), dtype=int)
    for label in range(len(class_names)):
        of_class = labels[order] == label
        turn[of_class] = np.arange(of_class.sum())
    chosen = order[np.lexsort((labels[order], turn))][:NUM_TRAINING_IMAGES]
    return [{"index": int(index), "label": class_names[labels[index]]} for index in chosen]


def predictions(
    logits: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    threshold: float = DEFAULT_THRESHOLD,
) -> dict[str, Any]:
    """Examples of a split with their index, name, label, prediction and its probability.

    `predictions` are the first sixteen; `most_confident` has up to twelve each that are `right` and `wrong`, the most
    probable prediction first, ties in order. `names` are those of the n images, which have none by default.
    """
    probability = probabilities(logits)
    predicted = predicted_classes(logits, threshold)
    of_predicted = probability[np.arange(len(labels)), predicted]
    is_right = predicted == labels
    surest = np.argsort(-of_predicted, kind="stable")

    def described(indices: Iterable[int]) -> list[dict[str, Any]]:
        return [
            {
                "index": int(index),
                "name": names[index] if names is not None else None,
                "label": class_names[labels[index]],
                "predicted": class_names[predicted[index]],
                "probability": float(of_predicted[index]),
            }
            for index in indices
        ]

    return {
        "predictions": described(range(min(NUM_FIRST_PREDICTIONS, len(labels)))),
        "most_confident": {
            name: described(surest[chosen[surest]][:NUM_MOST_CONFIDENT])
            for name, chosen in (("right", is_right), ("wrong", ~is_right))
        },
    }


def names_of_test(splits: Splits) -> list[str] | None:
    """Of the test images, in order, where they have any."""
    if splits.table is None:
        return None
    return [row["name"] for row in image_table.rows(splits.table) if row["split"] == splits.test.name]


def _pixels(split: Split, examples: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The images of examples by their index, uint8 [n, s, s, 3]; n may be 0."""
    indices = np.array([example["index"] for example in examples], dtype=np.int64)
    if len(indices) == 0:
        return np.empty((0, 1, 1, 3), dtype=np.uint8)
    ((images, _),) = split.batches(len(indices), order=indices)
    return np.asarray(images)


def _augmented(classifier: Classifier, images: np.ndarray, *, seed: int) -> np.ndarray:
    """Several variants of each image, as training may use it: uint8 [n, variants, s, s, 3]."""

    @tf.function(autograph=False)
    def variant(image: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        changed = classifier.augmented(image[tf.newaxis], seeds, Rows(0, 1))
        return tf.saturate_cast(tf.round(changed), tf.uint8)[0]

    # One after the other: all at once, in float32, would take more memory than a small batch of training.
    repeated = np.repeat(images, NUM_VARIANTS, axis=0)
    pixels = np.empty_like(repeated)
    for index, image in enumerate(repeated):
        pixels[index] = variant(tf.constant(image), tf.constant([seed, index], tf.int32))
    return pixels.reshape(len(images), NUM_VARIANTS, *images.shape[1:])
