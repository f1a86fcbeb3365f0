"""The files of a finished run, made one after the other in the scratch folder: model, logs, report.

This room makes them and says where they belong; `artefacts` puts them there.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras

from job.model import saved_model
from job.report import tensorboard
from job.report.files import CARD, HISTORY, LABELS, MODEL, PAGE, REPORT, SAVED_MODEL
from job.report.gallery import Gallery
from job.schema import EpochResult
from job.storage.scratch import save, save_json

NAMES = (
    MODEL, *(f"{SAVED_MODEL}/{name}" for name in saved_model.FILES), LABELS, HISTORY, *tensorboard.NAMES,
    REPORT, PAGE, CARD,
)  # fmt: skip
"""Every name under which something is written."""

Files = Iterator[tuple[str, Path]]
"""Names in the store, and the temporary files to put there."""


def model_files(model: keras.Model, class_names: Sequence[str], folder: Path) -> Files:
    """The model in both formats, and what its outputs mean. Raises ScratchUnavailable."""
    yield MODEL, save(model.save, folder / "model.keras")
    exported = save(partial(saved_model.save, model, class_names), folder / "saved_model")
    for name in saved_model.FILES:
        yield f"{SAVED_MODEL}/{name}", exported / name
    yield LABELS, save_json(list(class_names), folder / "labels.json")


def log_files(history: Sequence[EpochResult], folder: Path) -> Files:
    """What each epoch came to: for programs, and for TensorBoard. Raises ScratchUnavailable."""
    yield HISTORY, save_json([epoch.model_dump(mode="json") for epoch in history], folder / "history.json")
    yield from tensorboard.event_files(history, folder=folder).items()


def report_files(content: Mapping[str, Any], gallery: Gallery, folder: Path) -> Files:
    """The report for programs and for people, and the model's card. Raises ScratchUnavailable."""
    # Jinja and the drawing of plots are wanted now, and not by the months of training before.
    from job.report import card, page

    yield REPORT, save_json(content, folder / "report.json")
    html = page.page(
        content, training=gallery.training, augmented=gallery.augmented, right=gallery.right, wrong=gallery.wrong
    )
    yield PAGE, save(lambda path: path.write_text(html, "utf-8"), folder / "index.html")
    text = card.card(content)
    yield CARD, save(lambda path: path.write_text(text, "utf-8"), folder / "README.md")
