"""Taking a run, and holding it.

A run that a living attempt holds is waited for, for as long as a lease lasts; then the waiting attempt gives up. A
lease is renewed by every write of the record, and by a thread of its own when nothing else is written. It has run out
when the record was seen unchanged for the whole lease, by the watcher's own monotonic clock; or when a store that has a
clock of its own says so, which compares two of its own times. No time of one machine is compared with that of another.
None of this makes a run safe: the generation of the record does; it saves the work of two attempts that would train the
same run at once.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from job.errors import Superseded
from job.run.holder import can_be_taken_over_by, is_there
from job.run.record import RECORD_NAME, RunRecord
from job.schema import Attempt, Holder, Record
from job.storage import ObjectStore

MIN_POLL_SECONDS, MAX_POLL_SECONDS = 0.2, 5.0
POLLS_IN_A_LEASE = 20
RENEWALS_IN_A_LEASE = 3
REQUESTS_IN_A_LEASE = 4
MIN_REQUEST_SECONDS, MAX_REQUEST_SECONDS = 2.0, 60.0
TAKE_TRIES = 10
JOIN_SECONDS = 5.0


class Hold(NamedTuple):
    """For how many seconds at most a run is still held, if its holder is gone; 0 when it may be taken now.

    `is_known` tells whether that is so: where it is not, only watching the record shows whether its holder is alive.
    """

    seconds: float
    is_known: bool


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

    Waits while another attempt holds it; `on_waiting` is called once with that attempt, and the seconds that this takes
    at most. Raises RunMismatch when the run id belongs to other settings, RecordDamaged when there is no record to go
    by, Superseded when the run is still held after `lease_seconds`, or after the holder's lease if that is longer.
    """
    began = time.monotonic()
    tries, is_reported, is_alive = 0, False, False
    seen, seen_at = None, began
    while True:
        record = RunRecord.open(
            store, run_id=run_id, fingerprint=fingerprint, settings=settings, clock=clock, account=account
        )
        if record.is_done:
            return record
        if record.version != seen:
            is_alive = seen is not None
            seen, seen_at = record.version, time.monotonic()
        lease = record.content.lease
        unchanged_seconds = time.monotonic() - seen_at
        hold = look(record.content, store, holder)
        if lease is None or hold.seconds <= 0 or unchanged_seconds >= lease.seconds:
            try:
                record.take(holder, lease_seconds=lease_seconds)
            except Superseded:
                tries += 1
                if tries == TAKE_TRIES:
                    raise
                continue
            return record
        # A holder of which nothing is known is watched for the whole of its lease, however short the own one is: else
        # every attempt would give up before it knows.
        patience_seconds = lease_seconds if hold.is_known or is_alive else max(lease_seconds, lease.seconds)
        if time.monotonic() - began >= patience_seconds:
            raise _still_held(record, lease_seconds)
        if not is_reported:
            on_waiting(record.attempt, patience_seconds)
            is_reported = True
        _pause(min(hold.seconds, lease.seconds - unchanged_seconds, lease_seconds / POLLS_IN_A_LEASE), check_stop)


def look(record: Record, store: ObjectStore, holder: Holder, *, name: str = RECORD_NAME) -> Hold:
    """How the run is held by another than `holder`, as far as one look tells. Raises StorageError.

    The record was read from `name` in the store.
    """
    lease = record.lease
    if lease is None or can_be_taken_over_by(lease.holder, holder):
        return Hold(0.0, is_known=True)
    age = store.age_seconds(name)
    if age is None:
        return Hold(lease.seconds, is_known=bool(is_there(lease.holder, observer=holder)))
    return Hold(max(0.0, lease.seconds - age), is_known=True)


def estimated_seconds(record: Record, hold: Hold, now: datetime) -> float:
    """For how long the run seems to be held, to be shown: where nothing is known, by the clock of the holder's host."""
    if hold.is_known or record.lease is None:
        return hold.seconds
    renewed = record.lease.renewed or record.attempts[-1].start
    return min(hold.seconds, max(0.0, hold.seconds - (now - renewed).total_seconds()))


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
