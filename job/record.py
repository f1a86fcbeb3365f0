"""The run record: one object, run.json, that says all that is known of a run.

It is the only mutable object of a run and changes only by compare-and-swap on its generation. Claiming a run,
committing a checkpoint and finishing are that one mechanism: whoever holds the newest generation holds the run,
and an attempt whose write is refused has been superseded and writes nothing more. The lease in it is a courtesy, which
keeps a second attempt from taking a run that is held (see `lease`); the generation is what makes it safe.

This room decides who may write; it does not know what a checkpoint contains, and imports no TensorFlow.
"""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from job.errors import InputError, ObjectMissing, PreconditionFailed, RunMismatch, StorageError, Superseded
from job.holder import Holder
from job.storage import MISSING, ObjectStore

RECORD_NAME = "run.json"
CLOSING_SECONDS = 2.0

State = Literal["prepare", "head", "fine_tune", "evaluate", "export", "done"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Attempt(_Part):
    """One start of the program on this run; `end` and `exit_code` stay empty when it was killed.

    `seconds`, by stage and category (see `ledger`), and `reached`, the furthest step of each phase, are as of the last
    write of the record by this attempt.
    """

    number: int
    holder: str
    start: datetime
    end: datetime | None = None
    exit_code: int | None = None
    seconds: dict[str, dict[str, float]] = {}
    reached: dict[str, int] = {}


class Lease(_Part):
    """The run is held: for `seconds` since the record was last written, by the clock of the store."""

    attempt: int
    holder: Holder
    seconds: float


class CheckpointEntry(_Part):
    """A complete checkpoint: its object, its digest, and the position in the training that it holds.

    `step` counts the steps done in the phase. `num_epochs` counts the entries of the record's history that
    belong to it, over all phases: later ones were made after it.
    """

    name: str
    phase: str
    step: int
    num_epochs: int
    size: int
    sha256: str
    attempt: int
    time: datetime


class StoredFile(_Part):
    """Size in bytes and SHA-256 in hexadecimal of an object under `model/`, `report/` or `logs/`."""

    size: int
    sha256: str


class EpochResult(_Part):
    """One finished epoch: mean loss in nats and accuracy in 0..1 over both splits, its speed, and when it ended.

    `step` counts the steps of the phase that were done by then.
    """

    phase: str
    epoch: int
    step: int
    ended: datetime
    train_loss: FiniteFloat
    train_accuracy: FiniteFloat
    validation_loss: FiniteFloat
    validation_accuracy: FiniteFloat
    train_seconds: FiniteFloat
    validation_seconds: FiniteFloat
    images_per_second: FiniteFloat


class Record(_Part):
    """The content of run.json. `set_aside` are checkpoints that were found damaged: kept, and never used again.

    `files` are the objects of a finished run by name: what was written last under `model/`, `report/` and `logs/`.
    """

    run_id: str
    fingerprint: str
    settings: dict[str, Any]
    state: State = "prepare"
    revision: int = 0
    attempts: tuple[Attempt, ...] = ()
    inputs: dict[str, Any] = {}
    checkpoints: tuple[CheckpointEntry, ...] = ()
    history: tuple[EpochResult, ...] = ()
    outcome: dict[str, Any] | None = None
    lease: Lease | None = None
    set_aside: tuple[CheckpointEntry, ...] = ()
    files: dict[str, StoredFile] = {}


class RunRecord:
    """The record as this attempt last wrote it, and the right to write it again. Threads may share it."""

    def __init__(
        self,
        store: ObjectStore,
        content: Record,
        generation: int,
        clock: Callable[[], datetime],
        account: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._store = store
        self._account = account
        self._generation = generation
        self._clock = clock
        self._lock = threading.RLock()
        self._unanswered: list[tuple[bytes, Record]] = []
        self._written_at = -math.inf
        self.content = content

    @classmethod
    def open(
        cls,
        store: ObjectStore,
        *,
        run_id: str,
        fingerprint: str,
        settings: dict[str, Any],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        account: Callable[[], dict[str, Any]] = dict,
    ) -> "RunRecord":
        """Read the record, or begin a new one; nothing is written.

        `account` gives fields of `Attempt` that change while it lasts; each write of the record brings them along.
        Raises RunMismatch when the run id belongs to other settings.
        """
        found = _read(store)
        content = found[0] if found else Record(run_id=run_id, fingerprint=fingerprint, settings=settings)
        record = cls(store, content, found[1] if found else MISSING, clock, account)
        if content.fingerprint != fingerprint:
            if not record.is_untouched:
                raise _mismatch(content, settings, run_id)
            # Every attempt ended before it had data and weights: a mistake in the settings, now mended.
            record.content = content.model_copy(update={"fingerprint": fingerprint, "settings": settings})
        return record

    def take(self, holder: Holder, *, lease_seconds: float) -> None:
        """Register a new attempt, which holds the run. Raises Superseded when another attempt was quicker."""
        attempt = Attempt(number=len(self.content.attempts) + 1, holder=str(holder), start=self._clock())
        lease = Lease(attempt=attempt.number, holder=holder, seconds=lease_seconds)
        self.update(attempts=(*self.content.attempts, attempt), lease=lease)

    @property
    def is_done(self) -> bool:
        return self.content.state == "done"

    @property
    def is_untouched(self) -> bool:
        """Whether no attempt has begun to train, and none is under way."""
        return not self.content.inputs and all(attempt.end is not None for attempt in self.content.attempts)

    @property
    def attempt(self) -> Attempt:
        """The newest attempt; this one, between `take` and `finish`."""
        return self.content.attempts[-1]

    @property
    def seconds_since_written(self) -> float:
        """Seconds since this process last wrote the record, by its own clock."""
        return time.monotonic() - self._written_at

    def update(self, **changes: Any) -> None:
        """Replace fields of the record by compare-and-swap. Raises Superseded when another attempt wrote it."""
        with self._lock:
            if self._unanswered:
                self._settle()
            content = self.content.model_copy(update={**changes, "revision": self.content.revision + 1})
            *before, attempt = content.attempts
            attempts = (*before, attempt.model_copy(update=self._account()))
            content = content.model_copy(update={"attempts": attempts})
            data = (content.model_dump_json(indent=1) + "\n").encode()
            try:
                generation = self._store.write(RECORD_NAME, data, if_generation=self._generation)
            except PreconditionFailed:
                # It may be our own write that is in the way, this one or an earlier one.
                self._unanswered.append((data, content))
                if not self._settle():
                    raise
                if self.content is not content:
                    self.update(**changes)
                return
            except BaseException:
                self._unanswered.append((data, content))
                raise
            self._adopt(content, generation)

    def _settle(self) -> bool:
        """Find out what became of writes without an answer, and adopt the one that the store has done.

        Returns whether there was one. Raises Superseded when another attempt wrote the record.
        """
        try:
            stored = self._store.read(RECORD_NAME)
        except ObjectMissing:
            return False
        if stored.generation == self._generation:
            return False
        for data, content in self._unanswered:
            if data == stored.data:
                self._adopt(content, stored.generation)
                return True
        raise _superseded(stored.data, self._store)

    def _adopt(self, content: Record, generation: int) -> None:
        self.content, self._generation = content, generation
        self._unanswered.clear()
        self._written_at = time.monotonic()

    def pin_inputs(self, inputs: dict[str, Any]) -> None:
        """Note what the run is made from, at its first attempt. Raises InputError when a later one differs."""
        recorded = self.content.inputs
        if not recorded:
            self.update(inputs=inputs)
        elif recorded != inputs:
            differing = ", ".join(name for name in inputs if recorded.get(name) != inputs[name])
            raise InputError(
                f"the run began with other inputs than this attempt finds: {differing} differ",
                hint="give back the data and weights that the run began with, or start a run of another THAW_RUN_ID",
            )

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Let no other thread write the record inside."""
        with self._lock:
            yield

    def renew(self) -> None:
        """Write the record as it is, which shows that this attempt is alive."""
        self.update()

    def finish(self, outcome: dict[str, Any], *, exit_code: int, **changes: Any) -> None:
        """The run is done: from here on every start is answered with this outcome."""
        self.update(state="done", outcome=outcome, attempts=self._closed(exit_code), lease=None, **changes)

    def close_attempt(self, exit_code: int) -> None:
        """Note how this attempt ended, unless `finish` has done so, and let go of the run.

        Raises StorageError when another thread's write gets no answer: whoever ends cannot wait for that.
        """
        if not self._lock.acquire(timeout=CLOSING_SECONDS):
            raise StorageError(f"{self._store.uri}/{RECORD_NAME} is still being written; the end is not noted")
        try:
            if self._unanswered:
                self._settle()
            if self.attempt.end is None:
                self.update(attempts=self._closed(exit_code), lease=None)
        finally:
            self._lock.release()

    def _closed(self, exit_code: int) -> tuple[Attempt, ...]:
        closed = self.attempt.model_copy(update={"end": self._clock(), "exit_code": exit_code})
        return (*self.content.attempts[:-1], closed)


def read(store: ObjectStore, name: str = RECORD_NAME) -> Record | None:
    """What is recorded of a run; None when there is no record. Raises StorageError when it cannot be read as one.

    `store` is the run's own place, unless `name` leads there from above.
    """
    found = _read(store, name)
    return found[0] if found else None


def _read(store: ObjectStore, name: str = RECORD_NAME) -> tuple[Record, int] | None:
    try:
        stored = store.read(name)
    except ObjectMissing:
        return None
    return _parse(stored.data, f"{store.uri}/{name}"), stored.generation


def _superseded(data: bytes, store: ObjectStore) -> Superseded:
    winner = _parse(data, f"{store.uri}/{RECORD_NAME}").attempts[-1]
    return Superseded(
        f"this attempt was superseded by attempt {winner.number} of {winner.holder}, started {winner.start:%FT%TZ}",
        hint="nothing is lost: the other attempt carries the run on",
    )


def _parse(data: bytes, uri: str) -> Record:
    try:
        return Record.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StorageError(
            f"{uri} is not a run record: {where + ': ' if where else ''}{first['msg']}",
            hint="if it was edited by hand, restore it; else give the run another THAW_RUN_ID",
        ) from error


def _mismatch(content: Record, settings: dict[str, Any], run_id: str) -> RunMismatch:
    names = sorted(content.settings.keys() | settings.keys())
    differing = [name for name in names if content.settings.get(name) != settings.get(name)]
    lines = [
        f"  THAW_{name}: the run has {content.settings.get(name)!r}, this start {settings.get(name)!r}"
        for name in differing
    ]
    if not lines:
        lines = ["  the same settings, of another version of the program"]
    return RunMismatch(
        f"run {run_id!r} belongs to other settings (fingerprint {content.fingerprint}).\n" + "\n".join(lines),
        hint="set these back to continue it, or give the new settings another THAW_RUN_ID",
    )
