"""Event files: what TensorBoard reads of a run, while it trains and afterwards."""

import time
from pathlib import Path

import pytest
import tensorflow as tf
from tensorflow.core.util.event_pb2 import Event

from job.errors import Superseded
from job.observe import events
from job.report import tensorboard
from job.run.curves import Curves
from job.run.record import Identity, RunRecord
from job.storage import MISSING, LocalStore
from tests.conftest import Recorder
from tests.reports import epoch
from tests.runs import HOLDER, Small, Undisturbed, record_of, start

IDENTITY = Identity(run_id="small", fingerprint="f", settings={})
VALIDATION = "logs/validation/events.out.tfevents.thaw"


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


def steps_in(store: LocalStore) -> list[int]:
    return [event.step for event in events_of(store.root / VALIDATION)[1:]] if store.version(VALIDATION) else []


def test_they_are_there_while_the_run_trains(small: Small, store: LocalStore) -> None:
    """After each epoch, here as the second one ends; at the end they are what the record names."""
    seen = []

    class Watcher(Recorder):
        def event(self, event: events.Event) -> None:
            if isinstance(event, events.EpochFinished) and event.epoch == 1:
                until = time.monotonic() + 240
                while not steps_in(store) and time.monotonic() < until:
                    time.sleep(0.01)
                seen.append(steps_in(store))

    start(small(head_epochs=2, fine_tune_epochs=0), store, observer=Watcher())
    assert (seen, steps_in(store)) == ([[3]], [3, 6])
    assert VALIDATION in record_of(store).files


@pytest.fixture
def record(store: LocalStore) -> RunRecord:
    """That of a run which this attempt holds."""
    record = RunRecord.open(store, IDENTITY)
    record.take(HOLDER, lease_seconds=60)
    return record


def test_what_another_process_wrote_meanwhile_is_written_over_only_by_who_holds_the_run(
    store: LocalStore, record: RunRecord, tmp_path: Path
) -> None:
    """At the next epoch; the attempt that lost the run changes nothing."""
    curves, history = Curves(store, record, tmp_path), [epoch("head", 0)]
    store.write(VALIDATION, b"late", if_version=MISSING)
    curves.write(history)
    assert store.read(VALIDATION).data == b"late"
    curves.write(history)
    assert steps_in(store) == [3]
    RunRecord.open(store, IDENTITY).take(HOLDER, lease_seconds=60)
    store.write(VALIDATION, b"the winner's", if_version=store.version(VALIDATION))
    with pytest.raises(Superseded):
        curves.write(history)
    assert store.read(VALIDATION).data == b"the winner's"


def test_a_store_or_disk_that_fails_is_left_to_the_next_epoch(
    store: LocalStore, record: RunRecord, tmp_path: Path
) -> None:
    """Nothing is raised, as the run needs none of it."""
    (tmp_path / "no folder").write_text("")
    Curves(store, record, tmp_path / "no folder").write([epoch("head", 0)])
    assert store.list("logs/") == []
