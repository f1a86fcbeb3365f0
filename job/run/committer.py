"""Commits in the background: training goes on while a state is on its way to the store.

One thread commits one snapshot at a time. At most one more waits, and a newer one takes its place: what counts is the
newest state, and its history contains that of the older one. The training thread blocks only while it reads the state,
and learns the results when it asks. A commit that fails because the store or the disk does is reported, and training
goes on: the next commit has a newer state anyway. Only the end of a phase needs the newest state committed.
"""

import contextlib
import os
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace

from job.errors import StorageError, StorageRefused
from job.observe import events
from job.observe.context import Context
from job.run.checkpoint import Arrays, Checkpoints, Snapshot
from job.schema import CheckpointEntry, EpochResult

NICENESS = 10
LEAST_PRIORITY = 19


@dataclass(kw_only=True)
class _Commit:
    """A snapshot on its way; then its entry in the record, or the error, after `seconds`."""

    snapshot: Snapshot
    reason: str
    blocking_seconds: float
    outcome: CheckpointEntry | BaseException | None = None
    seconds: float = 0.0


class Committer:
    """The thread that commits, for as long as the context lasts; its methods are for the training thread.

    Leaving the context waits for the commit under way, and drops the one that waits.
    """

    def __init__(self, checkpoints: Checkpoints, context: Context) -> None:
        self._checkpoints = checkpoints
        self._context = context
        self._results: list[_Commit] = []
        self._changed = threading.Condition()
        self._waiting: _Commit | None = None
        self._is_busy = False
        self._is_over = False
        self._failed: StorageError | None = None
        self._thread = threading.Thread(target=self._work, daemon=True, name="commits")
        self.history: list[EpochResult] = []

    def __enter__(self) -> "Committer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_over = True
            self._waiting = None
            self._changed.notify_all()
        self._thread.join()

    def submit(self, arrays: Callable[[], Arrays], *, phase: str, step: int, reason: str) -> None:
        """Read the state, which `arrays` does, and have it committed with the history, in place of one that waits."""
        began = time.monotonic()
        snapshot = Snapshot(arrays=arrays(), phase=phase, step=step, history=tuple(self.history))
        commit = _Commit(snapshot=snapshot, reason=reason, blocking_seconds=time.monotonic() - began)
        with self._changed:
            self._waiting = commit
            self._changed.notify_all()

    def report(self) -> None:
        """Report the results so far. Raises the errors that end the run: all but a StorageError, and StorageRefused."""
        with self._changed:
            results, self._results = self._results, []
        for result in results:
            snapshot, outcome = result.snapshot, result.outcome
            if isinstance(outcome, CheckpointEntry):
                self._failed = None
                self._context.progress.committed(outcome.name, outcome.phase, outcome.step)
                self._context.observer.event(events.Committed(
                    result.reason, snapshot.phase, snapshot.step, bytes=outcome.size, seconds=result.seconds,
                    blocking_seconds=result.blocking_seconds, checkpoint=outcome.name,
                ))  # fmt: skip
                continue
            assert outcome is not None
            if not isinstance(outcome, StorageError):
                raise outcome
            self._failed = outcome
            self._context.observer.event(events.CommitFailed(
                snapshot.phase, snapshot.step, reason=outcome.message, error=type(outcome).__name__
            ))  # fmt: skip
            if isinstance(outcome, StorageRefused):
                raise outcome

    def flush(self) -> None:
        """Wait until the newest snapshot is committed, and report. Raises StorageError when it is not."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is None and not self._is_busy)
        self.report()
        if self._failed is not None:
            raise self._failed

    def _work(self) -> None:
        lower_priority()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._is_over)
                if self._waiting is None:
                    return
                commit, self._waiting = self._waiting, None
                self._is_busy = True
            self._carry_out(commit)
            with self._changed:
                self._results.append(commit)
                self._is_busy = False
                self._changed.notify_all()
            del commit

    def _carry_out(self, commit: _Commit) -> None:
        began = time.monotonic()
        try:
            commit.outcome = self._checkpoints.commit(commit.snapshot)
        except BaseException as error:
            commit.outcome = error
            _forget_locals(error)
        commit.seconds = time.monotonic() - began
        # A result is kept until it is reported; the copy of the state is not.
        commit.snapshot = replace(commit.snapshot, arrays={})


def _forget_locals(error: BaseException | None) -> None:
    """Empty the frames of a traceback, and of its causes, which keep the state as long as the error is kept."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__


def lower_priority() -> None:
    """Have this thread take what training leaves of the processors. Only on Linux is a priority a thread's own."""
    thread = threading.get_native_id()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, thread) + NICENESS, LEAST_PRIORITY))
