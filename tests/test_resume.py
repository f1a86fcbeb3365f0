"""A run that does not go through in one go: every place to resume from, crashes, rivals and damage."""

import contextlib
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from job.errors import (
    InputError,
    Interrupted,
    RunMismatch,
    ScratchUnavailable,
    StorageError,
    Superseded,
    TrainingDiverged,
)
from job.observe import events
from job.observe.progress import Progress
from job.run.record import RECORD_NAME, RunRecord
from job.storage import Digest, LocalStore
from tests.conftest import Recorder
from tests.runs import HOLDER, CrashOn, Small, StopAfter, StopAtStep, Undisturbed, places, record_of, result_of, start
from tests.stores import BrokenStore, Crash, CrashingStore

# The rows of the resume table


def test_nothing_there_starts_at_the_beginning(undisturbed_run: Undisturbed) -> None:
    """A new run restores nothing."""
    _, reader, _ = undisturbed_run
    assert events.RESTORED not in reader.names()
    assert reader.of(events.PHASE_STARTED)[0].items() >= {"phase": "head", "epoch": 0, "step": 0}.items()


def test_another_fingerprint_is_refused(undisturbed_run: Undisturbed, small: Small) -> None:
    """Each setting that differs is listed, and the run is untouched."""
    store, _, _ = undisturbed_run
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
    undisturbed_run: Undisturbed,
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
    assert result_of(store) == result_of(undisturbed_run[0])
    assert [attempt.exit_code for attempt in record_of(store).attempts] == [42, 0]


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
    undisturbed_run: Undisturbed,
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
    assert result_of(store) == result_of(undisturbed_run[0])


def test_a_finished_run_is_answered_and_nothing_is_written(undisturbed_run: Undisturbed) -> None:
    """Applying the same Job again changes nothing and trains nothing."""
    store, _, settings = undisturbed_run
    before = {name: (store.generation(name), store.read(name).data) for name in store.list("")}
    reader = start(settings, store)
    assert reader.names() == [events.RUN_ALREADY_DONE, "Run small is complete"]
    outcome = record_of(store).outcome
    assert outcome is not None
    assert reader.events[0][1]["model_sha256"] == outcome.model_sha256
    assert {name: (store.generation(name), store.read(name).data) for name in store.list("")} == before


# Crashes, stops and failures


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("phases", "every"),
    [
        pytest.param({"head_epochs": 1, "fine_tune_epochs": 0}, 8, id="one phase, some calls"),
        pytest.param(
            {"head_epochs": 2, "fine_tune_epochs": 1},
            1,
            id="two phases",
            marks=[pytest.mark.matrix, pytest.mark.timeout(1800)],
        ),
    ],
)
def test_a_crash_at_every_store_call_loses_nothing(
    small: Small, tmp_path: Path, phases: dict[str, int], every: int, after: bool
) -> None:
    """For each call of a run in turn, before or after it has its effect: the next start completes it, the same."""
    settings = small(**phases)
    whole = LocalStore(tmp_path / "whole")
    counting = CrashingStore(whole, at_call=10**9, after=False)
    start(settings, counting)
    for call in [1 + at for at in places(counting.calls)][int(after) :: every]:
        store = LocalStore(tmp_path / f"call-{call}")
        # What the background commits depends a little on its pace: a run may come to its end with a call less.
        with contextlib.suppress(Crash):
            start(settings, CrashingStore(store, at_call=call, after=after))
        start(settings, store)
        assert result_of(store) == result_of(whole), call
        assert len(store.list("checkpoints/")) == len(whole.list("checkpoints/")), call


def test_commits_come_as_often_as_they_are_asked_for(small: Small, store: LocalStore) -> None:
    """An interval of 0 commits every step that it can keep up with; the end of an epoch is always committed."""
    reader = start(small(checkpoint_every_seconds=0, head_epochs=1, fine_tune_epochs=1), store)
    for phase in ("head", "fine_tune"):
        commits = [(facts["step"], facts["reason"]) for facts in reader.of(events.COMMITTED) if facts["phase"] == phase]
        assert commits == sorted(set(commits), key=lambda commit: (commit[0], commit[1] == "epoch"))
        assert set(commits[:-1]) <= {(1, "interval"), (2, "interval"), (3, "interval")}
        assert len(commits) >= 2
        assert commits[-1] == (3, "epoch")
    assert record_of(store).checkpoints[-1].num_epochs == 2


