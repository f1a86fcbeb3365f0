"""The one wrapper round every remote store: what is tried again, for how long, and what ends it."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.errors import (
    AccessDenied,
    AnswerMalformed,
    ExitCode,
    Interrupted,
    ObjectDamaged,
    ObjectMissing,
    PreconditionFailed,
    ScratchUnavailable,
    StorageError,
    StorageRefused,
)
from job.storage import MISSING
from job.storage.retrying import TRIES, RetryingStore
from tests.ports import free_port
from tests.processes import begin, wait_for
from tests.stores import MemoryStore


class Remote(MemoryStore):
    """A store whose calls fail as planned, each before or after it has had its effect."""

    def __init__(self, *failures: Exception, after: bool = False) -> None:
        super().__init__()
        self.failures = list(failures)
        self.after = after
        self.calls: list[str] = []

    def _planned(self, call: str) -> None:
        self.calls.append(call)
        if self.failures:
            raise self.failures.pop(0)

    def read(self, name: str) -> Any:
        self._planned("read")
        return super().read(name)

    def write(self, name: str, data: bytes, *, if_version: str) -> str:
        if not self.after:
            self._planned("write")
        version = super().write(name, data, if_version=if_version)
        if self.after:
            self._planned("write")
        return version

    def holds(self, name: str, source: bytes | Path) -> str | None:
        data = source if isinstance(source, bytes) else source.read_bytes()
        stored = self.objects[name]
        return stored.version if stored.data == data else None


class Noted:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.retries: list[str] = []
        self.conflicts: list[str] = []
        self.unanswered_for: list[tuple[str, float]] = []

    def request(self, operation: str, code: str, seconds: float) -> None:
        self.requests.append((operation, code))

    def retry(self, operation: str) -> None:
        self.retries.append(operation)

    def conflict(self, name: str) -> None:
        self.conflicts.append(name)

    def waiting(self, lock: str, at_most_seconds: float) -> None:
        raise AssertionError("there are no locks here")

    def unanswered(self, reason: str, at_most_seconds: float) -> None:
        self.unanswered_for.append((reason, at_most_seconds))


def retrying(remote: Remote, **options: Any) -> tuple[RetryingStore, Noted, list[float]]:
    """The store with its observer, and the delays that it asked for, none of which it waits."""
    noted, delays = Noted(), list[float]()
    return RetryingStore(remote, observer=noted, pause=delays.append, **options), noted, delays  # type: ignore[arg-type]


def test_what_may_pass_is_tried_again_after_delays_that_grow() -> None:
    """Each is a random part, at least half, of twice as much as before; the codes are reported."""
    store, noted, delays = retrying(Remote(*[StorageError("busy")] * 7), first_delay_seconds=1.0)
    with pytest.raises(ObjectMissing):
        store.read("a")
    longest = [1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0]
    assert [half / 2 <= delay <= half for half, delay in zip(longest, delays, strict=True)] == [True] * 7
    assert noted.requests == [("read", "error")] * 7 + [("read", "missing")]
    assert noted.retries == ["read"] * 7


def test_the_seed_of_a_run_does_not_make_its_workers_wait_alike() -> None:
    """Keras's seed is also that of Python's generator."""
    seen = []
    for _ in range(2):
        random.seed(7)
        store, _, delays = retrying(Remote(*[StorageError("busy")] * 3))
        with pytest.raises(ObjectMissing):
            store.read("a")
        seen.append(delays)
    assert seen[0] != seen[1]


def test_a_failure_that_lasts_is_told_once_and_a_short_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person would wait for two minutes without a word; a log would have a line for each hiccup."""
    store, noted, _ = retrying(Remote(*[StorageError("busy")] * 3))
    with pytest.raises(ObjectMissing):
        store.read("a")
    assert noted.unanswered_for == []
    monkeypatch.setattr("job.storage.retrying.REPORT_AFTER_SECONDS", 0.0)
    store, noted, _ = retrying(Remote(*[StorageError("busy")] * 3), retry_seconds=60.0)
    with pytest.raises(ObjectMissing):
        store.read("a")
    assert noted.unanswered_for == [("busy", 60.0)]


def test_it_is_given_up_at_the_deadline_with_the_last_reason() -> None:
    """No delay begins that would end after it."""
    store, noted, delays = retrying(Remote(*[StorageError("busy", hint="wait")] * 9), retry_seconds=2.5)
    with pytest.raises(StorageError, match=r"busy \(tried for") as caught:
        store.read("a")
    assert caught.value.hint == "wait"
    assert len(noted.requests) == len(delays) + 1 <= 4


