"""Taking a run, and holding it.

An attempt waits for a run that a living attempt holds, for as long as a lease lasts or as THAW_WAIT_SECONDS says; then
it gives up.
Every write of the record renews the lease; when nothing else is written, a thread does it. A lease has run out when the
record was seen unchanged for the whole lease, by the watcher's own monotonic clock; or when a store with a clock of its
own says so, by comparing two of its own times. Times of two machines are never compared. The lease does not make a run
safe, the version of the record does; it only keeps two attempts from training the same run at once.
"""

import threading
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import NamedTuple

from job.errors import Superseded
from job.observe import events
from job.observe.progress import Context
from job.run.holder import can_be_taken_over_by, is_there, this_process
from job.run.record import RECORD_NAME, Identity, RunRecord
from job.schema import Holder, Record
from job.storage import ObjectStore, check_conditional_writes

MIN_POLL_SECONDS, MAX_POLL_SECONDS = 0.2, 5.0
POLLS_IN_A_LEASE = 20
RENEWALS_IN_A_LEASE = 3
REQUESTS_IN_A_LEASE = 4
MIN_REQUEST_SECONDS, MAX_REQUEST_SECONDS = 2.0, 60.0
TAKE_TRIES = 10
REPORT_EVERY_SECONDS = 300.0
JOIN_SECONDS = 5.0


class Hold(NamedTuple):
    """For how many seconds at most a run is still held, if its holder is gone; 0 when it may be taken now.

    Where this is not `is_known`, only watching the record shows whether its holder is alive.
    """

    seconds: float
    is_known: bool


Age = Callable[[], float | None]
"""Asks for the seconds since the record was written, by the clock of its store; None where that has none."""


def request_seconds(lease_seconds: float) -> float:
    """The time limit of a request on the record: one that hangs must not cost the lease."""
    return min(max(lease_seconds / REQUESTS_IN_A_LEASE, MIN_REQUEST_SECONDS), MAX_REQUEST_SECONDS)


def claim(
    store: ObjectStore,
    identity: Identity,
    holder: Holder,
    *,
    lease_seconds: float,
    context: Context,
    num_workers: int = 1,
    wait_seconds: float = 0.0,
) -> RunRecord:
    """Open the run and take it, unless it is done: then nothing is written.

    Waits while another attempt holds it, and reports that now and then. Raises RunMismatch when the run id belongs to
    other settings, RecordDamaged when the record is missing or damaged, InputError when the store has no conditional
    writes, Superseded when the run is still held after `lease_seconds` or `wait_seconds`, whichever is longer, by an
    attempt that is known to be alive.
    """
    began = time.monotonic()
    tries, is_alive, report_at = 0, False, began
    seen, seen_at = None, began
    while True:
        record = RunRecord.open(store, identity, account=context.progress.account)
        if record.is_done:
            return record
        if record.version != seen:
            is_alive = seen is not None
            seen, seen_at = record.version, time.monotonic()
        lease = record.content.lease
        unchanged_seconds = time.monotonic() - seen_at
        hold = look(record.content, partial(store.age_seconds, RECORD_NAME), holder)
        if lease is None or hold.seconds <= 0 or unchanged_seconds >= lease.seconds:
            if tries == 0:
                check_conditional_writes(store)
            try:
                record.take(holder, lease_seconds=lease_seconds, num_workers=num_workers)
            except Superseded:
                tries += 1
                if tries == TAKE_TRIES:
                    raise
                continue
            return record
        # A holder of which nothing is known is watched for its whole lease, which began when the record was first read:
        # it is found dead, or to be alive. To give up before would be to know nothing, again and again.
        is_watched = not (hold.is_known or is_alive)
        patience_seconds = max(lease_seconds, wait_seconds, lease.seconds if is_watched else 0.0)
        now = time.monotonic()
        if now - began >= patience_seconds and not is_watched:
            raise _still_held(record, now - began)
        if now >= report_at:
            context.observer.event(_waiting(record, max(0.0, patience_seconds - (now - began))))
            report_at = now + REPORT_EVERY_SECONDS
        seconds = min(hold.seconds, lease.seconds - unchanged_seconds, lease_seconds / POLLS_IN_A_LEASE)
        _pause(seconds, context.check_stop)


def look(record: Record, age: Age, holder: Holder) -> Hold:
    """How another process than `holder` holds the run, as far as one look shows; raises what `age` does."""
    lease = record.lease
    if lease is None or can_be_taken_over_by(lease.holder, holder):
        return Hold(0.0, is_known=True)
    seconds = age()
    if seconds is None:
        return Hold(lease.seconds, is_known=bool(is_there(lease.holder, seen_from=holder)))
    return Hold(max(0.0, lease.seconds - seconds), is_known=True)


def estimated(record: Record, age: Age, *, now: datetime) -> Hold:
    """As `look` of this process, for people: what is not known is estimated by the clock of the holder's host."""
    if record.lease is None:
        return Hold(0.0, is_known=True)
    hold = look(record, age, this_process(None))
    if hold.is_known:
        return hold
    renewed = record.lease.renewed or record.attempts[-1].start
    return hold._replace(seconds=min(hold.seconds, max(0.0, hold.seconds - (now - renewed).total_seconds())))


def _pause(seconds: float, check_stop: Callable[[], None]) -> None:
    until = time.monotonic() + min(max(seconds, MIN_POLL_SECONDS), MAX_POLL_SECONDS)
    while time.monotonic() < until:
        check_stop()
        time.sleep(min(MIN_POLL_SECONDS, max(0.0, until - time.monotonic())))


def _waiting(record: RunRecord, at_most_seconds: float) -> events.WaitingForRun:
    attempt, state = record.attempt, record.content.state
    return events.WaitingForRun(
        attempt.holder,
        attempt.number,
        since=f"{attempt.start:%FT%TZ}",
        at_most_seconds=round(at_most_seconds),
        state=state,
        steps_done=attempt.reached.get(state),
        num_steps=record.content.num_steps(state),
    )


def _still_held(record: RunRecord, waited_seconds: float) -> Superseded:
    attempt = record.attempt
    return Superseded(
        f"run {record.content.run_id!r} is held by attempt {attempt.number} of {attempt.holder}, started "
        f"{attempt.start:%FT%TZ} and alive; waited {waited_seconds:.0f} s for it",
        hint="let it end, stop it, or wait longer with THAW_WAIT_SECONDS; a run of its own needs another THAW_RUN_ID",
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
        """Raise Superseded when the thread has found that another attempt holds the run."""
        if self._lost is not None:
            raise self._lost

    def _renew(self) -> None:
        while not self._is_over.wait(self._every_seconds):
            if self._record.seconds_since_written < self._every_seconds / 2:
                continue
            try:
                self._record.update()
            except Superseded as error:
                self._lost = error
                return
            except Exception:
                # No failure of a renewal ends a run. The store may be back in time; if it is not, the lease runs out,
                # and the version decides. It need not be the store, either: TFDS 4.9 replaces `__import__` at
                # times, and the client of a bucket imports modules while it works.
                pass
