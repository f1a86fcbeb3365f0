"""Taking a run: at once when it is free, after the lease when its holder is gone, not at all while it is held."""

import contextlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest

from job.errors import Interrupted, StorageError, Superseded
from job.observe.events import WaitingForRun
from job.observe.progress import Progress
from job.run import lease
from job.run.record import RECORD_NAME, RunRecord
from job.schema import Holder
from job.storage import LocalStore, ObjectStore, StoredObject
from tests.conftest import Recorder
from tests.recorded import OUTCOME
from tests.runs import IDENTITY, context
from tests.stores import MemoryStore

FIRST = Holder(host="first", pid=1, started=0.0, job_uid="job-1")
SECOND = Holder(host="second", pid=1, started=0.0, job_uid="job-2")


class Clock:
    """The clock of a store and of this machine; sleeping moves it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.advance)

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    store = MemoryStore()
    store.now = lambda: clock.now
    return store


class WithoutClock(MemoryStore):
    """A store that does not know how old an object is, as a folder."""

    def age_seconds(self, name: str) -> None:
        return None


def claim(
    store: ObjectStore, holder: Holder, *, lease_seconds: float = 60, wait_seconds: float = 0, **options: Any
) -> RunRecord:
    return lease.claim(
        store, IDENTITY, holder, lease_seconds=lease_seconds, wait_seconds=wait_seconds, context=context(**options)
    )


def finish(record: RunRecord) -> None:
    record.finish(OUTCOME, exit_code=0)


@pytest.mark.parametrize(
    ("before", "holder", "attempt"),
    [
        (None, FIRST, 1),
        (lambda first: first.close_attempt(44), SECOND, 2),
        (finish, SECOND, 1),
        (lambda first: None, FIRST.model_copy(update={"host": "the next pod of the same Job"}), 2),
    ],
    ids=["new", "let go", "done", "of the same Job"],
)
def test_a_run_that_is_not_held_is_taken_or_answered_at_once(
    store: MemoryStore, clock: Clock, before: Callable[[RunRecord], None] | None, holder: Holder, attempt: int
) -> None:
    """Nothing is waited for; the former holder cannot write any more."""
    first = claim(store, FIRST) if before else None
    if first and before:
        before(first)
    record = claim(store, holder)
    assert (record.attempt.number, record.is_done, clock.now) == (attempt, before is finish, 0)
    if first and record.attempt.number == 2:
        with pytest.raises(Superseded):
            first.update()


def test_a_holder_that_is_gone_is_waited_for_until_its_lease_runs_out(store: MemoryStore, clock: Clock) -> None:
    """Counted from its last write, by the clock of the store; the wait is reported once."""
    claim(store, FIRST, lease_seconds=30)
    clock.advance(10)
    recorder = Recorder()
    assert claim(store, SECOND, observer=recorder).attempt.number == 2
    assert 20 <= clock.now - 10 < 26
    (waiting,) = recorder.of(WaitingForRun)
    assert (waiting.attempt, waiting.held_by, waiting.at_most_seconds) == (1, "first:1 of Job job-1", 60)


def test_a_holder_that_is_alive_keeps_its_run(store: MemoryStore, clock: Clock) -> None:
    """The waiting attempt gives up after a lease of its own, and names the holder."""
    first = claim(store, FIRST)
    with pytest.raises(Superseded, match=r"run 'run' is held by attempt 1 of first:1 of Job job-1.*waited 60 s"):
        claim(store, SECOND, check_stop=first.update)
    assert 60 <= clock.now < 70
    assert len(first.content.attempts) == 1


def test_a_run_that_is_doing_well_can_be_waited_for_to_its_end(store: MemoryStore, clock: Clock) -> None:
    """As long as THAW_WAIT_SECONDS says; meanwhile the log says how far it is, and then the outcome is the answer."""
    progress = Progress()
    first = claim(store, FIRST, progress=progress)

    def train() -> None:
        progress.reached["head"] = int(clock.now)
        if clock.now < 800:
            first.update(state="head")
        elif not first.is_done:
            finish(first)

    recorder = Recorder()
    assert claim(store, SECOND, wait_seconds=3600, check_stop=train, observer=recorder).is_done
    assert 800 <= clock.now < 810
    waiting = recorder.of(WaitingForRun)
    assert [round(event.at_most_seconds, -1) for event in waiting] == [3600, 3300, 3000]
    assert [(event.state, event.steps_done is not None) for event in waiting][1:] == [("head", True)] * 2
    assert 290 < (waiting[1].steps_done or 0) < 310


def test_a_run_that_is_not_done_in_time_is_left_to_its_holder(store: MemoryStore, clock: Clock) -> None:
    """The error says how long it was waited for; a holder that dies meanwhile is replaced after its lease."""
    first = claim(store, FIRST)
    with pytest.raises(Superseded, match=r"waited 50[0-5] s"):
        claim(store, SECOND, wait_seconds=500, check_stop=first.update)
    begun = clock.now
    assert claim(store, SECOND, wait_seconds=500).attempt.number == 2
    assert 55 < clock.now - begun < 66


def test_a_store_whose_clock_stands_still_does_not_hold_a_run_for_ever(store: MemoryStore, clock: Clock) -> None:
    """A record that is seen unchanged for a whole lease is free."""
    store.now = lambda: 0.0
    claim(store, FIRST, lease_seconds=30)
    assert claim(store, SECOND).attempt.number == 2
    assert 30 <= clock.now < 36


@pytest.mark.parametrize("own_seconds", [5, 60])
def test_without_a_clock_of_the_store_the_record_is_watched_for_a_whole_lease(clock: Clock, own_seconds: float) -> None:
    """However long ago it was written, and however short the lease of the watcher."""
    store = WithoutClock()
    claim(store, FIRST, lease_seconds=30)
    clock.advance(1000)
    recorder = Recorder()
    assert claim(store, SECOND, lease_seconds=own_seconds, observer=recorder).attempt.number == 2
    assert 30 <= clock.now - 1000 < 36
    assert [waiting.at_most_seconds for waiting in recorder.of(WaitingForRun)] == [max(own_seconds, 30)]


def test_a_store_that_is_slow_at_first_costs_the_watcher_nothing(clock: Clock) -> None:
    """The whole lease of a dead holder is watched from the first reading on, and then the run is taken."""
    store = WithoutClock()
    claim(store, FIRST, lease_seconds=60)
    read = store.read

    def slow(name: str) -> StoredObject:
        clock.advance(10)
        store.read = read  # type: ignore[method-assign]
        return read(name)

    store.read = slow  # type: ignore[method-assign]
    assert claim(store, SECOND, lease_seconds=60).attempt.number == 2
    assert 70 <= clock.now < 76


def test_a_holder_that_was_seen_to_renew_is_waited_for_no_longer_than_ones_own_lease(clock: Clock) -> None:
    """However long the holder's is."""
    store = WithoutClock()
    first = claim(store, FIRST, lease_seconds=3600)
    with pytest.raises(Superseded, match=r"held by attempt 1 .* and alive; waited 5 s"):
        claim(store, SECOND, lease_seconds=5, check_stop=first.update)
    assert 5 <= clock.now < 7


