"""The run record: one object, run.json, with all that is known of a run.

It is the only mutable object of a run and changes only by compare-and-swap on its version. Claiming a run,
committing a checkpoint and finishing are that one mechanism: the attempt with the newest version holds the run, and
an attempt whose write is refused has been superseded and writes nothing more. The lease in the record saves work: it
keeps a second attempt from taking a run that is held (see `lease`). The version makes it safe.

This module decides who may write; it does not know what a checkpoint contains, and imports no TensorFlow.
"""

import contextlib
import math
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from job.errors import (
    InputError,
    ObjectDamaged,
    ObjectMissing,
    PreconditionFailed,
    RecordDamaged,
    RunMismatch,
    RunUnavailable,
    StorageError,
    Superseded,
    ThawError,
)
from job.run.description import CheckpointName
from job.run.standing import differing_settings
from job.schema import CHECKPOINTS, Attempt, Holder, Lease, Outcome, Record, problem_of
from job.settings.settings import Settings
from job.storage import MISSING, ObjectStore, StoredObject

RECORD_NAME = "run.json"
MAX_BYTES = 64 << 20
"""Of a record. Ten thousand epochs and as many attempts are a fifth of it."""
CLOSING_SECONDS = 2.0
OTHER_CARRIES_ON = "nothing is lost: the other attempt carries the run on"
"""The hint of a write that another attempt has prevented."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Which run a start means: its id, the fingerprint of its settings, and those that change the result."""

    run_id: str
    fingerprint: str
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, settings: Settings) -> "Identity":
        run_id, fingerprint = settings.resolved_run_id(), settings.fingerprint()
        return cls(run_id=run_id, fingerprint=fingerprint, settings=settings.result_settings())


