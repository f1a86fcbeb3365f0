"""The run as a whole, in this process: every way to start it, and a crash at every touch of the store."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from job import attempt, events
from job.errors import (
    InputError,
    Interrupted,
    QualityGateMissed,
    RunMismatch,
    StorageError,
    Superseded,
    TrainingDiverged,
)
from job.record import RECORD_NAME, Record
from job.settings import Settings
from job.storage import LocalStore, ObjectStore
from tests.conftest import Recorder
from tests.stores import BrokenStore, Crash, CrashingStore


class StopAfter:
    """Tells a run to stop at its n-th question."""

    def __init__(self, questions: int) -> None:
        self.left = questions

    def __call__(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Interrupted("told to stop")


class StopAtStep(Recorder):
    """Tells a run to stop right after a step of a phase, which it learns as a terminal would."""

    wants_steps = True

    def __init__(self, phase: str, step: int) -> None:
        super().__init__()
        self._title = f"{phase} epoch {step // 3 + 1}"
        self._batch = step % 3 + 1
        self._reached = False

    def step(self, *, title: str, done: int, **_: Any) -> None:
        self._reached |= (title, done) == (self._title, self._batch)

    def check_stop(self) -> None:
        if self._reached:
            raise Interrupted("told to stop")


def never() -> None:
    pass


def start(
    settings: Settings,
    store: ObjectStore,
    *,
    reader: Recorder | None = None,
    check_stop: Callable[[], None] = never,
) -> Recorder:
    reader = reader or Recorder()
    attempt.make(settings, store=store, holder="test", reader=reader, check_stop=check_stop)
    return reader


def record_of(store: ObjectStore) -> Record:
    return Record.model_validate_json(store.read(RECORD_NAME).data)


def result_of(store: ObjectStore) -> dict[str, Any]:
    """What must be the same however often a run was interrupted."""
    record = record_of(store)
    assert record.outcome is not None
    learned = [epoch.model_dump(exclude={"train_seconds", "validation_seconds", "images_per_second"})
               for epoch in record.history]  # fmt: skip
    return {"outcome": record.outcome, "history": learned}


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalStore, Recorder, Settings]:
    """The small run, never interrupted."""
    from tests.conftest import SMALL_RUN

    folder = tmp_path_factory.mktemp("undisturbed")
    store = LocalStore(folder / "small")
    settings = Settings(**(SMALL_RUN | {"data_dir": str(prepared), "cache_dir": folder / "cache"}))
    return store, start(settings, store), settings


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "run")


Undisturbed = tuple[LocalStore, Recorder, Settings]
Small = Callable[..., Settings]


# What a complete run leaves


def test_a_run_goes_through_every_stage_in_order(undisturbed: Undisturbed) -> None:
    """The events of a run are its straight line."""
    _, reader, _ = undisturbed
    names = [name for name in reader.names() if name not in (events.EPOCH_FINISHED, events.COMMITTED)]
    assert names == [
        events.RUN_CLAIMED, events.DATA_LOADED, events.MODEL_BUILT,
        events.PHASE_STARTED, events.STEP_COMPILED, events.PHASE_STARTED, events.STEP_COMPILED,
        events.EVALUATED, events.EXPORTED, events.RUN_FINISHED, "Run small is complete",
    ]  # fmt: skip


def test_the_record_says_all_that_is_known_of_a_finished_run(undisturbed: Undisturbed) -> None:
    """The fields that readers rely on."""
    store, _, settings = undisturbed
    content = json.loads(store.read(RECORD_NAME).data)
    assert (content["run_id"], content["fingerprint"]) == ("small", settings.fingerprint())
    assert content["state"] == "done"
    assert content["settings"] == settings.result_settings()
    assert [attempt["exit_code"] for attempt in content["attempts"]] == [0]
    assert content["attempts"][0]["end"] > content["attempts"][0]["start"]
    assert {"test_accuracy", "test_loss", "model_sha256"} <= content["outcome"].keys()


def test_the_store_holds_what_the_layout_promises_and_no_more(undisturbed: Undisturbed) -> None:
    """Two checkpoints of the last phase, the boundary of the first, the model and the report."""
    store, _, _ = undisturbed
    names = store.list("")
    checkpoints = [name for name in names if name.startswith("checkpoints/")]
    assert [name.split("-a")[0] for name in checkpoints] == [
        "checkpoints/fine_tune-00000003",
        "checkpoints/fine_tune-00000006",
        "checkpoints/head-00000006",
    ]
    assert set(names) - set(checkpoints) == {
        "model/labels.json", "model/model.keras", "report/report.json", "run.json",
    }  # fmt: skip
    assert [entry.name for entry in record_of(store).checkpoints] == [
        checkpoints[2], checkpoints[0], checkpoints[1],
    ]  # fmt: skip


def test_the_report_has_sizes_history_results_and_provenance(undisturbed: Undisturbed) -> None:
    """`report.json` is for programs."""
    store, _, settings = undisturbed
    report = json.loads(store.read("report/report.json").data)
    assert report["splits"] == {"train": 40, "validation": 16, "test": 24}
    assert [(epoch["phase"], epoch["epoch"]) for epoch in report["history"]] == [
        ("head", 0), ("head", 1), ("fine_tune", 0), ("fine_tune", 1),
    ]  # fmt: skip
    assert report["outcome"] == record_of(store).outcome
    assert report["test"]["num_examples"] == 24
    assert sum(map(sum, report["test"]["confusion"])) == 24
    assert len(report["predictions"]) == 16
    assert {"data", "model", "head", "fine_tune", "evaluate", "export"} <= report["durations_seconds"].keys()
    assert report["settings"]["batch_size"] == settings.batch_size
    provenance = report["provenance"]
    assert {"thaw", "python", "tensorflow", "keras", "tensorflow-datasets"} <= provenance["versions"].keys()
    assert provenance["data"]["dataset"] == "two_shapes/1.0.0"
    assert len(provenance["backbone_sha256"]) == 64


def test_the_shipped_model_has_the_accuracy_that_the_outcome_says(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Measured again on the test split by plain Keras."""
    import keras

    from tests.shapes import draw

    store, _, _ = undisturbed
    store.download("model/model.keras", tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    import tensorflow as tf

    indices = range(56, 80)
    pixels = np.stack([draw(index % 2, index) for index in indices])
    resized = tf.round(tf.image.resize(pixels, (16, 16)))
    logits = np.array(model(resized, training=False))[:, 0]
    accuracy = float(np.mean((logits > 0) == np.array([index % 2 == 1 for index in indices])))
    outcome = record_of(store).outcome
    assert outcome is not None
    assert accuracy == outcome["test_accuracy"]
    assert json.loads(store.read("model/labels.json").data) == ["disc", "bar"]


def test_a_head_phase_commit_is_kilobytes(undisturbed: Undisturbed) -> None:
    """The backbone is not in it."""
    _, reader, _ = undisturbed
    sizes = {facts["phase"]: facts["bytes"] for facts in reader.of(events.COMMITTED)}
    assert sizes["head"] < 10_000 < sizes["fine_tune"]


# The rows of the resume table


def test_nothing_there_starts_at_the_beginning(undisturbed: Undisturbed) -> None:
    """A new run restores nothing."""
    _, reader, _ = undisturbed
    assert events.RESTORED not in reader.names()
    assert reader.of(events.PHASE_STARTED)[0] == {"phase": "head", "epoch": 0, "step": 0}


def test_another_fingerprint_is_refused(undisturbed: Undisturbed, small: Small) -> None:
    """Each setting that differs is listed, and the run is untouched."""
    store, _, _ = undisturbed
    before = store.read(RECORD_NAME)
    with pytest.raises(RunMismatch, match="THAW_SEED: the run has 0, this start 5"):
        start(small(seed=5), store)
    assert store.read(RECORD_NAME) == before


@pytest.mark.parametrize(
    ("phase", "step", "restored", "continues"),
    [
        ("head", 0, ("head", 1), ("head", 0, 1)),
        ("head", 4, ("head", 5), ("head", 1, 5)),
        ("head", 5, ("head", 6), ("head", 1, 6)),
        ("fine_tune", 0, ("fine_tune", 1), ("fine_tune", 0, 1)),
        ("fine_tune", 2, ("fine_tune", 3), ("fine_tune", 0, 3)),
        ("fine_tune", 4, ("fine_tune", 5), ("fine_tune", 1, 5)),
    ],
)
def test_in_a_phase_it_continues_at_the_step(
    undisturbed: Undisturbed,
    small: Small,
    store: LocalStore,
    phase: str,
    step: int,
    restored: tuple[str, int],
    continues: tuple[str, int, int],
) -> None:
    """In the middle of an epoch and at its last step, and ends with the same bits."""
    reader = StopAtStep(phase, step)
    with pytest.raises(Interrupted):
        start(small(), store, reader=reader, check_stop=reader.check_stop)
    again = start(small(), store)
    assert [(facts["phase"], facts["step"]) for facts in again.of(events.RESTORED)] == [restored]
    begun = again.of(events.PHASE_STARTED)[0]
    assert (begun["phase"], begun["epoch"], begun["step"]) == continues
    assert result_of(store) == result_of(undisturbed[0])
    assert [attempt.exit_code for attempt in record_of(store).attempts] == [42, 0]


class CrashOn(Recorder):
    """Ends the process at an event."""

    def __init__(self, name: str, **facts: Any) -> None:
        super().__init__()
        self._name, self._facts = name, facts

    def event(self, name: str, **facts: Any) -> None:
        super().event(name, **facts)
        if name == self._name and self._facts.items() <= facts.items():
            raise Crash(name)


@pytest.mark.parametrize(
    ("crash_on", "facts", "left"),
    [
        (events.COMMITTED, {"phase": "head", "step": 6}, [("fine_tune", 0, 0)]),
        (events.COMMITTED, {"phase": "fine_tune", "step": 6}, []),
        (events.EVALUATED, {}, []),
        (events.EXPORTED, {}, []),
    ],
    ids=["head complete", "trained but not evaluated", "evaluated but not exported", "exported but not done"],
)
def test_what_is_complete_is_not_done_again(
    undisturbed: Undisturbed,
    small: Small,
    store: LocalStore,
    crash_on: str,
    facts: dict[str, Any],
    left: list[tuple[str, int, int]],
) -> None:
    """Only what is left of the run is done, and the end is the same."""
    with pytest.raises(Crash):
        start(small(), store, reader=CrashOn(crash_on, **facts))
    again = start(small(), store)
    begun = [(fact["phase"], fact["epoch"], fact["step"]) for fact in again.of(events.PHASE_STARTED)]
    assert begun == left
    assert result_of(store) == result_of(undisturbed[0])


def test_a_finished_run_is_answered_and_nothing_is_written(undisturbed: Undisturbed) -> None:
    """Applying the same Job again changes nothing and trains nothing."""
    store, _, settings = undisturbed
    before = {name: (store.generation(name), store.read(name).data) for name in store.list("")}
    reader = start(settings, store)
    assert reader.names() == [events.RUN_ALREADY_DONE, "Run small is complete"]
    outcome = record_of(store).outcome
    assert outcome is not None
    assert reader.events[0][1]["model_sha256"] == outcome["model_sha256"]
    assert {name: (store.generation(name), store.read(name).data) for name in store.list("")} == before


# Crashes, stops and failures


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "phases",
    [
        pytest.param({"head_epochs": 1, "fine_tune_epochs": 0}, id="one phase"),
        pytest.param({"head_epochs": 2, "fine_tune_epochs": 1}, id="two phases", marks=pytest.mark.slow),
    ],
)
def test_a_crash_at_every_store_call_loses_nothing(
    small: Small, tmp_path: Path, phases: dict[str, int], after: bool
) -> None:
    """For each call of a run in turn, before or after it has its effect: the next start completes it, the same."""
    settings = small(**phases)
    whole = LocalStore(tmp_path / "whole")
    counting = CrashingStore(whole, at_call=10**9, after=False)
    start(settings, counting)
    for call in range(1, counting.calls + 1):
        store = LocalStore(tmp_path / f"call-{call}")
        with pytest.raises(Crash):
            start(settings, CrashingStore(store, at_call=call, after=after))
        start(settings, store)
        assert result_of(store) == result_of(whole), call
        assert len(store.list("checkpoints/")) == len(whole.list("checkpoints/")), call


