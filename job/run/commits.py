"""The commits of an attempt: what is handed to the background, what became of it, and the history that goes with it.

A commit that fails because the store or the disk does is reported, and training goes on: the next one has a newer state
anyway. Only at the end of a phase must the newest state be committed before the run goes on.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from job.errors import StorageError, StorageRefused
from job.observe import events
from job.observe.progress import Progress
from job.phases import PhaseName
from job.run.background import Background, Committed, Snapshot
from job.run.checkpoint import Arrays, Checkpoints
from job.schema import CheckpointEntry, EpochResult


class Commits:
    """The way of a training state into the store; used by the training thread alone."""

    def __init__(self, checkpoints: Checkpoints, *, observer: events.Observer, progress: Progress) -> None:
        self._checkpoints = checkpoints
        self._observer = observer
        self._progress = progress
        self._background = Background(self._commit)
        self._failed: StorageError | None = None
        self.history: list[EpochResult] = []

    @contextlib.contextmanager
    def running(self, history: Sequence[EpochResult]) -> Iterator[None]:
        """Commit in the background inside, on top of the history that was restored."""
        self.history = list(history)
        with self._background:
            yield

    def submit(self, arrays: Callable[[], Arrays], *, state: PhaseName, step: int, reason: str) -> None:
        """Read the state, which `arrays` does, and have it committed while training goes on."""
        began = time.monotonic()
        read = arrays()
        self._background.submit(
            Snapshot(
                arrays=read,
                state=state,
                phase=state,
                step=step,
                history=tuple(self.history),
                reason=reason,
                blocking_seconds=time.monotonic() - began,
            )
        )

    def report(self) -> None:
        """Tell what became of snapshots. Raises what must end the run: Superseded, TrainingDiverged, StorageRefused."""
        for result in self._background.results():
            snapshot = result.snapshot
            if isinstance(result, Committed):
                self._failed = None
                entry = result.entry
                self._progress.last_commit = {"checkpoint": entry.name, "phase": entry.phase, "step": entry.step}
                self._observer.event(events.Committed(
                    reason=snapshot.reason, phase=snapshot.phase, step=snapshot.step,
                    bytes=entry.size, seconds=result.seconds, blocking_seconds=snapshot.blocking_seconds,
                    checkpoint=entry.name,
                ))  # fmt: skip
                continue
            if isinstance(result.error, StorageError):
                self._failed = result.error
                self._observer.event(events.CommitFailed(
                    phase=snapshot.phase, step=snapshot.step, reason=result.error.message,
                    error=type(result.error).__name__,
                ))  # fmt: skip
            if not isinstance(result.error, StorageError) or isinstance(result.error, StorageRefused):
                raise result.error

    def flush(self) -> None:
        """Wait until the newest snapshot is committed. Raises StorageError when it is not."""
        self._background.wait()
        self.report()
        if self._failed is not None:
            raise self._failed

    def _commit(self, snapshot: Snapshot) -> CheckpointEntry:
        return self._checkpoints.commit(
            snapshot.arrays,
            state=snapshot.state,
            phase=snapshot.phase,
            step=snapshot.step,
            history=snapshot.history,
        )
