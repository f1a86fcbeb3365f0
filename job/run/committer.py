"""Commits in the background: training goes on while a state is on its way to the store.

One thread commits one snapshot at a time. At most one more waits, and a newer one takes its place: what counts is the
newest state, and its history contains that of the older one. The training thread blocks only while it reads the state,
and learns the results when it asks. A commit that fails because the store or the disk does is reported, and training
goes on: the next commit has a newer state anyway. Only the end of a phase needs the newest state committed. The same
thread draws the curves of the epochs so far.
"""

import contextlib
import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

from job.errors import StorageError, StorageRefused
from job.observe import events
from job.observe.progress import Context
from job.run.checkpoint import Arrays, Checkpoints, Snapshot
from job.run.curves import Curves
from job.schema import CheckpointEntry, EpochResult

NICENESS = 10


@dataclass(kw_only=True)
class _Commit:
    """A snapshot on its way; `done` gives its entry in the record and the seconds that it took, or raises the error."""

    snapshot: Snapshot
    reason: str
    blocking_seconds: float
    must_stay: bool
    done: Future[tuple[CheckpointEntry, float]] = field(init=False)

    def forget_state(self) -> None:
        """A commit may be kept for a while; the copy of the state is not."""
        self.snapshot = replace(self.snapshot, arrays={})


class Committer:
    """The thread that commits, for as long as the context lasts; its methods are for the training thread.

    Leaving the context waits for the commit under way, and drops the one that waits.
    """

    def __init__(self, checkpoints: Checkpoints, context: Context, curves: Curves) -> None:
        self._checkpoints = checkpoints
        self._curves = curves
        self._context = context
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="commits", initializer=lower_priority)
        self._commits: list[_Commit] = []
        self._drawings: list[Future[None]] = []
        self._failed: StorageError | None = None

    def __enter__(self) -> "Committer":
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def submit(
        self,
        arrays: Callable[[], Arrays],
        *,
        phase: str,
        step: int,
        reason: str,
        history: Sequence[EpochResult] = (),
        must_stay: bool = False,
    ) -> None:
        """Read the state, which `arrays` does, and have it committed with the history, in place of one that waits.

        One that `must_stay` no newer one can stand for: it is waited for, and when it fails the run ends.
        """
        if self._commits and self._commits[-1].must_stay:
            wait([self._commits[-1].done])
            self.report()
        began = time.monotonic()
        snapshot = Snapshot(arrays=arrays(), phase=phase, step=step, history=tuple(history))
        commit = _Commit(
            snapshot=snapshot, reason=reason, blocking_seconds=time.monotonic() - began, must_stay=must_stay
        )
        if self._commits and self._commits[-1].done.cancel():
            # The executor keeps what is cancelled until the commit under way ends.
            self._commits.pop().forget_state()
        commit.done = self._executor.submit(self._carry_out, commit)
        self._commits.append(commit)
        if reason == "epoch":
            if self._drawings and self._drawings[-1].cancel():
                self._drawings.pop()
            self._drawings.append(self._executor.submit(self._curves.write, snapshot.history))

    def report(self) -> None:
        """Report the results so far. Raises the errors that end the run.

        Those are all but a StorageError, and of these StorageRefused and that of a commit that must stay.
        """
        while self._drawings and self._drawings[0].done():
            self._drawings.pop(0).result()
        while self._commits and self._commits[0].done.done():
            commit = self._commits.pop(0)
            phase, step, error = commit.snapshot.phase, commit.snapshot.step, commit.done.exception()
            if error is None:
                entry, seconds = commit.done.result()
                self._failed = None
                self._context.progress.committed(entry.name, phase, step)
                self._context.observer.event(events.Committed(
                    commit.reason, phase, step, bytes=entry.size, seconds=seconds,
                    blocking_seconds=commit.blocking_seconds, checkpoint=entry.name,
                ))  # fmt: skip
                continue
            if not isinstance(error, StorageError):
                raise error
            self._failed = error
            self._context.observer.event(
                events.CommitFailed(phase, step, reason=error.message, error=type(error).__name__)
            )
            if isinstance(error, StorageRefused) or commit.must_stay:
                raise error

    def flush(self) -> None:
        """Wait until the newest snapshot is committed, and report. Raises StorageError when it is not."""
        wait([commit.done for commit in self._commits])
        self.report()
        if self._failed is not None:
            raise self._failed

    def _carry_out(self, commit: _Commit) -> tuple[CheckpointEntry, float]:
        began = time.monotonic()
        try:
            return self._checkpoints.commit(commit.snapshot), time.monotonic() - began
        except BaseException as error:
            _forget_locals(error)
            raise
        finally:
            commit.forget_state()


def _forget_locals(error: BaseException | None) -> None:
    """Empty the frames of a traceback, and of its causes, which keep the state as long as the error is kept."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__


def lower_priority() -> None:
    """Have this thread take what training leaves of the processors. Only on Linux is a priority a thread's own."""
    thread = threading.get_native_id()
    with contextlib.suppress(OSError):
        # Above 19, the least priority, the system takes that.
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS)
