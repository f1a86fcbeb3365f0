"""The files of a finished run, written one after the other to the scratch folder: model, logs, report.

This module writes them and names each; `artefacts` uploads them.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras

from job.data.resizing import Way
from job.model.answers import DEFAULT_THRESHOLD
from job.report import saved_model, tensorboard
from job.report.content import Results
from job.report.files import CARD, HISTORY, LABELS, MODEL, PAGE, PREDICTIONS, REPORT, SAVED_MODEL, THRESHOLD
from job.schema import EpochResult
from job.storage.scratch import save, save_json

NAMES = (
    MODEL, *(f"{SAVED_MODEL}/{name}" for name in saved_model.FILES), LABELS, THRESHOLD, HISTORY, *tensorboard.NAMES,
    REPORT, PREDICTIONS, PAGE, CARD,
)  # fmt: skip
"""Every name under which something is written."""

Files = Iterator[tuple[str, Path]]
"""Names in the store, and the temporary files to upload."""


def model_files(
    model: keras.Model, class_names: Sequence[str], folder: Path, *, threshold: float, resize: Way
) -> Files:
    """The model in both formats, the names of its outputs, its threshold if it has one. Raises ScratchUnavailable."""
    yield MODEL, save(model.save, folder / "model.keras")
    write = partial(saved_model.save, model, class_names, threshold=threshold, resize=resize)
    exported = save(write, folder / "saved_model")
    for name in saved_model.FILES:
        yield f"{SAVED_MODEL}/{name}", exported / name
    yield LABELS, save_json(list(class_names), folder / "labels.json")
    if threshold != DEFAULT_THRESHOLD:
        yield THRESHOLD, save_json(threshold, folder / "threshold.json")


def log_files(history: Sequence[EpochResult], folder: Path) -> Files:
    """The result of each epoch: for programs, and for TensorBoard. Raises ScratchUnavailable."""
    yield HISTORY, save_json([epoch.model_dump(mode="json") for epoch in history], folder / "history.json")
    yield from tensorboard.event_files(history, folder)


def report_files(content: Mapping[str, Any], results: Results, folder: Path) -> Files:
    """The report for programs and for people, every prediction, and the model's card. Raises ScratchUnavailable."""
    # Imported here: Jinja and Matplotlib are not needed before a run is trained.
    from job.report import card, page

    yield REPORT, save_json(content, folder / "report.json")
    yield PREDICTIONS, save(partial(Path.write_bytes, data=results.predictions), folder / "predictions.csv")
    for name, text in ((PAGE, page.page(content, results.gallery)), (CARD, card.card(content))):
        yield name, save(partial(Path.write_text, data=text, encoding="utf-8"), folder / Path(name).name)
