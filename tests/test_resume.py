"""A run that is interrupted: every place to resume from, crashes, rivals and damage. The result is always the same."""

import contextlib
import itertools
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from job.errors import (
    InputError,
    Interrupted,
    ScratchUnavailable,
    StorageError,
    Superseded,
    TrainingDiverged,
)
from job.observe import events
from job.observe.observer import RunningMeans
from job.observe.progress import Progress
from job.run.record import RECORD_NAME, Identity, RunRecord
from job.storage import MISSING, Digest, LocalStore
from tests.conftest import Recorder
from tests.runs import (
    HOLDER,
    ONE_PHASE,
    CrashOn,
    Small,
    StopAtStep,
    Undisturbed,
    Whole,
    context,
    places,
    record_of,
    result_of,
    start,
)
from tests.stores import BrokenStore, Crash, CrashingStore

Ends = Callable[[LocalStore], None]

SHORT = {"head_epochs": 1, "fine_tune_epochs": 0}
"""Of a run of which only a part is looked at."""


@pytest.fixture
def ends_the_same(undisturbed_run: Undisturbed) -> Ends:
    """Asserts that a run has the result of one that was never interrupted."""

    def check(store: LocalStore) -> None:
        assert result_of(store) == result_of(undisturbed_run[0])

    return check


def exit_codes(store: LocalStore) -> list[int | None]:
    return [attempt.exit_code for attempt in record_of(store).attempts]


# The resume cases


@pytest.mark.slow
@pytest.mark.parametrize(
    ("crash_on", "fields", "left"),
    [
        (events.Committed, {"phase": "head", "step": 6}, ["fine_tune"]),
        (events.Committed, {"phase": "fine_tune", "step": 6}, []),
        (events.Exported, {}, []),
    ],
    ids=["head complete", "trained but not evaluated", "exported but not done"],
)
def test_what_is_complete_is_not_done_again(
    ends_the_same: Ends, small: Small, store: LocalStore, crash_on: Any, fields: dict[str, Any], left: list[str]
) -> None:
    """Only what is left of the run is done."""
    with pytest.raises(Crash):
        start(small(), store, observer=CrashOn(crash_on, **fields))
    assert [begun.phase for begun in start(small(), store).of(events.PhaseStarted)] == left
    ends_the_same(store)


def test_a_finished_run_is_answered_and_nothing_is_written(undisturbed_run: Undisturbed) -> None:
    """Applying the same Job again changes nothing and trains nothing."""
    store, _, settings = undisturbed_run
    before = {name: (store.version(name), store.read(name).data) for name in store.list("")}
    recorder = start(settings, store)
    assert (recorder.kinds(), recorder.title) == ([events.RunAlreadyDone], "Run small is complete")
    outcome = record_of(store).outcome
    assert outcome is not None
    assert recorder.of(events.RunAlreadyDone)[0].model_sha256 == outcome.model_sha256
    assert {name: (store.version(name), store.read(name).data) for name in store.list("")} == before


@pytest.mark.slow
def test_a_run_from_before_a_setting_goes_on_with_its_default(
    ends_the_same: Ends, small: Small, store: LocalStore
) -> None:
    """Its record does not have it, and its fingerprint is the same."""
    with pytest.raises(Crash):
        start(small(), store, observer=CrashOn(events.Committed, step=3))
    path = store.root / RECORD_NAME
    record = json.loads(path.read_text())
    del record["settings"]["RESIZE"]
    path.write_text(json.dumps(record))
    start(small(), store)
    assert "RESIZE" not in record_of(store).settings
    ends_the_same(store)


@pytest.mark.slow
@pytest.mark.parametrize(("num_damaged", "restored"), [(1, [("head", 3)]), (2, [("prepare", 0)])])
def test_damaged_checkpoints_are_reported_and_kept(
    whole: Whole, small: Small, store: LocalStore, num_damaged: int, restored: list[tuple[str, int]]
) -> None:
    """The newest good one is used; without one the run begins again."""
    with pytest.raises(Crash):
        start(small(**ONE_PHASE), store, observer=CrashOn(events.Committed, step=6))
    damaged = [entry.name for entry in record_of(store).checkpoints][::-1][:num_damaged]
    for name in damaged:
        (store.root / name).write_bytes(b"damaged")
    again = start(small(**ONE_PHASE), store)
    assert [event.checkpoint for event in again.of(events.CheckpointDamaged)] == damaged
    assert [(event.phase, event.step) for event in again.of(events.Restored)] == restored
    assert all(store.read(name).data == b"damaged" for name in damaged)
    assert result_of(store) == result_of(whole(**ONE_PHASE)[0])


