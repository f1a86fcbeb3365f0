"""The run record: one writer at a time, and a run that is done stays done."""

import contextlib
import itertools
import json
import os
import shutil
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

import job.run.record
from job.errors import InputError, PreconditionFailed, RecordDamaged, RunMismatch, StorageError, Superseded
from job.run.record import RECORD_NAME, RunRecord
from job.schema import Holder, Outcome, Record
from job.storage import MISSING, LocalStore, ObjectStore, StoredObject
from tests.recorded import INPUTS, OUTCOME
from tests.stores import CrashingStore, MemoryStore

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def claim(store: ObjectStore, *, host: str = "here", fingerprint: str = "abc", **settings: object) -> RunRecord:
    record = RunRecord.open(store, run_id="run", fingerprint=fingerprint, settings=settings, clock=lambda: NOON)
    if not record.is_done:
        record.take(Holder(host=host, pid=1, started=0.0), lease_seconds=60)
    return record


def stored(store: MemoryStore) -> Record:
    return Record.model_validate_json(store.read(RECORD_NAME).data)


def test_the_first_claim_creates_the_record() -> None:
    """With what a reader relies on: id, fingerprint, settings, state, attempts."""
    store = MemoryStore()
    claim(store, SEED=1)
    record = stored(store)
    assert (record.run_id, record.fingerprint, record.settings, record.state) == ("run", "abc", {"SEED": 1}, "prepare")
    assert [(a.number, a.holder, a.start, a.end) for a in record.attempts] == [(1, "here:1", NOON, None)]


def test_a_later_claim_is_the_next_attempt() -> None:
    """What earlier attempts recorded is kept."""
    store = MemoryStore()
    first = claim(store)
    first.close_attempt(42)
    second = claim(store, host="there")
    assert second.attempt.number == 2
    assert [(a.exit_code, a.end) for a in stored(store).attempts] == [(42, NOON), (None, None)]


def test_other_settings_are_refused_and_each_difference_is_listed() -> None:
    """Nothing is written."""
    store = MemoryStore()
    claim(store, SEED=1, BATCH_SIZE=32, ROTATION=0.1)
    before = store.read(RECORD_NAME)
    with pytest.raises(RunMismatch) as caught:
        claim(store, fingerprint="other", SEED=2, BATCH_SIZE=64, ROTATION=0.1)
    assert "THAW_SEED: the run has 1, this start 2" in caught.value.message
    assert "THAW_BATCH_SIZE: the run has 32, this start 64" in caught.value.message
    assert "ROTATION" not in caught.value.message
    assert store.read(RECORD_NAME) == before


def test_a_finished_run_is_not_written_again() -> None:
    """A claim of it registers no attempt."""
    store = MemoryStore()
    claim(store).finish(OUTCOME, exit_code=0)
    before = store.read(RECORD_NAME)
    again = claim(store)
    assert again.is_done
    assert again.content.outcome == Outcome(**OUTCOME)
    assert store.read(RECORD_NAME) == before


def test_finishing_closes_the_attempt_once() -> None:
    """One write makes the outcome and the end of the attempt known together."""
    store = MemoryStore()
    record = claim(store)
    record.finish(OUTCOME, exit_code=6)
    record.close_attempt(1)
    assert [(a.exit_code, a.end) for a in stored(store).attempts] == [(6, NOON)]


def test_a_superseded_attempt_is_told_the_winner_and_writes_nothing() -> None:
    """The generation fences it off, whatever the clocks say."""
    store = MemoryStore()
    loser = claim(store, host="loser")
    winner = claim(store, host="winner")
    with pytest.raises(Superseded, match=r"attempt 2 of winner:1"):
        loser.update(state="head")
    assert stored(store) == winner.content


def test_a_loser_stays_a_loser() -> None:
    """A second try is refused as the first was."""
    store = MemoryStore()
    loser = claim(store)
    claim(store)
    for _ in range(2):
        with pytest.raises(Superseded):
            loser.finish(OUTCOME, exit_code=0)
    assert not stored(store).outcome


class AnswersTwice(MemoryStore):
    """Commits a write and then claims that it did not: a retry after a lost answer looks so."""

    def write(self, name: str, data: bytes, *, if_generation: int) -> int:
        super().write(name, data, if_generation=if_generation)
        raise PreconditionFailed("the generation has changed")


def test_a_refusal_of_ones_own_write_is_success() -> None:
    """It is read back and compared before it counts as a conflict."""
    store = AnswersTwice()
    record = claim(store)
    record.update(state="head")
    record.finish(OUTCOME, exit_code=0)
    assert stored(store).state == "done"


