"""Event files: what TensorBoard reads of a run."""

from pathlib import Path

import tensorflow as tf
from tensorflow.core.util.event_pb2 import Event

from job.report import tensorboard
from tests.reports import epoch
from tests.runs import Undisturbed, record_of


def events_of(path: Path) -> list[Event]:
    return [Event.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(path))]


def values_of(event: Event) -> dict[str, float]:
    return {value.tag: value.simple_value for value in event.summary.value}


def test_every_epoch_is_a_point_at_its_step_and_time(undisturbed_run: Undisturbed) -> None:
    """Over both phases, whose steps go on, in files whose checksums TensorFlow's own reader verifies."""
    store, _, settings = undisturbed_run
    history = record_of(store).history
    rates = [phase.learning_rate for phase in settings.training_phases() for _ in range(phase.epochs)]
    for split in ("train", "validation"):
        first, *points = events_of(store.root / f"logs/{split}/events.out.tfevents.thaw")
        assert first.file_version == "brain.Event:2"
        assert [point.step for point in points] == [3, 6, 9, 12]
        for point, result, rate in zip(points, history, rates, strict=True):
            assert point.wall_time == result.ended.timestamp()
            expected = {
                "epoch_loss": getattr(result, f"{split}_loss"), "epoch_accuracy": getattr(result, f"{split}_accuracy"),
            }  # fmt: skip
            if split == "validation":
                expected["epoch_balanced_accuracy"] = result.validation_balanced_accuracy
            if split == "train":
                expected |= {"epoch_learning_rate": rate, "epoch_images_per_second": result.images_per_second}
            assert values_of(point) == {tag: tf.constant(value).numpy() for tag, value in expected.items()}


def test_one_phase_begins_at_its_own_steps(tmp_path: Path) -> None:
    """Whichever it is."""
    files = dict(tensorboard.event_files([epoch("fine_tune", 0, learning_rate=0.25)], tmp_path))
    assert tuple(files) == tensorboard.NAMES
    _, point = events_of(files["logs/train/events.out.tfevents.thaw"])
    assert (point.step, values_of(point)["epoch_learning_rate"]) == (3, 0.25)