# Crashes and stops


@pytest.mark.slow
def test_a_crash_between_a_checkpoint_and_its_record_loses_nothing(
    whole: Whole, small: Small, store: LocalStore
) -> None:
    """What no record names is removed. All calls: below."""
    with pytest.raises(Crash):
        start(small(**ONE_PHASE), CrashingStore(store, at_call="upload", after=True))
    assert (len(store.list("checkpoints/")), record_of(store).checkpoints) == (1, ())
    start(small(**ONE_PHASE), store)
    expected, _, _ = whole(**ONE_PHASE)
    assert result_of(store) == result_of(expected)
    assert len(store.list("checkpoints/")) == len(expected.list("checkpoints/"))


MATRIX = [pytest.mark.matrix, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(
    ("phases", "chosen", "after"),
    [
        pytest.param(SHORT, slice(6, None, 8), False, id="some calls-before", marks=pytest.mark.slow),
        pytest.param(SHORT, slice(1, None, 4), True, id="some calls-after", marks=pytest.mark.slow),
        pytest.param({"head_epochs": 2, "fine_tune_epochs": 1}, slice(None), False, id="all-before", marks=MATRIX),
        pytest.param({"head_epochs": 2, "fine_tune_epochs": 1}, slice(None), True, id="all-after", marks=MATRIX),
    ],
)
def test_a_crash_at_every_store_call_loses_nothing(
    small: Small, tmp_path: Path, phases: dict[str, int], chosen: slice, after: bool
) -> None:
    """For each call of a run in turn, before or after it has its effect: the next start completes it, the same."""
    settings = small(**phases)
    whole = LocalStore(tmp_path / "whole")
    counting = CrashingStore(whole, at_call=10**9, after=False)
    start(settings, counting)
    for call in [1 + at for at in places(counting.calls)][chosen]:
        store = LocalStore(tmp_path / f"call-{call}")
        # What the background commits depends a little on its pace: a run may end with a call less.
        with contextlib.suppress(Crash):
            start(settings, CrashingStore(store, at_call=call, after=after))
        start(settings, store)
        assert result_of(store) == result_of(whole), call
        assert len(store.list("checkpoints/")) == len(whole.list("checkpoints/")), call


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["import", "data", "head", "fine_tune", "evaluate", "export"])
def test_a_stop_is_honoured_in_every_stage(whole: Whole, small: Small, store: LocalStore, stage: str) -> None:
    """Waiting and fetching are in test_end_to_end.py."""
    changes, progress = {} if stage == "fine_tune" else ONE_PHASE, Progress()

    def check_stop() -> None:
        if progress.stage == stage:
            raise Interrupted("now")

    with pytest.raises(Interrupted):
        start(small(**changes), store, check_stop=check_stop, progress=progress)
    assert (progress.stage, exit_codes(store)) == (stage, [42])
    assert bool(store.list("checkpoints/")) == (stage not in ("import", "data"))
    again = start(small(**changes), store)
    assert (events.PhaseStarted in again.kinds()) == (stage not in ("evaluate", "export"))
    assert result_of(store) == result_of(whole(**changes)[0])


@pytest.mark.slow
def test_commits_come_as_often_as_they_are_asked_for(small: Small, store: LocalStore) -> None:
    """An interval of 0 commits every step that it can keep up with; the end of an epoch is always committed."""
    recorder = start(small(checkpoint_every_seconds=0, **SHORT), store)
    commits = [(commit.step, commit.reason) for commit in recorder.of(events.Committed)]
    assert commits == sorted(set(commits), key=lambda commit: (commit[0], commit[1] == "epoch"))
    assert set(commits[:-1]) <= {(1, "interval"), (2, "interval"), (3, "interval")}
    assert len(commits) >= 2
    assert commits[-1] == (3, "epoch")
    assert record_of(store).checkpoints[-1].num_epochs == 1


# Rivals


@pytest.mark.slow
def test_a_superseded_attempt_stops_and_the_winner_finishes(whole: Whole, small: Small, store: LocalStore) -> None:
    """The loser writes nothing after the winner's claim, and names the winner."""

    class Rival(Recorder):
        def event(self, event: events.Event) -> None:
            super().event(event)
            if isinstance(event, events.Committed) and (event.phase, event.step) == ("head", 3):
                start(small(**ONE_PHASE), store)

    with pytest.raises(Superseded, match="attempt 2 of test"):
        start(small(**ONE_PHASE), store, observer=Rival())
    assert exit_codes(store) == [None, 0]
    assert result_of(store) == result_of(whole(**ONE_PHASE)[0])


