"""The run record: one writer at a time, and a run that is done stays done."""

import contextlib
import itertools
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import job.run.record
from job.errors import PreconditionFailed, RecordDamaged, RunMismatch, StorageError, Superseded
from job.run.record import RECORD_NAME, Identity, RunRecord, read
from job.schema import Holder, Outcome
from job.storage import MISSING, LocalStore, ObjectStore, StoredObject
from tests.recorded import OUTCOME
from tests.runs import record_of
from tests.stores import CrashingStore, MemoryStore


def claim(store: ObjectStore, *, host: str = "here", fingerprint: str = "abc", **settings: object) -> RunRecord:
    identity = Identity(run_id="run", fingerprint=fingerprint, settings=settings)
    record = RunRecord.open(store, identity)
    if not record.is_done:
        record.take(Holder(host=host, pid=1, started=0.0), lease_seconds=60)
    return record


def ends(store: ObjectStore) -> list[tuple[int | None, bool]]:
    """Exit code of each attempt, and whether it has an end."""
    return [(attempt.exit_code, attempt.end is not None) for attempt in record_of(store).attempts]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def test_each_claim_is_an_attempt(store: MemoryStore) -> None:
    """The record has what a reader relies on: id, fingerprint, settings, state, attempts."""
    claim(store, SEED=1).close_attempt(42)
    claim(store, host="there", SEED=1)
    record = record_of(store)
    assert (record.run_id, record.fingerprint, record.settings, record.state) == ("run", "abc", {"SEED": 1}, "prepare")
    assert [(a.number, a.holder) for a in record.attempts] == [(1, "here:1"), (2, "there:1")]
    assert ends(store) == [(42, True), (None, False)]


def test_other_settings_are_refused_and_each_difference_is_listed(store: MemoryStore) -> None:
    """One that the record does not have yet has its default there; one that this version does not know is listed."""
    claim(store, SEED=1, BATCH_SIZE=32, SHEAR=0.5, PATIENCE=3)
    before = store.read(RECORD_NAME)
    with pytest.raises(RunMismatch) as caught:
        claim(store, fingerprint="other", SEED=1, BATCH_SIZE=64, DROPOUT=0.2, ROTATION=0.3, PATIENCE=None)
    assert caught.value.message.splitlines()[1:] == [
        "  THAW_BATCH_SIZE: the run has 32, this start 64",
        "  THAW_PATIENCE: the run has 3, this start None",
        "  THAW_ROTATION: the run has 0.1, this start 0.3",
        "  THAW_SHEAR: the run has 0.5, this version does not know it",
    ]
    assert store.read(RECORD_NAME) == before


def test_a_finished_run_is_not_written_again(store: MemoryStore) -> None:
    """One write has the outcome and the end of the attempt; a claim of it registers no attempt."""
    record = claim(store)
    record.finish(OUTCOME, exit_code=6)
    record.close_attempt(1)
    before = store.read(RECORD_NAME)
    again = claim(store)
    assert again.is_done
    assert again.content.outcome == Outcome(**OUTCOME)
    assert store.read(RECORD_NAME) == before
    assert ends(store) == [(6, True)]


def test_a_superseded_attempt_names_the_winner_and_writes_nothing(store: MemoryStore) -> None:
    """The version fences it off, whatever the clocks say; a second try is refused as the first was."""
    loser = claim(store, host="loser")
    winner = claim(store, host="winner")
    for _ in range(2):
        with pytest.raises(Superseded, match=r"attempt 2 of winner:1"):
            loser.finish(OUTCOME, exit_code=0)
    assert record_of(store) == winner.content


def test_an_attempt_that_a_newer_program_superseded_says_so(store: MemoryStore) -> None:
    """Also while it ends: it is no damage, and not this attempt's to repair."""
    loser = claim(store, host="loser")
    content = json.loads(store.read(RECORD_NAME).data) | {"new": 1}
    store.write(RECORD_NAME, json.dumps(content).encode(), if_version=store.version(RECORD_NAME))
    with pytest.raises(Superseded, match=r"another process has written memory:///run\.json, and this program cannot"):
        loser.update()


