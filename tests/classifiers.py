"""Small classifiers for the tests."""

from pathlib import Path
from typing import Any

import keras

from job.model.augmentation_policy import Augmentation
from job.model.classifier import Classifier, ModelRequest, build_classifier
from job.model.networks import tiny_backbone
from job.train.collective import Collective
from job.workers.team import Alone

ALONE = Collective(Alone(lambda: None))
"""For training by one worker."""


def build(**changes: Any) -> Classifier:
    """The smallest classifier, of two classes and new weights; keywords override."""
    values: dict[str, Any] = {
        "backbone": "Tiny", "weights": "none", "image_size": 16, "num_classes": 2, "dropout": 0.2,
        "augmentation": Augmentation(flip="horizontal", rotation=0.1), "policy": "float32", "seed": 0,
    }  # fmt: skip
    return build_classifier(ModelRequest(**(values | changes)))


def other_weights(folder: Path) -> Path:
    """A file of weights that a new backbone does not begin with."""
    keras.utils.set_random_seed(7)
    path = folder / "weights.weights.h5"
    tiny_backbone(16).save_weights(path)
    return path