def test_a_lost_run_is_noticed_between_two_commits(
    small: Small, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the renewal of the lease, so that an epoch of hours is not trained for nothing."""
    from job.run import lease

    monkeypatch.setattr(lease, "RENEWALS_IN_A_LEASE", 200)
    settings = small(batch_size=1)

    class Rival(Recorder):
        def step(self, done: events.StepDone, running_means: RunningMeans) -> None:
            if done.step == 2:
                lease.claim(store, Identity.of(settings), HOLDER, lease_seconds=60, context=context())
            time.sleep(0.05)

    rival = Rival()
    with pytest.raises(Superseded, match="attempt 2 of test"):
        start(settings, store, observer=rival)
    assert events.EpochFinished not in rival.kinds()


def in_export(store: LocalStore, act: Callable[[], Any]) -> Callable[[], None]:
    """A check for a stop which acts once, right before the first file of the results is written."""
    left = [act]

    def check_stop() -> None:
        if left and record_of(store).state == "export":
            left.pop()()

    return check_stop


@pytest.mark.slow
def test_the_results_of_the_winner_are_not_overwritten_by_the_loser(small: Small, store: LocalStore) -> None:
    """Another attempt takes the run and finishes it meanwhile."""
    with pytest.raises(Superseded, match="attempt 2 of test"):
        start(small(**SHORT), store, check_stop=in_export(store, lambda: start(small(**SHORT), store)))
    assert json.loads(store.read("report/report.json").data)["num_attempts"] == 2
    assert record_of(store).state == "done"
    assert_the_record_names_what_is_there(store)


@pytest.mark.slow
def test_what_a_loser_wrote_late_is_overwritten_by_the_winner(small: Small, store: LocalStore) -> None:
    """A process that lost the run may still have a write under way when the winner makes its own."""
    late = in_export(store, lambda: store.write("model/model.keras", b"late", if_version=MISSING))
    start(small(**SHORT), store, check_stop=late)
    assert store.read("model/model.keras").data != b"late"
    assert_the_record_names_what_is_there(store)


def assert_the_record_names_what_is_there(store: LocalStore) -> None:
    for name, kept in record_of(store).files.items():
        assert Digest.of(store.root / name) == Digest(kept.size, kept.sha256), name


# Failures of the store, of the disk, of the numbers


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the writer of checkpoints fail as on a full disk, after so many of them."""
    from safetensors import SafetensorError

    from job.run import checkpoint

    save = checkpoint.save_file

    def fill(num_allowed: int) -> None:
        left = itertools.count(num_allowed, -1)

        def save_file(*arguments: Any, **options: Any) -> None:
            if next(left) <= 0:
                raise SafetensorError("I/O error: No space left on device (os error 28)")
            save(*arguments, **options)

        monkeypatch.setattr(checkpoint, "save_file", save_file)

    return fill


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["store", "disk"])
def test_a_commit_that_fails_on_a_stop_does_not_hide_the_stop(
    small: Small, store: LocalStore, full_disk: Callable[[int], None], broken: str
) -> None:
    """The last commit stands, and the exit code is still 42."""
    if broken == "disk":
        full_disk(0)
    stop = StopAtStep("head", 1)
    place = BrokenStore(store, "upload") if broken == "store" else store
    with pytest.raises(Interrupted):
        start(small(), place, observer=stop, check_stop=stop.check_stop)
    assert stop.of(events.CommitFailed)[0].step == 2


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["store", "disk"])
def test_after_a_failure_of_store_or_disk_the_next_start_completes_the_run(
    ends_the_same: Ends, small: Small, store: LocalStore, full_disk: Callable[[int], None], broken: str
) -> None:
    """Nothing is lost; of the disk the variable is named. A disk that really is full is in test_disks.py."""
    if broken == "disk":
        full_disk(2)
        with pytest.raises(ScratchUnavailable, match="No space left") as caught:
            start(small(), store)
        assert "THAW_CACHE_DIR" in caught.value.hint
        full_disk(10**6)
    else:
        with pytest.raises(StorageError, match="upload is unavailable"):
            start(small(), BrokenStore(store, "upload"))
    start(small(), store)
    assert exit_codes(store) == [44, 0]
    ends_the_same(store)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["delete", "list"])