def test_the_same_bytes_written_again_are_a_sign_of_life(clock: Clock) -> None:
    """The version counts, not only the content of the record."""
    store = WithoutClock()
    claim(store, FIRST, lease_seconds=30)

    def touch() -> None:
        stored = store.read(RECORD_NAME)
        store.write(RECORD_NAME, stored.data, if_version=stored.version)

    with pytest.raises(Superseded, match="and alive"):
        claim(store, SECOND, check_stop=touch)


class ShiftedClock(LocalStore):
    """A folder as a host with a wrong clock writes it: the first time of a file is not this host's."""

    def __init__(self, root: Path, shift_seconds: float) -> None:
        super().__init__(root)
        self._shift_ns = int(shift_seconds * 1e9)

    def write(self, name: str, data: bytes, *, if_version: str) -> str:
        written = int(super().write(name, data, if_version=if_version))
        kept = written if if_version else written + self._shift_ns
        os.utime(self.root / name, ns=(kept, kept))
        return self.version(name)


@pytest.mark.parametrize(("shift_seconds", "renews"), [(-90, True), pytest.param(90, False, marks=pytest.mark.slow)])
def test_no_clock_of_another_host_decides_over_a_run_in_a_folder(
    tmp_path: Path, shift_seconds: float, renews: bool
) -> None:
    """A holder whose clock is wrong keeps its run while it renews it, and loses it a lease after it has gone."""
    store = LocalStore(tmp_path)
    # One that is renewed late is renewed all the same.
    first = claim(ShiftedClock(tmp_path, shift_seconds), FIRST, lease_seconds=60.0 if renews else 1.0)
    began = time.monotonic()
    if renews:
        with lease.Renewal(first, lease_seconds=1.0), pytest.raises(Superseded, match="and alive"):
            claim(store, SECOND, lease_seconds=1.0)
    else:
        assert claim(store, SECOND, lease_seconds=1.0).attempt.number == 2
    assert 1.0 <= time.monotonic() - began < abs(shift_seconds)