class RunRecord:
    """The record as this attempt last wrote it, and the right to write it again. Threads may share it."""

    def __init__(
        self, store: ObjectStore, content: Record, version: str, account: Callable[[], dict[str, Any]]
    ) -> None:
        self._store = store
        self._account = account
        self._version = version
        self._lock = threading.RLock()
        self._unanswered: list[tuple[bytes, Record]] = []
        self._written_at = -math.inf
        self.content = content

    @classmethod
    def open(
        cls, store: ObjectStore, identity: Identity, *, account: Callable[[], dict[str, Any]] = dict
    ) -> "RunRecord":
        """Read the record, or begin a new one; nothing is written.

        `account` returns the fields of `Attempt` that change while it lasts; each write of the record includes them.
        Raises RunMismatch when the run id belongs to other settings, RecordDamaged when there are checkpoints and no
        record, and when the record is damaged or of another run.
        """
        content, version = _read(store, run_id=identity.run_id) or (new_record(identity), MISSING)
        if content.fingerprint != identity.fingerprint:
            is_untouched = not (content.inputs or content.checkpoints) and all(one.end for one in content.attempts)
            if not is_untouched:
                raise _mismatch(content, identity)
            # Every attempt ended before it had data and weights: the settings were wrong, and are corrected now.
            content = content.model_copy(
                update={"fingerprint": identity.fingerprint, "settings": dict(identity.settings)}
            )
        return cls(store, content, version, account)

    def take(self, holder: Holder, *, lease_seconds: float, num_workers: int = 1) -> None:
        """Register a new attempt, which holds the run. Raises Superseded when another attempt was quicker."""
        attempt = Attempt(
            number=len(self.content.attempts) + 1,
            holder=str(holder),
            start=datetime.now(UTC),
            num_workers=num_workers,
        )
        lease = Lease(attempt=attempt.number, holder=holder, seconds=lease_seconds, renewed=attempt.start)
        self.update(attempts=(*self.content.attempts, attempt), lease=lease)

    @property
    def is_done(self) -> bool:
        return self.content.state == "done"

    @property
    def version(self) -> tuple[int, str]:
        """What changes with every write of the record, by any process."""
        return self.content.revision, self._version

    @property
    def attempt(self) -> Attempt:
        """The newest attempt; this one, between `take` and `finish`."""
        return self.content.attempts[-1]

    @property
    def seconds_since_written(self) -> float:
        """Seconds since this process last wrote the record, by its own clock."""
        return time.monotonic() - self._written_at

    def update(self, **changes: Any) -> None:
        """Replace fields of the record by compare-and-swap; without any, only show that this attempt is alive.

        Raises Superseded when another attempt wrote the record.
        """
        with self._lock:
            if self._unanswered:
                self._settle()
            content = self.content.model_copy(update={**changes, "revision": self.content.revision + 1})
            *before, attempt = content.attempts
            attempts = (*before, attempt.model_copy(update=self._account()))
            lease = content.lease and content.lease.model_copy(update={"renewed": datetime.now(UTC)})
            content = content.model_copy(update={"attempts": attempts, "lease": lease})
            data = encoded(content)
            self._unanswered.append((data, content))
            try:
                self._adopt(content, self._store.write(RECORD_NAME, data, if_version=self._version))
            except PreconditionFailed:
                # It may be our own write that is in the way, this one or an earlier one.
                if not self._settle():
                    raise
                if self.content is not content:
                    self.update(**changes)

    def _settle(self) -> bool:
        """Find out whether the store has done a write that got no answer, and adopt that one.

        Returns whether there was one. Raises Superseded when another attempt wrote the record.
        """
        try:
            stored = self._store.read(RECORD_NAME)
        except ObjectMissing:
            return False
        if stored.version == self._version:
            return False
        for data, content in self._unanswered:
            if data == stored.data:
                self._adopt(content, stored.version)
                return True
        raise _superseded(stored.data, self._store)

    def _adopt(self, content: Record, version: str) -> None:
        self.content, self._version = content, version
        self._unanswered.clear()
        self._written_at = time.monotonic()

    def pin_inputs(self, inputs: dict[str, Any]) -> None:
        """Record what the run is made from. Raises InputError when that of its checkpoints differs."""
        recorded = self.content.inputs
        if recorded == inputs:
            return
        if self.content.checkpoints:
            differing = ", ".join(name for name in inputs if recorded.get(name) != inputs[name])
            raise InputError(
                f"the run began with other inputs than this attempt finds: {differing} differ",
                hint="give back the data and weights that the run began with, or start a run of another THAW_RUN_ID",
            )
        # Nothing was learned yet: images that were repaired or removed need no other run.
        self.update(inputs=inputs)

    def quiet(self) -> contextlib.AbstractContextManager[bool]:
        """Let no other thread write the record inside."""
        return self._lock

    def finish(self, outcome: dict[str, Any], *, exit_code: int, **changes: Any) -> None:
        """The run is done: from now on every start is answered with this outcome."""
        self.update(
            state="done",
            outcome=Outcome.model_validate(outcome),
            attempts=self._closed(exit_code),
            lease=None,
            **changes,
        )

    def close_attempt(self, exit_code: int) -> None:
        """Record how this attempt ended, unless `finish` has done so, and release the run.

        Raises StorageError when another thread's write gets no answer: a process that ends cannot wait for that.
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
        closed = self.attempt.model_copy(update={"end": datetime.now(UTC), "exit_code": exit_code})
        return (*self.content.attempts[:-1], closed)


def new_record(identity: Identity, *, earlier_lineages: tuple[str, ...] = (), **fields: Any) -> Record:
    """A record with a lineage of its own, the last one."""
    return Record(**vars(identity), lineages=(*earlier_lineages, secrets.token_hex(4)), **fields)


def encoded(content: Record) -> bytes:
    """The record as it is stored. Raises ValueError when it could not be read back: that is a bug, and not written."""
    data = (content.model_dump_json(indent=1) + "\n").encode()
    Record.model_validate_json(data, strict=True)
    return data


def read(store: ObjectStore, name: str = RECORD_NAME) -> Record | None:
    """The record of a run; None when there is no run. Raises RecordDamaged, StorageError.

    `store` is the run's own place, or a folder above it from which `name` leads there.
    """
    found = _read(store, name, has_version=False)
    return found and found[0]


def existing_record(store: ObjectStore) -> Record:
    """The record of the run whose own place `store` is. Raises RunUnavailable, else as `read` does."""
    found = read(store)
    if found is None:
        raise RunUnavailable(
            f"there is no run at {store.uri}: it has no run.json",
            hint="give --run the storage URI and the run id, as in ./runs/cats; thaw list shows what there is",
        )
    return found


def _read(
    store: ObjectStore, name: str = RECORD_NAME, *, run_id: str | None = None, has_version: bool = True
) -> tuple[Record, str] | None:
    """The record and its version. Without one, as only a write needs it, the record costs one request of a bucket."""
    place = f"{store.uri}/{name}".removesuffix(f"/{RECORD_NAME}")
    errors: list[ThawError] = []
    # Twice: it may be written between two requests, and a record counts as damaged only if it is so in the store.
    for _ in range(2):
        try:
            stored = store.read(name) if has_version else StoredObject(store.peek(name), MISSING)
            return parsed(stored.data, place, run_id=run_id or run_id_of(place)), stored.version
        except ObjectMissing:
            above = name.removesuffix(RECORD_NAME)
            names = store.list(f"{above}{CHECKPOINTS}")
            if not names:
                return None
            errors.append(_missing(place, [name.removeprefix(above) for name in names]))
        except (RecordDamaged, ObjectDamaged) as error:
            errors.append(error)
    first, second = errors
    if isinstance(second, ObjectDamaged) and first.message == second.message:
        # For example a folder under that name. Bytes damaged on their way differ each time, and may yet arrive whole.
        hint = _rebuilding(place) if second.stored else second.hint
        raise RecordDamaged(f"{second.message}. Nothing was written or deleted", hint=hint) from second
    raise second


def run_id_of(place: str) -> str:
    """The name of the run at a place: its last part, of a folder once links are followed."""
    return place.rpartition("/")[2] if "://" in place else Path(place).resolve().name


def parsed(data: bytes, place: str, *, run_id: str) -> Record:
    """The record of the run of that id. Raises RecordDamaged; an empty `run_id` is not compared."""
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"{len(data)} bytes, expected at most {MAX_BYTES}")
        content = Record.model_validate_json(data, strict=True)
        if not content.attempts:
            raise ValueError("it has no attempt")
        if run_id and content.run_id != run_id:
            raise ValueError(f"it is of run {content.run_id!r}, expected {run_id!r}")
    except ValueError as error:
        has_unknown_field = isinstance(error, ValidationError) and error.errors()[0]["type"] == "extra_forbidden"
        newer = "use the newer program that wrote it, or " if has_unknown_field else ""
        raise RecordDamaged(
            f"{place}/{RECORD_NAME} is not a record of this run: {problem_of(error)}. Nothing was written or deleted",
            hint=f"{newer}{_rebuilding(place)}",
        ) from error
    return content


def _rebuilding(place: str) -> str:
    return f"restore the object, or rebuild it from the checkpoints: thaw repair --run {place}"


def _missing(place: str, names: list[str]) -> RecordDamaged:
    found = [name for name in map(CheckpointName.parse, names) if name]
    newest = f", the newest {max(found, key=lambda name: name.written)}" if found else ""
    return RecordDamaged(
        f"{place} has no {RECORD_NAME} beside {len(names)} objects in {CHECKPOINTS}{newest}. "
        "Nothing was written or deleted",
        hint=f"restore {RECORD_NAME}, or rebuild it: thaw repair --run {place}. To begin anew, give another "
        f"THAW_RUN_ID, or delete {CHECKPOINTS} too",
    )


def _superseded(data: bytes, store: ObjectStore) -> Superseded:
    try:
        winner = parsed(data, store.uri, run_id="").attempts[-1]
    except RecordDamaged:
        return Superseded(
            f"another process has written {store.uri}/{RECORD_NAME}, and this program cannot read it",
            hint="a newer program carries the run on with it; if none does, the next start says what is wrong",
        )
    return Superseded(
        f"this attempt was superseded by attempt {winner.number} of {winner.holder}, started {winner.start:%FT%TZ}",
        hint=OTHER_CARRIES_ON,
    )


def _mismatch(content: Record, start: Identity) -> RunMismatch:
    differing = differing_settings([content.settings, start.settings])
    lines = []
    for name, (recorded, wanted) in sorted(differing.items()):
        found = f"this start {wanted!r}" if name in start.settings else "this version does not know it"
        lines.append(f"  THAW_{name}: the run has {recorded!r}, {found}")
    listed = "\n".join(lines) or "  the same settings, of another version of the program"
    return RunMismatch(
        f"run {start.run_id!r} belongs to other settings (fingerprint {content.fingerprint}).\n{listed}",
        hint="set these back to continue it, or give the new settings another THAW_RUN_ID",
    )