class AnswersTwice(MemoryStore):
    """Does a write and then refuses it: so a retry after a lost answer looks."""

    def write(self, name: str, data: bytes, *, if_version: str) -> str:
        super().write(name, data, if_version=if_version)
        raise PreconditionFailed("the version has changed")


def test_a_refusal_of_ones_own_write_is_success() -> None:
    """It is read back and compared before it counts as a conflict."""
    store = AnswersTwice()
    claim(store).finish(OUTCOME, exit_code=0)
    assert record_of(store).state == "done"


class LosesAnswers(MemoryStore):
    """Fails by plan: having done the write, or not."""

    def __init__(self) -> None:
        super().__init__()
        self.plan: list[str] = []

    def write(self, name: str, data: bytes, *, if_version: str) -> str:
        step = self.plan.pop(0) if self.plan else "answer"
        if step == "lost before":
            raise StorageError("no answer")
        version = super().write(name, data, if_version=if_version)
        if step == "lost after":
            raise StorageError("no answer")
        return version


@pytest.mark.parametrize("plan", [*itertools.product(["lost before", "lost after"], repeat=3)])
def test_writes_whose_answers_were_lost_do_not_lock_the_run_out(plan: tuple[str, ...]) -> None:
    """A later write finds an earlier one of its own in the way, and goes on from there."""
    store = LosesAnswers()
    record = claim(store)
    store.plan = list(plan)
    while store.plan:
        with contextlib.suppress(StorageError):
            record.update(state="head")
    record.update(state="fine_tune")
    assert record_of(store).state == "fine_tune"


@pytest.mark.parametrize("last", [RunRecord.update, lambda record: record.close_attempt(44)])
@pytest.mark.parametrize("write", [lambda record: record.update(state="fine_tune"), lambda record: finish(record)])
def test_a_write_whose_answer_was_lost_is_not_undone(
    write: Callable[[RunRecord], None], last: Callable[[RunRecord], None]
) -> None:
    """The next write builds upon it; a run that is done stays done."""
    store = LosesAnswers()
    record = claim(store)
    store.plan = ["lost after"]
    with pytest.raises(StorageError):
        write(record)
    written = record_of(store)
    last(record)
    assert (record_of(store).state, record_of(store).outcome) == (written.state, written.outcome)
    assert record_of(store).attempts[-1].exit_code in (written.attempts[-1].exit_code, 44)
    assert written.state != "done" or ends(store) == [(0, True)]


def finish(record: RunRecord) -> None:
    record.finish(OUTCOME, exit_code=0)


def test_a_renewal_waits_while_the_record_must_be_quiet(store: MemoryStore) -> None:
    """No other thread writes then."""
    record = claim(store)
    before = store.version(RECORD_NAME)
    renewal = threading.Thread(target=record.update)
    with record.quiet():
        renewal.start()
        renewal.join(timeout=0.2)
        assert store.version(RECORD_NAME) == before
    renewal.join(timeout=60)
    assert store.version(RECORD_NAME) != before