def test_commits_come_as_often_as_they_are_asked_for(small: Small, store: LocalStore) -> None:
    """An interval of 0 commits every step; an epoch's end needs no second upload."""
    reader = start(small(checkpoint_every_seconds=0, head_epochs=1, fine_tune_epochs=1), store)
    steps = [(facts["phase"], facts["step"], facts["reason"]) for facts in reader.of(events.COMMITTED)]
    for phase in ("head", "fine_tune"):
        assert [step for step in steps if step[0] == phase] == [
            (phase, 1, "interval"), (phase, 2, "interval"), (phase, 3, "interval"), (phase, 3, "epoch"),
        ]  # fmt: skip
    record = record_of(store)
    assert record.checkpoints[-1].num_epochs == 2


def test_a_run_stopped_before_its_first_step_commits_nothing(small: Small, store: LocalStore) -> None:
    """There is nothing to save; the attempt is noted."""
    with pytest.raises(Interrupted):
        start(small(), store, check_stop=StopAfter(0))
    assert store.list("checkpoints/") == []
    assert [attempt.exit_code for attempt in record_of(store).attempts] == [42]


def test_a_stop_in_evaluation_leaves_the_training_committed(
    undisturbed: Undisturbed, small: Small, store: LocalStore
) -> None:
    """The next start only evaluates."""

    class StopOnEvaluate(Recorder):
        evaluating = False

        def event(self, name: str, **facts: Any) -> None:
            super().event(name, **facts)
            if name == events.COMMITTED and (facts["phase"], facts["step"]) == ("fine_tune", 6):
                self.evaluating = True

        def check_stop(self) -> None:
            if self.evaluating:
                raise Interrupted("told to stop")

    reader = StopOnEvaluate()
    with pytest.raises(Interrupted):
        start(small(), store, reader=reader, check_stop=reader.check_stop)
    assert record_of(store).state == "evaluate"
    assert events.PHASE_STARTED not in start(small(), store).names()
    assert result_of(store) == result_of(undisturbed[0])


