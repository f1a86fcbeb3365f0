"""Taking a run: at once when nobody holds it, after the lease when its holder is gone, not at all while it is held."""

import contextlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest

from job.errors import Interrupted, StorageError, Superseded
from job.run import lease
from job.run.record import RECORD_NAME, RunRecord
from job.schema import Holder
from job.storage import LocalStore, ObjectStore
from tests.recorded import OUTCOME
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


def claim(store: ObjectStore, holder: Holder, **options: Any) -> RunRecord:
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
    claim(store, FIRST).finish(OUTCOME, exit_code=0)
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


class WithoutClock(MemoryStore):
    """A store that cannot tell how old an object is, as a folder."""

    def age_seconds(self, name: str) -> None:
        return None


@pytest.mark.parametrize("own_seconds", [5, 60])
def test_without_a_clock_of_the_store_a_lease_is_over_when_nothing_was_written_for_as_long(
    clock: Clock, own_seconds: float
) -> None:
    """However long ago the record was written, and however short the lease of the one who watches."""
    store = WithoutClock()
    claim(store, FIRST, lease_seconds=30)
    clock.pass_by(1000)
    told: list[float] = []
    record = claim(store, SECOND, lease_seconds=own_seconds, on_waiting=lambda _, seconds: told.append(seconds))
    assert record.attempt.number == 2
    assert 30 <= clock.now - 1000 < 36
    assert told == [max(own_seconds, 30)]


def test_a_holder_that_was_seen_to_renew_is_waited_for_no_longer_than_a_lease(clock: Clock) -> None:
    """A short one here, though the holder's is long."""
    store = WithoutClock()
    first = claim(store, FIRST, lease_seconds=3600)
    with pytest.raises(Superseded, match=r"held by attempt 1 .* and alive; waited 5 s"):
        claim(store, SECOND, lease_seconds=5, check_stop=first.renew)
    assert 5 <= clock.now < 7


def test_the_same_bytes_written_again_are_a_sign_of_life(clock: Clock) -> None:
    """The generation counts, not only what is in the record."""
    store = WithoutClock()
    first = claim(store, FIRST, lease_seconds=30)

    def touch() -> None:
        stored = store.read(RECORD_NAME)
        first._generation = store.write(RECORD_NAME, stored.data, if_generation=stored.generation)

    with pytest.raises(Superseded, match="and alive"):
        claim(store, SECOND, check_stop=touch)


@pytest.mark.parametrize("shift_seconds", [-90, 90], ids=["behind", "ahead"])
@pytest.mark.parametrize("renews", [True, False], ids=["alive", "gone"])
def test_no_clock_of_another_host_decides_over_a_run_in_a_folder(
    tmp_path: Path, shift_seconds: float, renews: bool
) -> None:
    """A holder whose clock is wrong keeps its run while it renews it, and loses it a lease after it has gone."""
    lease_seconds = 1.0
    store = LocalStore(tmp_path)
    first = claim(ShiftedClock(tmp_path, shift_seconds), FIRST, lease_seconds=lease_seconds)
    began = time.monotonic()
    with lease.Renewal(first, lease_seconds=lease_seconds) if renews else contextlib.nullcontext():
        if renews:
            with pytest.raises(Superseded, match="and alive"):
                claim(store, SECOND, lease_seconds=lease_seconds)
        else:
            assert claim(store, SECOND, lease_seconds=lease_seconds).attempt.number == 2
    assert lease_seconds <= time.monotonic() - began < 4 * lease_seconds


class ShiftedClock(LocalStore):
    """A folder as a host writes it whose clock is wrong: the time of a file is not this host's."""

    def __init__(self, root: Path, shift_seconds: float) -> None:
        super().__init__(root)
        self._shift_ns = int(shift_seconds * 1e9)

    def write(self, name: str, data: bytes, *, if_generation: int) -> int:
        generation = super().write(name, data, if_generation=if_generation)
        first = not if_generation
        kept = generation + (self._shift_ns if first else 0)
        os.utime(self.root / name, ns=(kept, kept))
        return (self.root / name).stat().st_mtime_ns


def test_of_two_that_wait_for_a_run_one_gets_it(tmp_path: Path) -> None:
    """Both see the lease run out; the record is swapped once."""
    claim(LocalStore(tmp_path), FIRST, lease_seconds=1.0)

    def wait(host: str) -> str:
        other = SECOND.model_copy(update={"host": host, "job_uid": host})
        try:
            return claim(LocalStore(tmp_path), other, lease_seconds=1.0).content.attempts[-1].holder
        except Superseded:
            return "lost"

    with ThreadPoolExecutor(2) as executor:
        ends = sorted(executor.map(wait, ["a", "b"]))
    assert ends[1] == "lost"
    assert [
        attempt.number
        for attempt in RunRecord.open(LocalStore(tmp_path), run_id="run", fingerprint="f", settings={}).content.attempts
    ] == [1, 2]


def test_whoever_waits_finds_the_run_done(store: MemoryStore) -> None:
    """And ends well."""
    first = claim(store, FIRST)
    assert claim(store, SECOND, on_waiting=lambda *_: first.finish(OUTCOME, exit_code=0)).is_done


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