def test_a_transfer_that_fails_after_long_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time in which it went well does not count."""
    times = iter([0.0, 130.0, 131.0, 132.0])
    remote = Remote(StorageError("reset"))
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    store, noted, _ = retrying(remote)
    with pytest.raises(ObjectMissing):
        store.read("a")
    assert (noted.retries, noted.unanswered_for) == (["read"], [("reset", 120.0)])


@pytest.mark.parametrize("final", [StorageRefused("no"), ObjectMissing("no"), ScratchUnavailable("full")])
def test_what_will_not_pass_is_raised_at_once(final: StorageError) -> None:
    """Also what is no fault of the store."""
    store, noted, delays = retrying(Remote(final, final))
    with pytest.raises(type(final)):
        store.read("a")
    assert (len(noted.requests), delays) == (1, [])


def test_a_denial_is_final_unless_the_same_was_granted_before() -> None:
    """A start without permissions ends at once; one whose credentials are being renewed waits, as for an outage."""
    remote = Remote(AccessDenied("no"))
    store, _, delays = retrying(remote, retry_seconds=2.5)
    with pytest.raises(AccessDenied):
        store.write("a", b"1", if_version=MISSING)
    assert delays == []
    version = store.write("a", b"1", if_version=MISSING)
    remote.failures = [AccessDenied("no"), AccessDenied("no")]
    store.write("a", b"2", if_version=version)
    assert len(delays) == 2
    remote.failures = [AccessDenied("no")] * 9
    with pytest.raises(StorageError, match="tried for") as caught:
        store.write("a", b"3", if_version=version)
    assert type(caught.value) is StorageError
    remote.failures = [AccessDenied("no")]
    with pytest.raises(AccessDenied):
        store.read("a")


@pytest.mark.parametrize("kind", [ObjectDamaged, AnswerMalformed])
@pytest.mark.parametrize(
    "do", [lambda store: store.read("a"), lambda store: store.write("b", b"x", if_version=MISSING)]
)
def test_a_fault_of_the_moment_is_tried_a_few_times_without_delay(
    kind: type[StorageError], do: Callable[[RetryingStore], Any]
) -> None:
    """The last one is raised."""
    for times in (TRIES - 1, TRIES):
        store, _, delays = retrying(remote := Remote(*[kind("odd")] * times))
        MemoryStore.write(remote, "a", b"x", if_version=MISSING)
        if times < TRIES:
            do(store)
        else:
            with pytest.raises(kind):
                do(store)
        assert len(remote.calls) == TRIES
        assert set(delays) <= {0.0}


def test_a_write_whose_answer_was_lost_is_a_success() -> None:
    """The second try is refused, and the object is what was sent."""
    store, noted, _ = retrying(remote := Remote(StorageError("reset"), after=True))
    assert store.write("a", b"x", if_version=MISSING) == remote.objects["a"].version
    assert remote.objects["a"].data == b"x"
    assert noted.conflicts == []


def test_a_write_that_another_process_was_quicker_with_is_a_conflict() -> None:
    """It is reported once, and what is there stays."""
    store, noted, _ = retrying(remote := Remote(StorageError("reset")))
    MemoryStore.write(remote, "a", b"theirs", if_version=MISSING)
    with pytest.raises(PreconditionFailed):
        store.write("a", b"ours", if_version=MISSING)
    assert (noted.conflicts, remote.objects["a"].data) == (["a"], b"theirs")


def test_a_refusal_that_is_not_true_is_no_conflict() -> None:
    """The object is of the expected version: the write is sent again."""
    store, noted, _ = retrying(remote := Remote(PreconditionFailed("no")))
    store.write("a", b"x", if_version=MISSING)
    assert (noted.conflicts, remote.objects["a"].data) == ([], b"x")
    store, noted, _ = retrying(Remote(*[PreconditionFailed("no")] * TRIES))
    with pytest.raises(StorageError, match="a write on it is refused") as caught:
        store.write("a", b"x", if_version=MISSING)
    assert not isinstance(caught.value, PreconditionFailed)
    assert noted.conflicts == []


def test_what_was_damaged_on_its_way_and_is_there_is_damage_and_no_conflict() -> None:
    """Every further try is refused."""
    remote = Remote(ObjectDamaged("other bytes"), after=True)
    store, noted, _ = retrying(remote)
    remote.holds = lambda name, source: None  # type: ignore[method-assign]
    with pytest.raises(ObjectDamaged, match="other bytes"):
        store.write("a", b"x", if_version=MISSING)
    assert noted.conflicts == []


def test_a_pause_that_raises_ends_the_call() -> None:
    """So a stop does."""

    def stop(seconds: float) -> None:
        raise Interrupted("stopped")

    store = RetryingStore(Remote(StorageError("busy")), pause=stop)  # type: ignore[arg-type]
    with pytest.raises(Interrupted):
        store.read("a")


@pytest.mark.slow
def test_a_signal_ends_the_wait_for_a_store_that_is_away(environment: Callable[..., dict[str, str]]) -> None:
    """There is nothing to commit yet: the grace period need not be waited for."""
    env = environment(storage_uri="gs://bucket/runs", grace_seconds=60)
    env["STORAGE_EMULATOR_HOST"] = f"http://127.0.0.1:{free_port()}"
    with begin(env) as process:
        wait_for(process, "waiting")
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=240)
    assert (process.returncode, "stopped by SIGTERM" in output) == (ExitCode.INTERRUPTED, True)
