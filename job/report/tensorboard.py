"""The curves of a run for TensorBoard: an event file for each split, over all phases.

They are written from the history, after each epoch and when the run ends, so a repeated export gives the same files,
and those of a run that was resumed have each epoch once. `tensorboard --logdir <run>/logs` shows two curves in each
chart, `train` and `validation`, as of Keras's callback.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import tensorflow as tf
from tensorflow.core.framework.summary_pb2 import Summary
from tensorflow.core.util.event_pb2 import Event

from job.report import native_files
from job.schema import EpochResult
from job.storage.scratch import save

SPLITS = ("train", "validation")
FILE_VERSION = "brain.Event:2"
NAMES = tuple(f"logs/{split}/events.out.tfevents.thaw" for split in SPLITS)
"""Their names in the store."""


def event_files(history: Sequence[EpochResult], folder: Path) -> Iterator[tuple[str, Path]]:
    """Write the event files into `folder`; yields their names and paths. Raises ScratchUnavailable.

    Tags are `epoch_loss` (nats) and `epoch_accuracy` (0 to 1), as of Keras's callback, and for `train` also
    `epoch_learning_rate` and `epoch_images_per_second`, for `validation` `epoch_balanced_accuracy`. Steps are counted
    over the phases.
    """
    for name, split in zip(NAMES, SPLITS, strict=True):
        points = []
        for epoch, step in zip(history, _steps(history), strict=True):
            values = {"loss": getattr(epoch, f"{split}_loss"), "accuracy": getattr(epoch, f"{split}_accuracy")}
            if split == "validation" and epoch.validation_balanced_accuracy is not None:
                values["balanced_accuracy"] = epoch.validation_balanced_accuracy
            if split == "train":
                values |= {"learning_rate": epoch.learning_rate, "images_per_second": epoch.images_per_second}
            summary = Summary(value=[Summary.Value(tag=f"epoch_{tag}", simple_value=it) for tag, it in values.items()])
            points.append(Event(wall_time=epoch.ended.timestamp(), step=step, summary=summary))
        yield name, save(partial(_write, points), folder / f"{split}.tfevents")


def _steps(history: Sequence[EpochResult]) -> Iterator[int]:
    """The steps of the run that were done at the end of each epoch."""
    done = 0
    for _, epochs in itertools.groupby(history, key=lambda epoch: epoch.phase):
        steps = [done + epoch.step for epoch in epochs]
        yield from steps
        done = steps[-1]


def _write(points: Sequence[Event], path: Path) -> None:
    with native_files.explained(path), tf.io.TFRecordWriter(str(path)) as writer:
        for event in (Event(wall_time=points[0].wall_time, file_version=FILE_VERSION), *points):
            writer.write(event.SerializeToString())
