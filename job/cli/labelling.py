"""The model of a finished run, and label and probability of images by it; imports TensorFlow.

An image is decoded and resized as training does, and the model is the one whose metrics the report has: an image of the
test split gets the probability that the report gives it.
"""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from job.data import pixels
from job.data.files import image_files
from job.data.files.image_files import Unreadable
from job.data.resizing import Resizing
from job.errors import InputError
from job.model import networks
from job.model.answers import DEFAULT_THRESHOLD, predicted_classes
from job.report.files import LABELS, MODEL, THRESHOLD
from job.run.artefacts import verified_file
from job.schema import Record, recorded_setting
from job.storage import ObjectStore
from job.train import evaluation

NUM_THREADS = 4

Probability = Annotated[float, Field(gt=0, lt=1)]
Labelled = tuple[str, float] | str
"""Label and probability of an image, or why there are none."""


class Labeller:
    """The model of a finished run and the names of its classes."""

    def __init__(self, store: ObjectStore, record: Record, folder: Path) -> None:
        """The files are verified before anything looks inside; `folder` holds them meanwhile. Raises InputError."""

        def content(name: str, kind: Any, expected: str) -> Any:
            data = verified_file(store, record, name, folder / Path(name).name).read_bytes()
            try:
                return TypeAdapter(kind).validate_json(data, strict=True)
            except ValidationError as error:
                raise InputError(f"{name} is {expected}: {error.errors()[0]['msg']}") from error

        model_file = verified_file(store, record, MODEL, folder / Path(MODEL).name)
        self.class_names: list[str] = content(LABELS, list[str], "not a list of names")
        self._threshold: float = DEFAULT_THRESHOLD
        if THRESHOLD in record.files:
            self._threshold = content(THRESHOLD, Probability, "no threshold")
        network = networks.load_exported(model_file)
        num_classes = max(2, network.output_shape[-1])
        if len(self.class_names) != num_classes:
            raise InputError(f"{LABELS} has {len(self.class_names)} names, and the model has {num_classes} classes")
        self._forward = evaluation.forward_of(network)
        self._resizing = Resizing(int(network.input_shape[1]), recorded_setting(record.settings, "RESIZE"))

    def label(self, batch: np.ndarray) -> list[tuple[str, float]]:
        """Label and its probability of each of uint8 [b, s, s, 3]."""
        logits = self._forward(batch).numpy().astype(np.float64)
        predicted = predicted_classes(logits, self._threshold)
        return [
            (self.class_names[index], float(row[index]))
            for index, row in zip(predicted, evaluation.probabilities(logits), strict=True)
        ]

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
