"""The part of a worker that follows worker 0: it reads what that one commits, and writes nothing.

Worker 0 alone holds the run, so a sibling that runs beside it never counts as its successor.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from job.errors import RESUME, InputError, PeerLost, StorageError
from job.run import checkpoint
from job.run.checkpoint import Arrays, Checkpoints, OnDamaged, Restored
from job.run.record import Identity, RunRecord
from job.schema import Arithmetic, CheckpointEntry, Outcome, Record, problem_of
from job.storage import MISSING, ObjectStore
from job.workers.messages import one_line
from job.workers.team import Team

Model = TypeVar("Model", bound=BaseModel)
COMPARED = ("data", "backbone_sha256", "arithmetic")


class FollowedRecord(RunRecord):
    """The record as it was when worker 0 had claimed the run, and what that one sends later; never written."""

    def __init__(self, store: ObjectStore, content: Record, team: Team) -> None:
        super().__init__(store, content, MISSING, dict)
        self._team = team

    @classmethod
    def read(cls, store: ObjectStore, identity: Identity, team: Team, *, attempt: object) -> "FollowedRecord":
        """Raises as `open` does, and PeerLost when the record has a later attempt than that of worker 0.

        That one is gone, or learns it itself: whoever followed it begins again.
        """
        if type(attempt) is not int:
            raise _nonsense("attempt", attempt)
        content = RunRecord.open(store, identity).content
        if len(content.attempts) < attempt:
            raise StorageError(
                f"at {store.uri} this worker finds {len(content.attempts)} attempts, and worker 0 is attempt {attempt} "
                "there: it does not see what that one writes",
                hint="give all workers the same storage: a bucket, or a folder on a volume that they share",
            )
        if len(content.attempts) > attempt:
            raise PeerLost(
                f"worker 0 is attempt {attempt} at run {content.run_id!r}, and the newest is {len(content.attempts)}",
                hint=RESUME,
            )
        return cls(store, content, team)

    def update(self, **changes: Any) -> None:
        """Worker 0 does this."""

    def arithmetic(self) -> dict[str, Any]:
        """That of the run, which worker 0 decides."""
        found = self._hear("arithmetic", Arithmetic)
        return {"precision": found.precision, "xla": found.xla}

    def pin_inputs(self, inputs: dict[str, Any]) -> None:
        """Raise InputError when worker 0 has other data or weights."""
        received = self._team.hear("inputs")
        if not isinstance(received, dict):
            raise _nonsense("inputs", received)
        differing = ", ".join(name for name in COMPARED if received.get(name) != inputs[name])
        if differing:
            raise InputError(
                f"worker {self._team.share.worker} has other inputs than worker 0: {differing} differ",
                hint="give every worker the same data and weights",
            )

    def wait_for_outcome(self) -> None:
        """Return when worker 0 has committed the result; `content` then has it."""
        self.content = self.content.model_copy(update={"outcome": self._hear("outcome", Outcome)})

    def _hear(self, subject: str, kind: type[Model]) -> Model:
        try:
            return kind.model_validate(self._team.hear(subject))
        except ValidationError as error:
            raise _nonsense(subject, problem_of(error)) from error


class FollowedCheckpoints(Checkpoints):
    """Has the one checkpoint with which worker 0 begins."""

    def __init__(self, store: ObjectStore, record: RunRecord, team: Team, *, folder: Path) -> None:
        super().__init__(store, record, keep=1, folder=folder)
        self._team = team

    def restore(self, on_damaged: OnDamaged) -> Restored | None:
        """The checkpoint that worker 0 names. Raises CheckpointDamaged unless every byte is as it says."""
        received = self._team.hear("checkpoint")
        if received is None:
            return None
        entry = _entry("checkpoint", received)
        return entry, checkpoint.load(self._store, entry, folder=self._folder)

    def best_entry(self, phase: str, step: int) -> CheckpointEntry:
        """The one that worker 0 names."""
        return _entry("best checkpoint", self._team.hear("best checkpoint"))


class NoCommits:
    """In place of a `Committer`."""

    def __enter__(self) -> "NoCommits":
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, arrays: Callable[[], Arrays], **_: object) -> None: ...
    def report(self) -> None: ...
    def flush(self) -> None: ...


def _entry(subject: str, received: Any) -> CheckpointEntry:
    try:
        return CheckpointEntry.model_validate_json(received, strict=True)
    except ValidationError as error:
        raise _nonsense(subject, problem_of(error)) from error


def _nonsense(subject: str, received: object) -> PeerLost:
    return PeerLost(
        f"worker 0 sent for the {subject} what no worker sends: {one_line(str(received))[:200]}",
        hint="give all workers the same version of the program, and let no other process reach their ports",
    )