def test_a_damaged_checkpoint_is_reported_and_the_run_ends_the_same(
    undisturbed: Undisturbed, small: Small, store: LocalStore
) -> None:
    """The newest good one is used, and what is lost is trained again."""
    with pytest.raises(Crash):
        start(small(), store, reader=CrashOn(events.COMMITTED, phase="fine_tune", step=6))
    newest = record_of(store).checkpoints[-1].name
    path = store.root / newest
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    again = start(small(), store)
    assert [facts["checkpoint"] for facts in again.of(events.CHECKPOINT_DAMAGED)] == [newest]
    assert [(facts["phase"], facts["step"]) for facts in again.of(events.RESTORED)] == [("fine_tune", 3)]
    assert result_of(store) == result_of(undisturbed[0])


def test_a_superseded_attempt_stops_and_the_winner_finishes(
    undisturbed: Undisturbed, small: Small, store: LocalStore
) -> None:
    """The loser writes nothing after the winner's claim, and says who won."""

    class Rival(Recorder):
        def event(self, name: str, **facts: Any) -> None:
            super().event(name, **facts)
            if name == events.COMMITTED and facts["phase"] == "head" and facts["step"] == 3:
                start(small(), store)

    reader = Rival()
    with pytest.raises(Superseded, match="attempt 2 of test"):
        start(small(), store, reader=reader)
    assert result_of(store) == result_of(undisturbed[0])
    assert [attempt.exit_code for attempt in record_of(store).attempts] == [None, 0]