class LosesAnswers(MemoryStore):
    """Fails as it is told: having done the write, or not."""

    def __init__(self) -> None:
        super().__init__()
        self.plan: list[str] = []

    def write(self, name: str, data: bytes, *, if_generation: int) -> int:
        step = self.plan.pop(0) if self.plan else "answer"
        if step == "lost before":
            raise StorageError("no answer")
        generation = super().write(name, data, if_generation=if_generation)
        if step == "lost after":
            raise StorageError("no answer")
        return generation


@pytest.mark.parametrize("plan", itertools.product(["lost before", "lost after"], repeat=3))
def test_writes_whose_answers_were_lost_do_not_lock_the_run_out(plan: tuple[str, ...]) -> None:
    """A later write finds an earlier one of its own in the way, and goes on from there."""
    store = LosesAnswers()
    record = claim(store)
    store.plan = list(plan)
    while store.plan:
        with contextlib.suppress(StorageError):
            record.update(state="head")
    record.update(state="fine_tune")
    assert stored(store).state == "fine_tune"


def test_a_run_that_is_done_stays_done_when_the_answer_was_lost() -> None:
    """Noting the end of the attempt finds the outcome there, and leaves it."""
    store = LosesAnswers()
    record = claim(store)
    store.plan = ["lost after"]
    with pytest.raises(StorageError):
        record.finish(OUTCOME, exit_code=0)
    record.close_attempt(44)
    assert (stored(store).state, stored(store).outcome) == ("done", Outcome(**OUTCOME))
    assert stored(store).attempts[-1].exit_code == 0


@pytest.mark.parametrize("last", ["renew", "close"])
def test_a_commit_whose_answer_was_lost_is_not_undone(last: str) -> None:
    """What is written next builds upon it."""
    store = LosesAnswers()
    record = claim(store)
    store.plan = ["lost after"]
    with pytest.raises(StorageError):
        record.update(state="fine_tune")
    record.renew() if last == "renew" else record.close_attempt(44)
    assert stored(store).state == "fine_tune"


def test_inputs_are_pinned_by_the_first_attempt() -> None:
    """A later one must find the same."""
    store = MemoryStore()
    claim(store).pin_inputs(INPUTS)
    again = claim(store)
    again.pin_inputs(INPUTS)
    with pytest.raises(InputError, match="backbone_sha256 differ"):
        again.pin_inputs(INPUTS | {"backbone_sha256": "0" * 64})


def test_nobody_else_writes_while_it_must_be_quiet() -> None:
    """A renewal waits until it is over."""
    store = MemoryStore()
    record = claim(store)
    before = store.generation(RECORD_NAME)
    renewal = threading.Thread(target=record.renew)
    with record.quiet():
        renewal.start()
        renewal.join(timeout=0.2)
        assert store.generation(RECORD_NAME) == before
    renewal.join(timeout=10)
    assert store.generation(RECORD_NAME) > before


def test_a_record_of_an_earlier_version_is_read() -> None:
    """Fields that were added since have defaults."""
    store = MemoryStore()
    claim(store)
    content = json.loads(store.read(RECORD_NAME).data)
    del content["lease"], content["set_aside"], content["lineages"], content["files"]
    store.write(RECORD_NAME, json.dumps(content).encode(), if_generation=store.generation(RECORD_NAME))
    assert claim(store).attempt.number == 2


def test_a_record_that_is_no_record_is_an_error_that_names_it() -> None:
    """It is not overwritten."""
    store = MemoryStore()
    store.write(RECORD_NAME, b"{}", if_generation=MISSING)
    with pytest.raises(RecordDamaged, match=r"memory:///run\.json is not a record of this run: run_id: Field required"):
        claim(store)
    assert store.read(RECORD_NAME).data == b"{}"


