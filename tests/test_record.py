"""The run record: one writer at a time, and a run that is done stays done."""

from datetime import UTC, datetime

import pytest

from job.errors import PreconditionFailed, RunMismatch, StorageError, Superseded
from job.record import RECORD_NAME, Attempt, Record, RunRecord
from job.storage import MISSING
from tests.stores import MemoryStore

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def claim(store: MemoryStore, *, holder: str = "here:1", fingerprint: str = "abc", **settings: object) -> RunRecord:
    return RunRecord.claim(
        store, run_id="run", fingerprint=fingerprint, settings=settings, holder=holder, clock=lambda: NOON
    )


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
    second = claim(store, holder="there:2")
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
    claim(store).finish({"test_accuracy": 0.9}, exit_code=0)
    before = store.read(RECORD_NAME)
    again = claim(store)
    assert again.is_done
    assert again.content.outcome == {"test_accuracy": 0.9}
    assert store.read(RECORD_NAME) == before


def test_finishing_closes_the_attempt_once() -> None:
    """One write makes the outcome and the end of the attempt known together."""
    store = MemoryStore()
    record = claim(store)
    record.finish({}, exit_code=6)
    record.close_attempt(1)
    assert [(a.exit_code, a.end) for a in stored(store).attempts] == [(6, NOON)]


def test_a_superseded_attempt_is_told_the_winner_and_writes_nothing() -> None:
    """The generation fences it off, whatever the clocks say."""
    store = MemoryStore()
    loser = claim(store, holder="loser:1")
    winner = claim(store, holder="winner:2")
    with pytest.raises(Superseded, match=r"attempt 2 of winner:2"):
        loser.update(state="head")
    assert stored(store) == winner.content


def test_a_loser_stays_a_loser() -> None:
    """A second try is refused as the first was."""
    store = MemoryStore()
    loser = claim(store)
    claim(store)
    for _ in range(2):
        with pytest.raises(Superseded):
            loser.finish({}, exit_code=0)
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
    record.finish({}, exit_code=0)
    assert stored(store).state == "done"


class AlwaysLoses(MemoryStore):
    """Another attempt writes the record just before each write."""

    def write(self, name: str, data: bytes, *, if_generation: int) -> int:
        attempts = (Attempt(number=1, holder="rival", start=NOON),)
        rival = Record(run_id="run", fingerprint="abc", settings={}, revision=self._next, attempts=attempts)
        super().write(name, rival.model_dump_json().encode(), if_generation=self.generation(name))
        return super().write(name, data, if_generation=if_generation)


def test_a_claim_that_keeps_losing_gives_up() -> None:
    """It ends with an error, not in a loop for ever."""
    with pytest.raises(Superseded, match="claims in a row"):
        claim(AlwaysLoses())


def test_a_record_that_is_no_record_is_an_error_that_names_it() -> None:
    """It is not overwritten."""
    store = MemoryStore()
    store.write(RECORD_NAME, b"{}", if_generation=MISSING)
    with pytest.raises(StorageError, match=r"memory:///run\.json is not a run record"):
        claim(store)
    assert store.read(RECORD_NAME).data == b"{}"