def test_divergence_is_never_committed(small: Small, store: LocalStore) -> None:
    """The record keeps the last good state, or none."""
    with pytest.raises(TrainingDiverged):
        start(small(fine_tune_learning_rate=10.0, fine_tune_epochs=60, checkpoint_every_seconds=0), store)
    record = record_of(store)
    assert [attempt.exit_code for attempt in record.attempts] == [5]
    for entry in record.checkpoints:
        from job.checkpoint import load

        arrays = load(store, entry, scratch=store.root)
        assert all(np.isfinite(array).all() for array in arrays.values())


def test_a_store_that_fails_on_the_way_out_does_not_hide_the_stop(small: Small, store: LocalStore) -> None:
    """The last commit stands, and the answer is still 42."""
    reader = StopAtStep("head", 1)
    with pytest.raises(Interrupted):
        start(small(), BrokenStore(store, "upload"), reader=reader, check_stop=reader.check_stop)
    assert reader.of(events.COMMIT_FAILED)[0]["step"] == 2


def test_a_store_that_fails_is_an_error_and_the_next_start_completes_the_run(
    undisturbed: Undisturbed, small: Small, store: LocalStore
) -> None:
    """Nothing is lost by it."""
    with pytest.raises(StorageError, match="upload is unavailable"):
        start(small(), BrokenStore(store, "upload"))
    start(small(), store)
    assert result_of(store) == result_of(undisturbed[0])
    assert [attempt.exit_code for attempt in record_of(store).attempts] == [44, 0]


