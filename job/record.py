"""The run record: one object, run.json, that says all that is known of a run.

It is the only mutable object of a run and changes only by compare-and-swap on its generation. Claiming a run,
committing a checkpoint and finishing are that one mechanism: whoever holds the newest generation holds the run,
and an attempt whose write is refused has been superseded and writes nothing more.

This room decides who may write; it does not know what a checkpoint contains, and imports no TensorFlow.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from job.errors import ObjectMissing, PreconditionFailed, RunMismatch, StorageError, Superseded
from job.storage import MISSING, ObjectStore

RECORD_NAME = "run.json"
CLAIM_TRIES = 10

State = Literal["prepare", "head", "fine_tune", "evaluate", "export", "done"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Attempt(_Part):
    """One start of the program on this run; `end` and `exit_code` stay empty when it was killed."""

    number: int
    holder: str
    start: datetime
    end: datetime | None = None
    exit_code: int | None = None


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


class EpochResult(_Part):
    """One finished epoch: mean loss in nats and accuracy in 0..1 over both splits, and its speed."""

    phase: str
    epoch: int
    train_loss: FiniteFloat
    train_accuracy: FiniteFloat
    validation_loss: FiniteFloat
    validation_accuracy: FiniteFloat
    train_seconds: FiniteFloat
    validation_seconds: FiniteFloat
    images_per_second: FiniteFloat


class Record(_Part):
    """The content of run.json."""

    run_id: str
    fingerprint: str
    settings: dict[str, Any]
    state: State = "prepare"
    revision: int = 0
    attempts: tuple[Attempt, ...] = ()
    inputs: dict[str, Any] = {}
    checkpoints: tuple[CheckpointEntry, ...] = ()
    history: tuple[EpochResult, ...] = ()
    durations: dict[str, float] = {}
    outcome: dict[str, Any] | None = None


class RunRecord:
    """The record as this attempt last wrote it, and the right to write it again."""

    def __init__(self, store: ObjectStore, content: Record, generation: int, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._generation = generation
        self._clock = clock
        self.content = content

    @classmethod
    def claim(
        cls,
        store: ObjectStore,
        *,
        run_id: str,
        fingerprint: str,
        settings: dict[str, Any],
        holder: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> "RunRecord":
        """Open the run, creating it if need be, and register a new attempt unless the run is done.

        A finished run is returned as it is, and nothing is written. Raises RunMismatch when the run id belongs
        to other settings, Superseded when other attempts keep winning the race for the record.
        """
        for _ in range(CLAIM_TRIES):
            found = _read(store)
            content = found[0] if found else Record(run_id=run_id, fingerprint=fingerprint, settings=settings)
            record = cls(store, content, found[1] if found else MISSING, clock)
            if content.fingerprint != fingerprint:
                if not record.is_untouched:
                    raise _mismatch(content, settings, run_id)
                # Every attempt ended before it had data and weights: a mistake in the settings, now mended.
                content = content.model_copy(update={"fingerprint": fingerprint, "settings": settings})
                record.content = content
            if record.is_done:
                return record
            attempt = Attempt(number=len(content.attempts) + 1, holder=holder, start=clock())
            try:
                record.update(attempts=(*content.attempts, attempt))
            except Superseded:
                continue
            return record
        raise Superseded(
            f"{store.uri}/{RECORD_NAME}: {CLAIM_TRIES} claims in a row lost to other attempts",
            hint="stop the other attempts at this run, or give this one a THAW_RUN_ID of its own",
        )

    @property
    def is_done(self) -> bool:
        return self.content.state == "done"

    @property
    def is_untouched(self) -> bool:
        """Whether no attempt has begun to train, and none is under way."""
        return not self.content.inputs and all(attempt.end is not None for attempt in self.content.attempts)

    @property
    def attempt(self) -> Attempt:
        """The newest attempt; this one, between claim and finish."""
        return self.content.attempts[-1]

    def update(self, **changes: Any) -> None:
        """Replace fields of the record by compare-and-swap. Raises Superseded when another attempt wrote it."""
        content = self.content.model_copy(update={**changes, "revision": self.content.revision + 1})
        data = (content.model_dump_json(indent=1) + "\n").encode()
        try:
            self._generation = self._store.write(RECORD_NAME, data, if_generation=self._generation)
        except PreconditionFailed as error:
            self._generation = self._accept_own_write(data, error)
        self.content = content

    def finish(self, outcome: dict[str, Any], *, exit_code: int, **changes: Any) -> None:
        """The run is done: from here on every start is answered with this outcome."""
        self.update(state="done", outcome=outcome, attempts=self._closed(exit_code), **changes)

    def close_attempt(self, exit_code: int) -> None:
        """Note how this attempt ended, unless `finish` has done so."""
        if self.attempt.end is None:
            self.update(attempts=self._closed(exit_code))

    def _closed(self, exit_code: int) -> tuple[Attempt, ...]:
        closed = self.attempt.model_copy(update={"end": self._clock(), "exit_code": exit_code})
        return (*self.content.attempts[:-1], closed)

    def _accept_own_write(self, data: bytes, error: PreconditionFailed) -> int:
        """A refused write may be our own, answered with an error and sent again: read back and compare."""
        stored = self._store.read(RECORD_NAME)
        if stored.data == data:
            return stored.generation
        winner = _parse(stored.data, self._store).attempts[-1]
        raise Superseded(
            f"this attempt was superseded by attempt {winner.number} of {winner.holder}, started {winner.start:%FT%TZ}",
            hint="nothing is lost: the other attempt carries the run on",
        ) from error


def _read(store: ObjectStore) -> tuple[Record, int] | None:
    try:
        stored = store.read(RECORD_NAME)
    except ObjectMissing:
        return None
    return _parse(stored.data, store), stored.generation


def _parse(data: bytes, store: ObjectStore) -> Record:
    try:
        return Record.model_validate_json(data)
    except ValidationError as error:
        raise StorageError(
            f"{store.uri}/{RECORD_NAME} is not a run record: {error.errors()[0]['msg']}",
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