@pytest.mark.parametrize(
    "data",
    [b"", b'{"run_id": "ru', b"hello", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"run_id": ' + b"9" * 5000],
)
def test_a_record_that_is_damaged_stops_a_start_which_is_not_tried_again(data: bytes) -> None:
    """Nothing is written; the hint says how it is mended."""
    store = MemoryStore()
    store.write(RECORD_NAME, data, if_generation=MISSING)
    with pytest.raises(RecordDamaged, match="Nothing was written or deleted") as caught:
        claim(store)
    assert "python -m job repair --run memory://" in caught.value.hint
    assert (caught.value.exit_code, store.read(RECORD_NAME).data) == (4, data)


def test_a_lost_record_beside_checkpoints_stops_a_start(tmp_path: Path) -> None:
    """What is there is said, and all of it is kept."""
    store = LocalStore(tmp_path / "run")
    names = ["checkpoints/head-00000900-a1-1.safetensors", "checkpoints/fine_tune-00000007-a1-2-0123abcd.safetensors"]
    for name in names:
        store.write(name, b"", if_generation=MISSING)
    with pytest.raises(
        RecordDamaged, match=r"no run\.json beside 2 objects in checkpoints/, the newest .*tune-00000007"
    ):
        claim(store)
    with pytest.raises(RecordDamaged):
        job.run.record.read(store)
    assert store.list("") == sorted(names)


def test_names_are_listed_only_where_there_is_no_record() -> None:
    """A start of a run that is there costs one read."""
    counted = CrashingStore(MemoryStore(), at_call=1000, after=True)
    claim(counted)
    first = counted.calls.copy()
    claim(counted)
    assert (first, counted.calls[len(first) :]) == (["read", "list", "write"], ["read", "write"])


def test_a_record_of_another_run_is_refused() -> None:
    """As after a copy of a folder under another name."""
    store = MemoryStore()
    claim(store)
    with pytest.raises(RecordDamaged, match="it is of run 'run', expected 'other'"):
        RunRecord.open(store, run_id="other", fingerprint="abc", settings={})


def test_a_run_that_is_reached_through_a_link_is_that_run(tmp_path: Path) -> None:
    """Its name is that of the folder; of a copy under another name it is not."""
    claim(LocalStore(tmp_path / "run"))
    (tmp_path / "latest").symlink_to("run")
    assert job.run.record.read(LocalStore(tmp_path / "latest")) is not None
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    with pytest.raises(RecordDamaged, match="it is of run 'run', expected 'copy'"):
        job.run.record.read(LocalStore(tmp_path), "copy/run.json")


class DamagesOneRead(MemoryStore):
    """The next answer is damaged."""

    is_next = False

    def read(self, name: str) -> StoredObject:
        stored = super().read(name)
        if self.is_next:
            self.is_next = False
            return StoredObject(b"{", stored.generation)
        return stored


def test_a_record_is_read_twice_before_it_is_called_damaged() -> None:
    """The answer may be, and the record not."""
    store = DamagesOneRead()
    claim(store)
    store.is_next = True
    assert claim(store).attempt.number == 2


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "FIFO"])
def test_what_is_no_file_where_the_record_should_be_is_damage(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """Nothing waits for it, and a start is not tried again."""
    make(tmp_path / RECORD_NAME)
    with pytest.raises(RecordDamaged, match="Nothing was written or deleted"):
        claim(LocalStore(tmp_path))


def test_a_record_beyond_all_measure_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its size is compared first."""
    store = MemoryStore()
    claim(store)
    monkeypatch.setattr(job.run.record, "MAX_BYTES", 100)
    with pytest.raises(RecordDamaged, match="bytes, expected at most 100"):
        claim(store)


def test_what_could_not_be_read_back_is_not_written() -> None:
    """A fault of the program must not make its own run unreadable."""
    store = MemoryStore()
    record = claim(store)
    before = store.read(RECORD_NAME)
    with pytest.raises(ValueError, match="splits"):
        record.update(inputs={"data": {"splits": "a"}})
    assert store.read(RECORD_NAME) == before
    record.renew()


def test_a_setting_that_is_newer_than_the_record_has_its_default_there() -> None:
    """And is no difference; one that is not the default is listed, and so is one that this version does not know."""
    store = MemoryStore()
    claim(store, SEED=1, MIXUP=0.5)
    with pytest.raises(RunMismatch) as caught:
        claim(store, fingerprint="other", SEED=1, DROPOUT=0.2, ROTATION=0.3)
    assert "THAW_ROTATION: the run has 0.1, this start 0.3" in caught.value.message
    assert "THAW_MIXUP: the run has 0.5, this version does not know it" in caught.value.message
    assert "DROPOUT" not in caught.value.message


def test_an_attempt_that_ends_does_not_wait_for_a_write_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The renewal of the lease may be stuck in a request: the end is then not noted, and the process leaves."""
    monkeypatch.setattr(job.run.record, "CLOSING_SECONDS", 0.05)
    store = MemoryStore()
    record = claim(store)
    is_held, may_end = threading.Event(), threading.Event()

    def hang() -> None:
        with record.quiet():
            is_held.set()
            may_end.wait(10)

    thread = threading.Thread(target=hang)
    thread.start()
    is_held.wait(10)
    with pytest.raises(StorageError, match=r"run\.json is still being written"):
        record.close_attempt(42)
    may_end.set()
    thread.join()
    record.close_attempt(42)
    assert [a.exit_code for a in stored(store).attempts] == [42]
