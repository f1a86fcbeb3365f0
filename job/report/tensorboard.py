"""The curves of a run for TensorBoard: an event file for each phase and split.

They are written from the history when the run ends, so a repeated export gives the same files.
`tensorboard --logdir <run>/logs` shows both phases, each with its steps and the wall time of its epochs.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import tensorflow as tf
from tensorflow.core.framework.summary_pb2 import Summary
from tensorflow.core.util.event_pb2 import Event

from job.phases import PHASE_NAMES
from job.schema import EpochResult
from job.storage.scratch import save

SPLITS = ("train", "validation")
FILE_VERSION = "brain.Event:2"


def _name(phase: str, split: str) -> str:
    return f"logs/{phase}/{split}/events.out.tfevents.thaw"


NAMES = tuple(_name(phase, split) for phase in PHASE_NAMES for split in SPLITS)
"""Their names in the store; those of a phase that did not train are not written."""


def event_files(history: Sequence[EpochResult], folder: Path) -> Iterator[tuple[str, Path]]:
    """Write the event files into `folder`; yields their names and paths. Raises ScratchUnavailable.

    Tags are `epoch_loss` (nats) and `epoch_accuracy` (0 to 1), as those of Keras's callback, by step of the phase.
    """
    for phase in PHASE_NAMES:
        epochs = [epoch for epoch in history if epoch.phase == phase]
        for split in SPLITS if epochs else ():
            yield _name(phase, split), save(partial(_write, epochs, split), folder / f"{phase}-{split}.tfevents")


def _write(epochs: Sequence[EpochResult], split: str, path: Path) -> None:
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(Event(wall_time=epochs[0].ended.timestamp(), file_version=FILE_VERSION).SerializeToString())
        for epoch in epochs:
            values = [
                Summary.Value(tag="epoch_loss", simple_value=getattr(epoch, f"{split}_loss")),
                Summary.Value(tag="epoch_accuracy", simple_value=getattr(epoch, f"{split}_accuracy")),
            ]
            event = Event(wall_time=epoch.ended.timestamp(), step=epoch.step, summary=Summary(value=values))
            writer.write(event.SerializeToString())