def test_of_two_that_wait_for_a_run_one_gets_it(tmp_path: Path) -> None:
    """Both see the lease run out; the record is swapped once."""
    claim(LocalStore(tmp_path), FIRST, lease_seconds=1.0)

    def wait(host: str) -> bool:
        with contextlib.suppress(Superseded):
            other = SECOND.model_copy(update={"host": host, "job_uid": host})
            return claim(LocalStore(tmp_path), other, lease_seconds=4.0).attempt.holder.startswith(host)
        return False

    with ThreadPoolExecutor(2) as executor:
        assert sorted(executor.map(wait, ["a", "b"])) == [False, True]
    assert len(RunRecord.open(LocalStore(tmp_path), IDENTITY).content.attempts) == 2


def test_a_run_that_is_finished_meanwhile_is_answered(store: MemoryStore) -> None:
    """A signal is honoured in the same place."""
    first = claim(store, FIRST)
    assert claim(store, SECOND, check_stop=lambda: first.is_done or finish(first)).is_done


def test_waiting_ends_on_a_stop(store: MemoryStore) -> None:
    """While the run is held."""
    claim(store, FIRST)

    def stop() -> None:
        raise Interrupted("now")

    with pytest.raises(Interrupted):
        claim(store, SECOND, check_stop=stop)


class AlwaysLoses(MemoryStore):
    """Another attempt takes the run just before each write."""

    is_rival = False

    def write(self, name: str, data: bytes, *, if_version: str) -> str:
        if not self.is_rival:
            self.is_rival = True
            RunRecord.open(self, IDENTITY).take(FIRST, lease_seconds=0.0)
            self.is_rival = False
        return super().write(name, data, if_version=if_version)


def test_a_claim_that_keeps_losing_gives_up() -> None:
    """It ends with an error, not in an endless loop."""
    with pytest.raises(Superseded, match=f"attempt {lease.TAKE_TRIES} of first:1"):
        claim(AlwaysLoses(), SECOND)


@pytest.mark.parametrize(("lease_seconds", "seconds"), [(5, 2), (60, 15), (3600, 60)])
def test_several_requests_that_hang_fit_in_a_lease(lease_seconds: float, seconds: float) -> None:
    """A quarter of it, but never so short that a slow network fails, nor endless."""
    assert lease.request_seconds(lease_seconds) == seconds


# The thread that renews


def until(condition: Callable[[], Any]) -> None:
    give_up_at = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def test_a_lease_is_renewed_while_nothing_else_is_written() -> None:
    """A long compilation is not taken for a death."""
    store = MemoryStore()
    record = claim(store, FIRST)
    before = record.content.revision
    with lease.Renewal(record, lease_seconds=0.1):
        until(lambda: record.content.revision > before + 2)
    after = store.version(RECORD_NAME)
    time.sleep(0.2)
    assert store.version(RECORD_NAME) == after


def test_a_renewal_finds_that_the_run_was_taken() -> None:
    """The next check raises it."""
    store = MemoryStore()
    record = claim(store, FIRST)
    with lease.Renewal(record, lease_seconds=0.1) as renewal:
        renewal.check()
        claim(store, FIRST.model_copy(update={"host": "next"}))
        with pytest.raises(Superseded, match="attempt 2 of next:1"):
            until(renewal.check)


def test_a_store_that_is_away_for_a_while_does_not_end_the_run() -> None:
    """The next renewal may succeed; the version decides if not."""

    class AwayForAWhile(MemoryStore):
        failures: ClassVar[list[Exception]] = [StorageError("away"), ImportError("swapped"), StorageError("away")]

        def write(self, name: str, data: bytes, *, if_version: str) -> str:
            if self.version(name) and self.failures:
                raise self.failures.pop()
            return super().write(name, data, if_version=if_version)

    store = AwayForAWhile()
    record = claim(store, FIRST)
    with lease.Renewal(record, lease_seconds=0.1) as renewal:
        until(lambda: record.content.revision > 1)
        renewal.check()
