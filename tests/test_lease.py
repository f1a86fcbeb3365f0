"""Taking a run: at once when nobody holds it, after the lease when its holder is gone, not at all while it is held."""

import time
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from job import lease
from job.errors import Interrupted, StorageError, Superseded
from job.holder import Holder
from job.record import RECORD_NAME, RunRecord
from tests.stores import MemoryStore

FIRST = Holder(host="first", pid=1, started=0.0, job_uid="job-1")
SECOND = Holder(host="second", pid=1, started=0.0, job_uid="job-2")


class Clock:
    """The clock of a store, and of this machine, which goes on by itself while somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.pass_by)

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    store = MemoryStore()
    store.now = lambda: clock.now
    return store


def claim(store: MemoryStore, holder: Holder, **options: Any) -> RunRecord:
    values: dict[str, Any] = {"run_id": "run", "fingerprint": "f", "settings": {}, "lease_seconds": 60}
    return lease.claim(store, holder=holder, **(values | options))


def test_a_new_run_is_taken_at_once(store: MemoryStore, clock: Clock) -> None:
    """Nobody holds it."""
    assert claim(store, FIRST).attempt.number == 1
    assert clock.now == 0


def test_a_run_that_was_let_go_is_taken_at_once(store: MemoryStore, clock: Clock) -> None:
    """Its last attempt said that it ended."""
    claim(store, FIRST).close_attempt(44)
    assert claim(store, SECOND).attempt.number == 2
    assert clock.now == 0


def test_a_finished_run_is_answered_at_once(store: MemoryStore, clock: Clock) -> None:
    """Whoever asks."""
    claim(store, FIRST).finish({}, exit_code=0)
    assert claim(store, SECOND).is_done
    assert clock.now == 0


def test_the_next_pod_of_the_same_job_takes_over_at_once(store: MemoryStore, clock: Clock) -> None:
    """Kubernetes has given up the last."""
    first = claim(store, FIRST)
    assert claim(store, FIRST.model_copy(update={"host": "next"})).attempt.number == 2
    assert clock.now == 0
    with pytest.raises(Superseded):
        first.renew()


def test_a_holder_that_is_gone_is_waited_for_until_its_lease_runs_out(store: MemoryStore, clock: Clock) -> None:
    """Counted from its last write, by the clock of the store."""
    claim(store, FIRST, lease_seconds=30)
    clock.pass_by(10)
    told: list[tuple[int, str, float]] = []
    record = claim(
        store, SECOND, on_waiting=lambda held_by, seconds: told.append((held_by.number, held_by.holder, seconds))
    )
    assert record.attempt.number == 2
    assert 20 <= clock.now - 10 < 26
    assert told == [(1, "first:1 of Job job-1", 60)]


def test_a_holder_that_is_alive_is_not_disturbed(store: MemoryStore, clock: Clock) -> None:
    """The one who waits gives up after a lease of its own, and says who holds the run."""
    first = claim(store, FIRST)
    with pytest.raises(Superseded, match=r"run 'run' is held by attempt 1 of first:1 of Job job-1.*waited 60 s"):
        claim(store, SECOND, check_stop=first.renew)
    assert 60 <= clock.now < 70
    assert len(first.content.attempts) == 1


def test_a_clock_that_runs_ahead_does_not_hold_a_run_for_ever(store: MemoryStore, clock: Clock) -> None:
    """A record that is seen unchanged for a whole lease is nobody's."""
    store.now = lambda: 0.0
    claim(store, FIRST, lease_seconds=30)
    assert claim(store, SECOND).attempt.number == 2
    assert 30 <= clock.now < 36


def test_whoever_waits_finds_the_run_done(store: MemoryStore) -> None:
    """And ends well."""
    first = claim(store, FIRST)
    assert claim(store, SECOND, on_waiting=lambda *_: first.finish({"a": 1}, exit_code=0)).content.outcome == {"a": 1}


def test_waiting_stops_when_told_to(store: MemoryStore) -> None:
    """A signal is honoured while a run is held."""
    claim(store, FIRST)

    def stop() -> None:
        raise Interrupted("now")

    with pytest.raises(Interrupted):
        claim(store, SECOND, check_stop=stop)


class AlwaysLoses(MemoryStore):
    """Another attempt writes the record just before each write."""

    def write(self, name: str, data: bytes, *, if_generation: int) -> int:
        rival = RunRecord.open(self, run_id="run", fingerprint="f", settings={})
        rival._store = self.inner = MemoryStore()
        rival._generation = 0
        rival.take(FIRST, lease_seconds=0.0)
        super().write(name, self.inner.read(name).data, if_generation=self.generation(name))
        return super().write(name, data, if_generation=if_generation)


def test_a_claim_that_keeps_losing_gives_up() -> None:
    """It ends with an error, not in a loop for ever."""
    with pytest.raises(Superseded, match=f"attempt {lease.TAKE_TRIES} of first:1"):
        claim(AlwaysLoses(), SECOND)


@pytest.mark.parametrize(("lease_seconds", "seconds"), [(5, 2), (60, 15), (3600, 60)])
def test_several_requests_that_hang_fit_in_a_lease(lease_seconds: float, seconds: float) -> None:
    """A quarter of it, but never so short that a slow network fails, nor longer than anybody would wait."""
    assert lease.request_seconds(lease_seconds) == seconds


# The thread that renews


def until(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def test_a_lease_is_renewed_while_nothing_else_is_written() -> None:
    """A long compilation is not taken for a death."""
    store = MemoryStore()
    record = claim(store, FIRST)
    before = store.generation(RECORD_NAME)
    with lease.Renewal(record, lease_seconds=0.1):
        until(lambda: store.generation(RECORD_NAME) > before + 2)
    after = store.generation(RECORD_NAME)
    time.sleep(0.2)
    assert store.generation(RECORD_NAME) == after


def test_a_renewal_finds_out_that_the_run_was_taken() -> None:
    """And says so at the next question."""
    store = MemoryStore()
    record = claim(store, FIRST)
    with lease.Renewal(record, lease_seconds=0.1) as renewal:
        renewal.check()
        claim(store, FIRST.model_copy(update={"host": "next"}))
        until(lambda: renewal._lost is not None)
        with pytest.raises(Superseded, match="attempt 2 of next:1"):
            renewal.check()


def test_a_store_that_is_away_for_a_while_does_not_end_the_run() -> None:
    """The next renewal may succeed; the generation decides if not."""

    class AwayForAWhile(MemoryStore):
        failures: ClassVar[list[Exception]] = [StorageError("away"), ImportError("swapped"), StorageError("away")]

        def write(self, name: str, data: bytes, *, if_generation: int) -> int:
            if self.generation(name) and self.failures:
                raise self.failures.pop()
            return super().write(name, data, if_generation=if_generation)

    store = AwayForAWhile()
    record = claim(store, FIRST)
    with lease.Renewal(record, lease_seconds=0.1) as renewal:
        until(lambda: store.generation(RECORD_NAME) > 1)
        renewal.check()