def test_a_store_that_cannot_prune_does_not_stop_the_run(small: Small, store: LocalStore, method: str) -> None:
    """What is left over is removed when the store can do it again."""
    settings = small(fine_tune_epochs=0, keep_checkpoints=1)
    # Of a new run a start must know whether there are checkpoints: this one is not new.
    RunRecord.open(store, Identity.of(settings)).take(HOLDER, lease_seconds=60)
    assert len(start(settings, BrokenStore(store, method)).of(events.Committed)) == 2
    assert (record_of(store).state, len(store.list("checkpoints/"))) == ("done", 2)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_loss_that_is_not_finite_outside_training_ends_the_run(
    small: Small, store: LocalStore, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """In validation, and over the test split: no report has a number that is none."""
    from job.run import results
    from job.train import step

    if part == "validation":
        monkeypatch.setattr(step, "means_of", lambda _: (float("inf"), 0.5))
    else:
        predict = results.predict_logits
        monkeypatch.setattr(results, "predict_logits", lambda *a, **k: predict(*a, **k) * np.nan)
    with pytest.raises(TrainingDiverged, match=part):
        start(small(**SHORT), store)
    assert (record_of(store).outcome, exit_codes(store), store.list("report/")) == (None, [5], [])


# What a run is made from


@pytest.mark.slow
def test_other_inputs_than_the_run_began_with_are_refused(small: Small, store: LocalStore) -> None:
    """Another file under the same name would silently make another run of it."""
    with pytest.raises(Crash):
        start(small(), store, observer=CrashOn(events.Committed))
    record = record_of(store)
    changed = record.model_copy(update={"inputs": record.inputs | {"backbone_sha256": "0" * 64}})
    (store.root / RECORD_NAME).write_text(changed.model_dump_json())
    with pytest.raises(InputError, match="backbone_sha256 differ"):
        start(small(), store)


@pytest.mark.slow
def test_wrong_settings_can_be_corrected_under_the_same_run_id(small: Small, store: LocalStore) -> None:
    """As long as every attempt ended before it had data and weights."""
    with pytest.raises(InputError):
        start(small(weights="/nowhere.h5"), store)
    with pytest.raises(Crash):
        start(small(), store, observer=CrashOn(events.ModelBuilt))
    assert exit_codes(store)[0] == 4


@pytest.mark.slow
def test_the_choice_of_auto_is_kept_for_the_whole_run(
    small: Small, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later attempt on another processor computes as the first did."""
    from job import processor

    settings = small(precision="auto")
    for is_native, kind in ((False, events.Committed), (True, events.ModelBuilt)):
        monkeypatch.setattr(processor, "has_fast_bfloat16", lambda is_native=is_native: is_native)
        attempt = CrashOn(kind)
        with pytest.raises(Crash):
            start(settings, store, observer=attempt)
        assert attempt.of(events.ModelBuilt)[0].precision == "float32"


@pytest.mark.slow
def test_an_attempt_that_finds_the_data_continues_one_that_prepared_it(
    small: Small, store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preparing draws random numbers; the new weights do not depend on it."""
    from demo.drawn import DrawnCatsVsDogs

    monkeypatch.setattr(DrawnCatsVsDogs, "num_examples", 96)
    settings = small(dataset="drawn_cats_vs_dogs", data_dir=str(tmp_path / "new"))
    for kind in (events.Committed, events.Restored):
        with pytest.raises(Crash):
            start(settings, store, observer=CrashOn(kind, phase="head"))


@pytest.mark.slow
def test_new_weights_do_not_depend_on_random_numbers_of_a_renewal(
    ends_the_same: Ends, small: Small, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retries wait for random times, and Keras seeds its initializers from the same generator."""
    import keras

    from job.run import lease

    class DrawsInRenewals(LocalStore):
        def write(self, name: str, data: bytes, *, if_version: str) -> str:
            random.random()
            return super().write(name, data, if_version=if_version)

    seed_everything = keras.utils.set_random_seed

    def slowly(seed: int) -> None:
        seed_everything(seed)
        time.sleep(0.05)

    monkeypatch.setattr(lease, "RENEWALS_IN_A_LEASE", 100_000)
    monkeypatch.setattr(keras.utils, "set_random_seed", slowly)
    start(small(), DrawsInRenewals(store.root))
    ends_the_same(store)