def test_other_inputs_than_the_run_began_with_are_refused(small: Small, store: LocalStore) -> None:
    """Another file under the same name would silently make another run of it."""
    with pytest.raises(Crash):
        start(small(), store, reader=CrashOn(events.COMMITTED))
    record = record_of(store)
    changed = record.model_copy(update={"inputs": record.inputs | {"backbone_sha256": "0" * 64}})
    (store.root / RECORD_NAME).write_text(changed.model_dump_json())
    with pytest.raises(InputError, match="backbone_sha256 differ"):
        start(small(), store)


def test_the_choice_of_auto_is_kept_for_the_whole_run(
    small: Small, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later attempt on another processor computes as the first did."""
    from job import numerics

    monkeypatch.setattr(numerics, "_has_native_bfloat16", lambda: False)
    settings = small(precision="auto", head_epochs=1, fine_tune_epochs=1)
    with pytest.raises(Crash):
        start(settings, store, reader=CrashOn(events.COMMITTED))
    monkeypatch.setattr(numerics, "_has_native_bfloat16", lambda: True)
    assert start(settings, store).of(events.MODEL_BUILT)[0]["precision"] == "float32"


# The quality gate


def test_the_gate_commits_the_results_and_then_fails(small: Small, store: LocalStore) -> None:
    """The record is done, the attempt says 6, and a lower gate passes without training."""
    settings = {"head_epochs": 1, "fine_tune_epochs": 0, "head_learning_rate": 1e-6}
    with pytest.raises(QualityGateMissed, match=r"below THAW_MIN_TEST_ACCURACY=1\.0"):
        start(small(min_test_accuracy=1.0, **settings), store)
    record = record_of(store)
    assert (record.state, record.attempts[-1].exit_code) == ("done", 6)
    with pytest.raises(QualityGateMissed):
        start(small(min_test_accuracy=1.0, **settings), store)
    assert start(small(min_test_accuracy=0.0, **settings), store).names()[0] == events.RUN_ALREADY_DONE


# More than two classes, and other ways to keep the data


@pytest.mark.parametrize("cache", ["disk", "none"])
def test_three_classes_run_to_the_end_under_every_cache(
    small: Small, store: LocalStore, tmp_path: Path, cache: str
) -> None:
    """The result does not depend on the cache."""
    settings = {"dataset": "three_shapes", "head_epochs": 1, "fine_tune_epochs": 1}
    other = LocalStore(tmp_path / "memory")
    start(small(cache="memory", **settings), other)
    start(small(cache=cache, **settings), store)
    assert result_of(store) == result_of(other)
    report = json.loads(store.read("report/report.json").data)
    assert [row["name"] for row in report["test"]["per_class"]] == ["disc", "across", "down"]
