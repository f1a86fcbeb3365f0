"""Taking a run, and holding it.

A run that a living attempt holds is waited for, for as long as a lease lasts; then the waiting attempt gives up. A
lease is renewed by every write of the record, and by a thread of its own when nothing else is written. Whether it has
run out is told by the clock of the store alone. None of this makes a run safe: the generation of the record does,
whatever the clocks say; it saves the work of two attempts that would train the same run at once.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from job.errors import Superseded
from job.holder import Holder
from job.record import RECORD_NAME, Attempt, Record, RunRecord
from job.storage import ObjectStore

MIN_POLL_SECONDS, MAX_POLL_SECONDS = 0.2, 5.0
POLLS_IN_A_LEASE = 20
RENEWALS_IN_A_LEASE = 3
REQUESTS_IN_A_LEASE = 4
MIN_REQUEST_SECONDS, MAX_REQUEST_SECONDS = 2.0, 60.0
TAKE_TRIES = 10
JOIN_SECONDS = 5.0

Waiting = Callable[[Attempt, float], None]


def request_seconds(lease_seconds: float) -> float:
    """After how long a request on the record counts as lost: one that hangs must not cost the lease."""
    return min(max(lease_seconds / REQUESTS_IN_A_LEASE, MIN_REQUEST_SECONDS), MAX_REQUEST_SECONDS)


def claim(
    store: ObjectStore,
    *,
    run_id: str,
    fingerprint: str,
    settings: dict[str, Any],
    holder: Holder,
    lease_seconds: float,
    on_waiting: Waiting = lambda held_by, at_most_seconds: None,
    check_stop: Callable[[], None] = lambda: None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    account: Callable[[], dict[str, Any]] = dict,
) -> RunRecord:
    """Open the run and take it, unless it is done: then nothing is written.

    Waits while another attempt holds it; `on_waiting` is told once which, and for how many seconds at most. Raises
    RunMismatch when the run id belongs to other settings, Superseded when it is still held after `lease_seconds`.
    """
    give_up_at = time.monotonic() + lease_seconds
    tries, is_told = 0, False
    seen, seen_at = -1, time.monotonic()
    while True:
        record = RunRecord.open(
            store, run_id=run_id, fingerprint=fingerprint, settings=settings, clock=clock, account=account
        )
        if record.is_done:
            return record
        if record.content.revision != seen:
            seen, seen_at = record.content.revision, time.monotonic()
        held = held_seconds(record.content, store, holder, unchanged_seconds=time.monotonic() - seen_at)
        if held <= 0:
            try:
                record.take(holder, lease_seconds=lease_seconds)
            except Superseded:
                tries += 1
                if tries == TAKE_TRIES:
                    raise
                continue
            return record
        if time.monotonic() >= give_up_at:
            raise _still_held(record, lease_seconds)
        if not is_told:
            on_waiting(record.attempt, lease_seconds)
            is_told = True
        _pause(min(held, lease_seconds / POLLS_IN_A_LEASE), check_stop)


def held_seconds(
    record: Record,
    store: ObjectStore,
    holder: Holder,
    *,
    name: str = RECORD_NAME,
    unchanged_seconds: float = 0.0,
) -> float:
    """For how long the run is still held by another than `holder`; 0 when it may be taken.

    The record was read from `name` in the store. Whatever its clock says, one that was seen unchanged for the whole
    lease is nobody's.
    """
    lease = record.lease
    if lease is None or lease.holder.must_yield_to(holder):
        return 0.0
    return max(0.0, lease.seconds - max(store.age_seconds(name), unchanged_seconds))


def _pause(seconds: float, check_stop: Callable[[], None]) -> None:
    until = time.monotonic() + min(max(seconds, MIN_POLL_SECONDS), MAX_POLL_SECONDS)
    while time.monotonic() < until:
        check_stop()
        time.sleep(min(MIN_POLL_SECONDS, max(0.0, until - time.monotonic())))


def _still_held(record: RunRecord, lease_seconds: float) -> Superseded:
    attempt = record.attempt
    return Superseded(
        f"run {record.content.run_id!r} is held by attempt {attempt.number} of {attempt.holder}, started "
        f"{attempt.start:%FT%TZ} and alive; waited {lease_seconds:g} s for it",
        hint="let it end, or stop it; a run of its own needs another THAW_RUN_ID",
    )


class Renewal:
    """A thread that renews the lease of a record for as long as the context lasts."""

    def __init__(self, record: RunRecord, *, lease_seconds: float) -> None:
        self._record = record
        self._every_seconds = lease_seconds / RENEWALS_IN_A_LEASE
        self._is_over = threading.Event()
        self._lost: Superseded | None = None
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")

    def __enter__(self) -> "Renewal":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        # A store that does not answer must not keep the process: the thread dies with it.
        self._thread.join(timeout=JOIN_SECONDS)

    def check(self) -> None:
        """Raise Superseded when the thread has found out that another attempt holds the run."""
        if self._lost is not None:
            raise self._lost

    def _renew(self) -> None:
        while True:
            if self._record.seconds_since_written >= self._every_seconds / 2:
                try:
                    self._record.renew()
                except Superseded as error:
                    self._lost = error
                    return
                except Exception:
                    # A renewal is a courtesy, so none of its failures ends a run. The store may be back in time; if
                    # it is not, the lease runs out, and the generation decides. It need not be the store, either:
                    # TFDS 4.9 swaps `__import__` for its own at times, and the client of a bucket imports as it goes.
                    pass
            if self._is_over.wait(self._every_seconds):
                return