def test_an_attempt_that_ends_does_not_wait_for_a_write_that_hangs(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The renewal of the lease may be stuck in a request: the end is then not recorded, and the process leaves."""
    monkeypatch.setattr(job.run.record, "CLOSING_SECONDS", 0.05)
    record = claim(store)
    is_held, may_end = threading.Event(), threading.Event()

    def hang() -> None:
        with record.quiet():
            is_held.set()
            may_end.wait(60)

    thread = threading.Thread(target=hang)
    thread.start()
    is_held.wait(60)
    with pytest.raises(StorageError, match=r"run\.json is still being written"):
        record.close_attempt(42)
    may_end.set()
    thread.join()
    record.close_attempt(42)
    assert ends(store) == [(42, True)]


# Damage


@pytest.mark.parametrize(
    "data",
    [b"", b'{"run_id": "ru', b"{}", b"null", b"\xff\xfe", b"[" * 100_000, b'{"run_id": ' + b"9" * 5000],
)
def test_a_damaged_record_stops_a_start_for_good(store: MemoryStore, data: bytes) -> None:
    """Nothing is written; the hint is the command that repairs it."""
    store.write(RECORD_NAME, data, if_version=MISSING)
    with pytest.raises(RecordDamaged, match=r"memory:///run\.json .*Nothing was written or deleted") as caught:
        claim(store)
    assert "thaw repair --run memory://" in caught.value.hint
    assert (caught.value.exit_code, store.read(RECORD_NAME).data) == (4, data)


def test_a_record_of_a_newer_version_is_left_to_the_newer_program(store: MemoryStore) -> None:
    """Its unknown fields would be lost."""
    claim(store)
    content = json.loads(store.read(RECORD_NAME).data) | {"new": 1}
    store.write(RECORD_NAME, json.dumps(content).encode(), if_version=store.version(RECORD_NAME))
    with pytest.raises(RecordDamaged, match="new: Extra inputs are not permitted") as caught:
        claim(store)
    assert caught.value.hint.startswith("use the newer program that wrote it, or restore")


def test_a_lost_record_beside_checkpoints_stops_a_start(tmp_path: Path) -> None:
    """The error lists what is there, and all of it is kept."""
    store = LocalStore(tmp_path / "run")
    names = ["checkpoints/head-00000900-a1-1.safetensors", "checkpoints/fine_tune-00000007-a1-2-0123abcd.safetensors"]
    for name in names:
        store.write(name, b"", if_version=MISSING)
    problem = r"no run\.json beside 2 objects in checkpoints/, the newest .*tune-00000007"
    for use in (claim, read):
        with pytest.raises(RecordDamaged, match=problem):
            use(store)
    assert store.list("") == sorted(names)


def test_names_are_listed_only_where_there_is_no_record(store: MemoryStore) -> None:
    """A start of a run that is there costs one read."""
    counted = CrashingStore(store, at_call=1000, after=True)
    claim(counted)
    claim(counted)
    assert counted.calls == ["read", "list", "write", "read", "write"]


def test_a_record_of_another_run_is_refused(tmp_path: Path) -> None:
    """As after a copy of a folder under another name; a link is no copy."""
    claim(LocalStore(tmp_path / "run"))
    (tmp_path / "latest").symlink_to("run")
    assert read(LocalStore(tmp_path / "latest")) is not None
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    with pytest.raises(RecordDamaged, match="it is of run 'run', expected 'copy'"):
        read(LocalStore(tmp_path), "copy/run.json")


class DamagesOneRead(MemoryStore):
    is_next = False

    def read(self, name: str) -> StoredObject:
        stored = super().read(name)
        if self.is_next:
            self.is_next = False
            return StoredObject(b"{", stored.version)
        return stored


def test_a_record_is_read_twice_before_it_counts_as_damaged() -> None:
    """The answer may be damaged, and the record not."""
    store = DamagesOneRead()
    claim(store)
    store.is_next = True
    assert claim(store).attempt.number == 2


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "FIFO"])
def test_what_is_no_file_where_the_record_should_be_is_damage(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """Nothing waits for it."""
    make(tmp_path / RECORD_NAME)
    with pytest.raises(RecordDamaged, match="Nothing was written or deleted"):
        claim(LocalStore(tmp_path))


def test_a_record_that_is_too_large_is_refused_before_it_is_parsed(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size is compared first."""
    claim(store)
    monkeypatch.setattr(job.run.record, "MAX_BYTES", 100)
    with pytest.raises(RecordDamaged, match="bytes, expected at most 100"):
        claim(store)


def test_what_could_not_be_read_back_is_not_written(store: MemoryStore) -> None:
    """A fault of the program must not make its own run unreadable."""
    record = claim(store)
    before = store.read(RECORD_NAME)
    with pytest.raises(ValueError, match="splits"):
        record.update(inputs={"data": {"splits": "a"}})
    assert store.read(RECORD_NAME) == before
    record.update()
