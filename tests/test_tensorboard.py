"""Event files: what TensorBoard reads of a run."""

from datetime import UTC, datetime
from pathlib import Path

import tensorflow as tf
from tensorflow.core.util.event_pb2 import Event

from job.report import tensorboard
from job.schema import EpochResult
from tests.runs import Undisturbed, record_of


def events_of(path: Path) -> list[Event]:
    return [Event.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(path))]


def test_every_epoch_is_a_point_at_its_step_and_time(undisturbed_run: Undisturbed) -> None:
    """Of both phases and both splits, in files whose checksums TensorFlow's own reader verifies."""
    store, _, _ = undisturbed_run
    history = record_of(store).history
    for phase in ("head", "fine_tune"):
        epochs = [epoch for epoch in history if epoch.phase == phase]
        for split in ("train", "validation"):
            first, *points = events_of(store.root / f"logs/{phase}/{split}/events.out.tfevents.thaw")
            assert first.file_version == "brain.Event:2"
            assert [point.step for point in points] == [3, 6]
            for point, epoch in zip(points, epochs, strict=True):
                assert point.wall_time == epoch.ended.timestamp()
                values = {value.tag: value.simple_value for value in point.summary.value}
                loss, accuracy = getattr(epoch, f"{split}_loss"), getattr(epoch, f"{split}_accuracy")
                assert values == {
                    "epoch_loss": tf.constant(loss).numpy(),
                    "epoch_accuracy": tf.constant(accuracy).numpy(),
                }


def test_a_phase_that_did_not_train_has_no_file(tmp_path: Path) -> None:
    """TensorBoard would show an empty run."""
    epoch = EpochResult(
        phase="head", epoch=0, step=3, ended=datetime.now(UTC), train_loss=0.1, train_accuracy=0.9,
        validation_loss=0.2, validation_accuracy=0.8, train_seconds=3.0, validation_seconds=1.0, images_per_second=40.0,
    )  # fmt: skip
    files = dict(tensorboard.event_files([epoch], tmp_path))
    assert set(files) == {name for name in tensorboard.NAMES if name.startswith("logs/head/")}
    assert all(path.is_file() for path in files.values())
