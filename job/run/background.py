"""Commits in the background: training goes on while a snapshot is on its way to the store.

One thread commits one snapshot at a time. At most one more waits, and a newer one takes its place: what counts is the
newest state, and the history in it is that of the older one too. The training thread blocks only while it reads the
state, and hears of what became of its snapshots when it asks. This room does not know what a commit does.
"""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from job.phases import PhaseName, State
from job.schema import CheckpointEntry, EpochResult


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state after `step` steps of a phase, as it was then, with the history so far and why it was taken."""

    arrays: Mapping[str, np.ndarray] = field(repr=False)
    state: State
    phase: PhaseName
    step: int
    history: tuple[EpochResult, ...]
    reason: str
    blocking_seconds: float


@dataclass(frozen=True)
class Committed:
    """What became of a snapshot: its entry in the record, after `seconds`."""

    snapshot: Snapshot
    entry: CheckpointEntry
    seconds: float


@dataclass(frozen=True)
class NotCommitted:
    """What became of a snapshot: an error."""

    snapshot: Snapshot
    error: BaseException


Result = Committed | NotCommitted

NICENESS = 10
LEAST_PRIORITY = 19


class Background:
    """The thread, as long as the context lasts. Leaving waits for the commit under way, and drops the next one."""

    def __init__(self, commit: Callable[[Snapshot], CheckpointEntry]) -> None:
        self._commit = commit
        self._results: deque[Result] = deque()
        self._changed = threading.Condition()
        self._waiting: Snapshot | None = None
        self._is_busy = False
        self._is_over = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="commits")

    def __enter__(self) -> "Background":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_over = True
            self._waiting = None
            self._changed.notify_all()
        self._thread.join()

    def submit(self, snapshot: Snapshot) -> None:
        """Have a snapshot committed, in place of one that still waits."""
        with self._changed:
            self._waiting = snapshot
            self._changed.notify_all()

    def results(self) -> list[Result]:
        """What has become of snapshots since the last call, in order."""
        with self._changed:
            results = list(self._results)
            self._results.clear()
        return results

    def wait(self) -> None:
        """Return when nothing waits and nothing is under way."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is None and not self._is_busy)

    def _work(self) -> None:
        _step_back()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._is_over)
                if self._waiting is None:
                    return
                snapshot, self._waiting = self._waiting, None
                self._is_busy = True
            result = self._result(snapshot)
            del snapshot
            with self._changed:
                self._results.append(result)
                self._is_busy = False
                self._changed.notify_all()
            del result

    def _result(self, snapshot: Snapshot) -> Result:
        began = time.monotonic()
        try:
            entry = self._commit(snapshot)
        except BaseException as error:
            return NotCommitted(_without_arrays(snapshot), error)
        return Committed(_without_arrays(snapshot), entry, time.monotonic() - began)


def _step_back() -> None:
    """Have this thread take what training leaves of the processors. Only on Linux is a priority a thread's own."""
    thread = threading.get_native_id()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, thread) + NICENESS, LEAST_PRIORITY))


def _without_arrays(snapshot: Snapshot) -> Snapshot:
    """Results are kept until somebody asks; the copy of the state is not."""
    values: dict[str, Any] = {**vars(snapshot), "arrays": {}}
    return Snapshot(**values)
