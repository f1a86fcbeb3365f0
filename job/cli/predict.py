"""`python -m job predict`: label and probability of images, by the model of a finished run.

An image is decoded and resized as training does, and the model is the one whose metrics the report has: an image of the
test split gets the probability that the report gives it. Images are taken a batch at a time, so there may be any
number of them.
"""

import itertools
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path
from typing import cast

import numpy as np
from pydantic import TypeAdapter, ValidationError
from rich.table import Table

from job import memory
from job.cli.arguments import Predict
from job.cli.runs import recorded
from job.cli.tables import Paper, plain, print_json
from job.data import image_files, pixels
from job.data.image_files import Unreadable
from job.errors import ExitCode, InputError, InvalidSettings, RunUnavailable
from job.model import networks
from job.report.export import LABELS, MODEL
from job.run.artefacts import verified_file
from job.schema import Record, recorded_setting
from job.settings.resources import MAX_EVALUATION_BATCH
from job.storage import ObjectStore, open_store, scratch
from job.train import evaluation

NUM_THREADS = 4

Labelled = tuple[str, float] | str
"""Label and probability of an image, or why there are none."""


class Labeller:
    """The model of a run and the names of its classes."""

    def __init__(self, model_file: Path, class_names: Sequence[str]) -> None:
        """Raises InputError unless the file, which is verified, can be loaded as a model of that many classes."""
        network = networks.load_exported(model_file)
        num_classes = max(2, network.output_shape[-1])
        if len(class_names) != num_classes:
            raise InputError(f"{LABELS} has {len(class_names)} names, and the model tells {num_classes} classes apart")
        self.class_names = class_names
        self._forward = evaluation.forward_of(network)
        self.image_size = int(network.input_shape[1])

    def label(self, batch: np.ndarray) -> list[tuple[str, float]]:
        """Label and probability of each of uint8 [b, s, s, 3]."""
        probabilities = evaluation.probabilities(self._forward(batch).numpy().astype(np.float64))
        return [(self.class_names[row.argmax()], float(row.max())) for row in probabilities]


def predict(question: Predict) -> ExitCode:
    """Show a label for each image. Raises RunUnavailable, InputError, StorageError; BAD_INPUT when some had none."""
    store = open_store(question.run)
    found = _finished(store)
    with scratch.folder(question.cache_dir) as folder:
        labeller = _labeller(store, found, folder)
    paper = None if question.as_json or not sys.stdout.isatty() else Paper()
    num_images, num_failed = 0, 0
    paths = image_files.find(question.images, standard_input=_standard_input, passed_over=_passed_over)
    batch_size = question.batch_size or min(recorded_setting(found.settings, "BATCH_SIZE"), MAX_EVALUATION_BATCH)
    with (
        scratch.folder(question.cache_dir) as folder,
        memory.explained(lambda: f"for {batch_size} images at a time", lambda: "give a smaller --batch-size"),
    ):
        for batch in _labelled(paths, labeller, batch_size, folder):
            if paper is None:
                for path, answer in batch:
                    print_json(_as_json(path, answer))
            else:
                paper.print(_as_table(batch, show_header=num_images == 0, labeller=labeller))
            num_images += len(batch)
            num_failed += sum(isinstance(answer, str) for _, answer in batch)
    if num_images == 0:
        raise InputError("no image was named on standard input", hint="give a path on each line")
    if num_failed:
        print(f"{num_failed} of {num_images} could not be read", file=sys.stderr)
    return ExitCode.BAD_INPUT if num_failed else ExitCode.COMPLETE


def _standard_input() -> BufferedReader:
    if sys.stdin is None:
        raise InvalidSettings("predict: - reads paths from standard input, which is closed", hint="name the images")
    return cast(BufferedReader, sys.stdin.buffer)


def _passed_over(path: str) -> None:
    print(f"{plain(path)}: a link to a folder is not followed; name it to have its images", file=sys.stderr)


def _finished(store: ObjectStore) -> Record:
    found = recorded(store)
    if found.outcome is None:
        raise RunUnavailable(
            f"run {found.run_id!r} is not finished: it is in {found.state}, and has no model yet",
            hint=f"python -m job status --run {store.uri}",
        )
    return found


def _labeller(store: ObjectStore, found: Record, folder: Path) -> Labeller:
    """What the record names, verified before anything looks inside."""
    model_file = verified_file(store, found, MODEL, folder / "model.keras")
    labels_file = verified_file(store, found, LABELS, folder / "labels.json")
    return Labeller(model_file, _class_names(labels_file.read_bytes()))


def _class_names(data: bytes) -> list[str]:
    try:
        return TypeAdapter(list[str]).validate_json(data, strict=True)
    except ValidationError as error:
        raise InputError(f"{LABELS} is not a list of names: {error.errors()[0]['msg']}") from error


def _labelled(
    paths: Iterator[str | Unreadable], labeller: Labeller, batch_size: int, folder: Path
) -> Iterator[list[tuple[str, Labelled]]]:
    """The answers in the order of the paths, a batch at a time."""

    def load(path: str | Unreadable) -> np.ndarray | str:
        if isinstance(path, Unreadable):
            return path.reason
        try:
            return pixels.decode_bytes(image_files.read(path, folder), labeller.image_size)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="decode") as executor:
        while batch := list(itertools.islice(paths, batch_size)):
            loaded = list(executor.map(load, batch))
            decoded = [image for image in loaded if not isinstance(image, str)]
            labels = iter(labeller.label(np.stack(decoded)) if decoded else ())
            yield [
                (path if isinstance(path, str) else path.path, image if isinstance(image, str) else next(labels))
                for path, image in zip(batch, loaded, strict=True)
            ]


def _as_json(path: str, answer: Labelled) -> dict[str, str | float]:
    if isinstance(answer, str):
        return {"image": path, "error": answer}
    label, probability = answer
    return {"image": path, "label": label, "probability": probability}


def _as_table(batch: Sequence[tuple[str, Labelled]], *, show_header: bool, labeller: Labeller) -> Table:
    """The columns of every batch have the same width, so that batches read as one table."""
    table = Table(box=None, show_header=show_header, header_style="bold", padding=(0, 2, 0, 0))
    width = max(len("label"), *map(len, labeller.class_names))
    table.add_column("label", width=width, no_wrap=True)
    table.add_column("probability", width=len("probability"), justify="right")
    table.add_column("image", overflow="fold")
    for path, answer in batch:
        if isinstance(answer, str):
            table.add_row("", "", plain(f"{path}: {answer}", "red"))
        else:
            table.add_row(plain(answer[0]), f"{answer[1]:.4f}", plain(path))
    return table
