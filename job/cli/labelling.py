"""Label and probability of images by the model of a finished run; imports TensorFlow.

An image is decoded and resized as training does, and the model is the one whose metrics the report has: an image of the
test split gets the probability that the report gives it.
"""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from job.data import pixels
from job.data.files import image_files
from job.data.files.image_files import Unreadable
from job.model.answers import predicted_classes
from job.run.finished_model import FinishedModel
from job.train import evaluation

NUM_THREADS = 4

MAX_PROBABILITIES, TOP_K = 20, 5
"""An answer has the probabilities of so many classes; of more, those of the most probable ones."""


class Answer(NamedTuple):
    """The label of an image, its probability, and the probabilities of the classes, the most probable first."""

    label: str
    probability: float
    probabilities: dict[str, float]


Labelled = Answer | str
"""The answer for an image, or why there is none."""


class Labeller:
    """Labels images with the model of a finished run."""

    def __init__(self, model: FinishedModel) -> None:
        self.class_names = model.class_names
        self._threshold = model.threshold
        self._forward = evaluation.forward_of(model.network)
        self._resizing = model.resizing

    def label(self, batch: np.ndarray) -> list[Answer]:
        """The answer for each of uint8 [b, s, s, 3]."""
        logits = self._forward(batch).numpy().astype(np.float64)
        predicted = predicted_classes(logits, self._threshold)
        return [
            Answer(self.class_names[index], float(row[index]), self._most_probable(row))
            for index, row in zip(predicted, evaluation.probabilities(logits), strict=True)
        ]

    def _most_probable(self, row: np.ndarray) -> dict[str, float]:
        """Of the probabilities of the classes, float64 [k]."""
        num_shown = len(row) if len(row) <= MAX_PROBABILITIES else TOP_K
        order = np.argsort(-row, kind="stable")[:num_shown]
        return {self.class_names[index]: float(row[index]) for index in order}

    def label_files(
        self, paths: Iterator[str | Unreadable], batch_size: int, folder: Path
    ) -> Iterator[list[tuple[str, Labelled]]]:
        """The answers in the order of the paths, a batch at a time; `folder` is for temporary files."""

        def load(path: str | Unreadable) -> np.ndarray | str:
            if isinstance(path, Unreadable):
                return path.reason
            try:
                return pixels.decode_bytes(image_files.read(path, folder), self._resizing)
            except ValueError as error:
                return str(error)

        with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="decode") as executor:
            while batch := list(itertools.islice(paths, batch_size)):
                loaded = list(executor.map(load, batch))
                decoded = [image for image in loaded if not isinstance(image, str)]
                labels = iter(self.label(np.stack(decoded)) if decoded else ())
                yield [
                    (path if isinstance(path, str) else path.path, image if isinstance(image, str) else next(labels))
                    for path, image in zip(batch, loaded, strict=True)
                ]
