"""Commits in the background: one at a time, the newest next, and no result lost."""

import contextlib
import gc
import os
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from job.errors import StorageError, StorageRefused, Superseded
from job.observe import events
from job.run.checkpoint import Snapshot
from job.run.committer import Committer
from job.schema import CheckpointEntry
from tests.conftest import Recorder
from tests.recorded import checkpoint
from tests.runs import context


class Slow:
    """Stands for the checkpoints of a run: commits when it is allowed to, and notes what it was given."""

    def __init__(self, *, allowed: int = 0) -> None:
        self.steps: list[int] = []
        self.begun, self.allowed = threading.Semaphore(0), threading.Semaphore(allowed)
        self.error: BaseException | None = None
        self.niceness = 0

    def commit(self, snapshot: Snapshot) -> CheckpointEntry:
        self.steps.append(int(snapshot.arrays["w"]))
        self.niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        self.begun.release()
        assert self.allowed.acquire(timeout=60)
        if self.error is not None:
            raise self.error
        return checkpoint("head", snapshot.step)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def committer(checkpoints: Slow, recorder: Recorder) -> Committer:
    curves = SimpleNamespace(write=lambda _: None)
    return Committer(checkpoints, context(recorder), curves)  # type: ignore[arg-type]


def submit(committer: Committer, step: int) -> None:
    committer.submit(lambda: {"w": np.array(step)}, phase="head", step=step, reason="interval")


def test_submitting_does_not_wait_and_the_newest_is_next(recorder: Recorder) -> None:
    """While one is under way, each newer snapshot takes the place of the one that waits."""
    slow = Slow()
    with committer(slow, recorder) as commits:
        submit(commits, 1)
        slow.begun.acquire(timeout=60)
        for step in (2, 3, 4):
            submit(commits, step)
        commits.report()
        assert recorder.events == []
        slow.allowed.release(2)
        commits.flush()
    assert slow.steps == [1, 4]
    assert [event.step for event in recorder.of(events.Committed)] == [1, 4]
    assert slow.niceness == min(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) + 10, 19)


def test_after_a_failure_of_the_store_the_next_snapshot_is_tried(recorder: Recorder) -> None:
    """It is reported; the end of a phase does not accept it."""
    slow = Slow(allowed=2)
    with committer(slow, recorder) as commits:
        slow.error = StorageError("no")
        submit(commits, 1)
        with pytest.raises(StorageError, match="no"):
            commits.flush()
        slow.error = None
        submit(commits, 2)
        commits.flush()
    assert recorder.of(events.CommitFailed) == [events.CommitFailed("head", 1, "no", "StorageError")]
    assert recorder.of(events.Committed)[0].step == 2


@pytest.mark.parametrize("error", [StorageRefused("never"), Superseded("lost"), ValueError("bug"), KeyboardInterrupt()])
def test_what_must_end_the_run_is_raised_at_the_next_report(recorder: Recorder, error: BaseException) -> None:
    """Whatever it is, the thread does not swallow it."""
    slow = Slow(allowed=1)
    slow.error = error
    with committer(slow, recorder) as commits:
        submit(commits, 1)
        with pytest.raises(type(error)):
            commits.flush()


@pytest.mark.parametrize("error", [None, StorageError("no")])
def test_a_result_does_not_keep_the_state(recorder: Recorder, error: StorageError | None) -> None:
    """Nor does an error until the next success: a store that is away must not cost memory."""
    slow, array = Slow(allowed=1), np.array(1)
    slow.error, state = error, weakref.ref(array)
    with committer(slow, recorder) as commits:
        arrays = [{"w": array}]
        del array
        commits.submit(arrays.pop, phase="head", step=1, reason="interval")
        with contextlib.suppress(StorageError):
            commits.flush()
        gc.collect()
        assert state() is None


def test_a_snapshot_that_is_replaced_is_forgotten_at_once(recorder: Recorder) -> None:
    """While a slow commit is under way, memory holds two states and no more."""
    slow, arrays = Slow(), [{"w": np.array(2)}]
    state = weakref.ref(arrays[0]["w"])
    with committer(slow, recorder) as commits:
        submit(commits, 1)
        slow.begun.acquire(timeout=60)
        commits.submit(arrays.pop, phase="head", step=2, reason="interval")
        submit(commits, 3)
        gc.collect()
        assert state() is None
        slow.allowed.release(2)


def test_leaving_waits_for_the_commit_under_way_and_drops_the_next(recorder: Recorder) -> None:
    """The run itself never abandons a commit half-way."""
    slow, is_let_go = Slow(), threading.Event()

    def let_go() -> None:
        is_let_go.set()
        slow.allowed.release()

    with committer(slow, recorder) as commits:
        submit(commits, 1)
        slow.begun.acquire(timeout=60)
        submit(commits, 2)
        threading.Timer(0.2, let_go).start()
    assert is_let_go.is_set()
    assert slow.steps == [1]