def test_a_run_stopped_before_its_first_step_commits_nothing(small: Small, store: LocalStore) -> None:
    """There is nothing to save; the attempt is noted."""
    with pytest.raises(Interrupted):
        start(small(), store, check_stop=StopAfter(0))
    assert store.list("checkpoints/") == []
    assert [attempt.exit_code for attempt in record_of(store).attempts] == [42]


def test_a_stop_in_evaluation_leaves_the_training_committed(
    undisturbed_run: Undisturbed, small: Small, store: LocalStore
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
    assert result_of(store) == result_of(undisturbed_run[0])


def test_a_damaged_checkpoint_is_reported_and_the_run_ends_the_same(
    undisturbed_run: Undisturbed, small: Small, store: LocalStore
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
    assert result_of(store) == result_of(undisturbed_run[0])


def test_when_every_checkpoint_is_damaged_the_run_begins_again_and_ends_the_same(
    undisturbed_run: Undisturbed, small: Small, store: LocalStore
) -> None:
    """At the pre-trained weights; each one is named and kept."""
    with pytest.raises(Crash):
        start(small(), store, reader=CrashOn(events.COMMITTED, phase="fine_tune", step=3))
    names = [entry.name for entry in record_of(store).checkpoints]
    for name in names:
        (store.root / name).write_bytes(b"damaged")
    again = start(small(), store)
    assert [facts["checkpoint"] for facts in again.of(events.CHECKPOINT_DAMAGED)] == names[::-1]
    begun = again.of(events.PHASE_STARTED)[0]
    assert (begun["phase"], begun["epoch"], begun["step"]) == ("head", 0, 0)
    assert result_of(store) == result_of(undisturbed_run[0])
    assert all(store.read(name).data == b"damaged" for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["import", "data", "head", "fine_tune", "evaluate", "export"])
def test_a_stop_is_honoured_in_every_stage_and_the_run_ends_the_same(
    undisturbed_run: Undisturbed, small: Small, store: LocalStore, stage: str
) -> None:
    """Waiting and fetching are in test_end_to_end.py."""
    progress = Progress()

    def check_stop() -> None:
        if progress.stage == stage:
            raise Interrupted("told to stop")

    with pytest.raises(Interrupted):
        start(small(), store, check_stop=check_stop, progress=progress)
    assert progress.stage == stage
    assert [attempt.exit_code for attempt in record_of(store).attempts] == [42]
    start(small(), store)
    assert result_of(store) == result_of(undisturbed_run[0])


def test_a_superseded_attempt_stops_and_the_winner_finishes(
    undisturbed_run: Undisturbed, small: Small, store: LocalStore
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
    assert result_of(store) == result_of(undisturbed_run[0])
    assert [attempt.exit_code for attempt in record_of(store).attempts] == [None, 0]


def test_divergence_is_never_committed(small: Small, store: LocalStore) -> None:
    """The record keeps the last good state, or none."""
    with pytest.raises(TrainingDiverged):
        start(small(fine_tune_learning_rate=10.0, fine_tune_epochs=60, checkpoint_every_seconds=0), store)
    record = record_of(store)
    assert [attempt.exit_code for attempt in record.attempts] == [5]
    for entry in record.checkpoints:
        from job.run.checkpoint import load

        arrays = load(store, entry, scratch=store.root)
        assert all(np.isfinite(array).all() for array in arrays.values())


def test_a_store_that_fails_on_the_way_out_does_not_hide_the_stop(small: Small, store: LocalStore) -> None:
    """The last commit stands, and the answer is still 42."""
    reader = StopAtStep("head", 1)
    with pytest.raises(Interrupted):
        start(small(), BrokenStore(store, "upload"), reader=reader, check_stop=reader.check_stop)
    assert reader.of(events.COMMIT_FAILED)[0]["step"] == 2


def test_a_store_that_fails_is_an_error_and_the_next_start_completes_the_run(
    undisturbed_run: Undisturbed, small: Small, store: LocalStore
) -> None:
    """Nothing is lost by it."""
    with pytest.raises(StorageError, match="upload is unavailable"):
        start(small(), BrokenStore(store, "upload"))
    start(small(), store)
    assert result_of(store) == result_of(undisturbed_run[0])
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
    from job.train import numerics

    monkeypatch.setattr(numerics, "_has_native_bfloat16", lambda: False)
    settings = small(precision="auto", head_epochs=1, fine_tune_epochs=1)
    with pytest.raises(Crash):
        start(settings, store, reader=CrashOn(events.COMMITTED))
    monkeypatch.setattr(numerics, "_has_native_bfloat16", lambda: True)
    assert start(settings, store).of(events.MODEL_BUILT)[0]["precision"] == "float32"


def test_a_first_attempt_that_prepared_the_data_is_resumed_by_one_that_finds_it(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preparing draws random numbers; the new weights do not depend on it."""
    from demo.drawn import DrawnCatsVsDogs
    from job.settings.settings import Settings
    from tests.conftest import SMALL_RUN

    monkeypatch.setattr(DrawnCatsVsDogs, "num_examples", 96)
    settings = Settings(
        **(SMALL_RUN | {"dataset": "drawn_cats_vs_dogs", "data_dir": str(tmp_path / "new"), "cache_dir": tmp_path})
    )
    with pytest.raises(Crash):
        start(settings, store, reader=CrashOn(events.COMMITTED))
    assert start(settings, store).of(events.RESTORED)[0]["step"] == 3


def test_new_weights_do_not_depend_on_what_a_renewal_draws(
    undisturbed_run: Undisturbed, small: Small, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retries wait for random times, and Keras seeds its initializers from the same generator."""
    from job.model import networks
    from job.run import lease

    class DrawsInRenewals(LocalStore):
        def write(self, name: str, data: bytes, *, if_generation: int) -> int:
            random.random()
            return super().write(name, data, if_generation=if_generation)

    construct = networks.construct

    def slowly(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.05)
        return construct(*arguments, **options)

    monkeypatch.setattr(lease, "RENEWALS_IN_A_LEASE", 100_000)
    monkeypatch.setattr(networks, "construct", slowly)
    start(small(), DrawsInRenewals(store.root))
    assert result_of(store) == result_of(undisturbed_run[0])


def test_a_mistake_in_the_settings_can_be_mended_under_the_same_run_id(small: Small, store: LocalStore) -> None:
    """As long as every attempt ended before it had data and weights."""
    with pytest.raises(InputError):
        start(small(weights="/nowhere.h5"), store)
    start(small(), store)
    assert [attempt.exit_code for attempt in record_of(store).attempts] == [4, 0]


class RivalFinishes(Recorder):
    """Another attempt takes the run and finishes it, right before this one writes its model."""

    def __init__(self, settings: Any, store: LocalStore) -> None:
        super().__init__()
        self.settings, self.store, self.rival = settings, store, Recorder()

    def check_stop(self) -> None:
        if not self.rival.events and record_of(self.store).state == "export":
            start(self.settings, self.store, reader=self.rival)


def test_what_the_winner_left_is_not_written_over_by_the_loser(small: Small, store: LocalStore) -> None:
    """Model and report have the same names in every attempt."""
    reader = RivalFinishes(small(), store)
    with pytest.raises(Superseded, match="attempt 2 of test"):
        start(small(), store, reader=reader, check_stop=reader.check_stop)
    report = json.loads(store.read("report/report.json").data)
    assert report["num_attempts"] == 2
    assert record_of(store).state == "done"
    assert_the_record_names_what_is_there(store)


def test_what_a_loser_wrote_late_is_written_over_by_the_winner(small: Small, store: LocalStore) -> None:
    """A process that lost the run may still have a write under way when the winner makes its own."""

    class LateLoser(Recorder):
        written = False

        def check_stop(self) -> None:
            if not self.written and record_of(store).state == "export":
                self.written = True
                store.write("model/model.keras", b"late", if_generation=0)

    reader = LateLoser()
    start(small(), store, reader=reader, check_stop=reader.check_stop)
    assert reader.written
    assert store.read("model/model.keras").data != b"late"
    assert_the_record_names_what_is_there(store)


def assert_the_record_names_what_is_there(store: LocalStore) -> None:
    for name, kept in record_of(store).files.items():
        assert Digest.of(store.root / name) == Digest(kept.size, kept.sha256), name


@pytest.mark.parametrize(("method", "commits"), [("delete", 4), ("list", 4)])
def test_a_store_that_cannot_prune_does_not_stop_the_run(
    undisturbed_run: Undisturbed, small: Small, store: LocalStore, method: str, commits: int
) -> None:
    """What is left over is removed when the store can do it again."""
    settings = small()
    # Of a new run a start must know whether there are checkpoints: this one is not new.
    RunRecord.open(store, run_id="small", fingerprint=settings.fingerprint(), settings=settings.result_settings()).take(
        HOLDER, lease_seconds=60
    )
    reader = start(settings, BrokenStore(store, method))
    assert len(reader.of(events.COMMITTED)) == commits
    assert result_of(store) == result_of(undisturbed_run[0])


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_loss_that_is_not_finite_outside_training_ends_the_run(
    small: Small, store: LocalStore, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """In validation, and over the test split: no report has a number that is none."""
    from job.run import results
    from job.train import loop

    if part == "validation":
        monkeypatch.setattr(loop, "_validator", lambda *_: lambda: (float("inf"), 0.5))
    else:
        predict = results.predict_logits
        monkeypatch.setattr(
            results, "predict_logits", lambda *a, **k: (predict(*a, **k)[0] * np.nan, predict(*a, **k)[1])
        )
    with pytest.raises(TrainingDiverged, match=part):
        start(small(), store)
    record = record_of(store)
    assert (record.outcome, record.attempts[-1].exit_code) == (None, 5)
    assert store.list("report/") == []


# The disk for temporary files


class FullDisk:
    """Makes the writer of a file fail as on a full disk, from the n-th time on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, allowed: int) -> None:
        from safetensors import SafetensorError

        from job.run import checkpoint

        self.left = allowed
        save = checkpoint.save_file

        def save_file(arrays: Any, path: Path, metadata: dict[str, str]) -> None:
            self.left -= 1
            if self.left < 0:
                raise SafetensorError("I/O error: No space left on device (os error 28)")
            save(arrays, path, metadata)

        monkeypatch.setattr(checkpoint, "save_file", save_file)


def test_a_full_scratch_disk_ends_with_44_and_names_the_variable(
    undisturbed_run: Undisturbed, small: Small, store: LocalStore
) -> None:
    """Not the store is to blame; nothing is lost."""
    with pytest.MonkeyPatch.context() as patch:
        FullDisk(patch, allowed=2)
        with pytest.raises(ScratchUnavailable, match="No space left") as caught:
            start(small(), store)
    assert "THAW_CACHE_DIR" in caught.value.hint
    assert record_of(store).attempts[-1].exit_code == 44
    assert start(small(), store).of(events.RESTORED)[0]["step"] == 6
    assert result_of(store) == result_of(undisturbed_run[0])


def test_a_full_scratch_disk_on_the_way_out_does_not_hide_the_stop(
    small: Small, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last commit stands, and the answer is still 42."""
    FullDisk(monkeypatch, allowed=0)
    reader = StopAtStep("head", 1)
    with pytest.raises(Interrupted):
        start(small(), store, reader=reader, check_stop=reader.check_stop)
    assert reader.of(events.COMMIT_FAILED)[0]["step"] == 2
