"""Commits in the background: one at a time, the newest next, and nothing lost on the way."""

import os
import threading
import time

import numpy as np
import pytest

from job.errors import StorageError
from job.run.background import Background, Committed, NotCommitted, Snapshot
from job.schema import CheckpointEntry
from tests.recorded import checkpoint


def snapshot(step: int) -> Snapshot:
    return Snapshot(
        arrays={"w": np.array(step)}, state="head", phase="head", step=step, history=(),
        reason="interval", blocking_seconds=0.0,
    )  # fmt: skip


class Committing:
    """Commits when it is let to, and notes what it was given."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.begun = threading.Semaphore(0)
        self.let = threading.Semaphore(0)
        self.error: BaseException | None = None

    def __call__(self, snapshot: Snapshot) -> CheckpointEntry:
        self.steps.append(int(snapshot.arrays["w"]))
        self.begun.release()
        assert self.let.acquire(timeout=10)
        if self.error is not None:
            raise self.error
        return checkpoint("head", snapshot.step)


def test_submitting_does_not_wait_and_the_newest_is_next() -> None:
    """While one is under way, each newer snapshot takes the place of the one that waits."""
    commit = Committing()
    with Background(commit) as background:
        background.submit(snapshot(1))
        commit.begun.acquire(timeout=10)
        for step in (2, 3, 4):
            background.submit(snapshot(step))
        assert background.results() == []
        commit.let.release()
        commit.let.release()
        background.wait()
        results = background.results()
    assert commit.steps == [1, 4]
    assert [result.entry.step for result in results if isinstance(result, Committed)] == [1, 4]
    assert all(len(result.snapshot.arrays) == 0 for result in results)


@pytest.mark.parametrize("error", [StorageError("no"), KeyboardInterrupt(), ValueError("bug")])
def test_a_failure_is_a_result_and_the_next_snapshot_is_tried(error: BaseException) -> None:
    """The thread lives on, whatever was raised."""
    commit = Committing()
    commit.let.release(2)
    with Background(commit) as background:
        commit.error = error
        background.submit(snapshot(1))
        background.wait()
        commit.error = None
        background.submit(snapshot(2))
        background.wait()
        first, second = background.results()
    assert isinstance(first, NotCommitted)
    assert first.error is error
    assert isinstance(second, Committed)


def test_leaving_waits_for_the_commit_under_way_and_drops_the_next() -> None:
    """A commit is never abandoned half-way by the run itself."""
    commit = Committing()
    with Background(commit) as background:
        background.submit(snapshot(1))
        commit.begun.acquire(timeout=10)
        background.submit(snapshot(2))
        threading.Timer(0.2, commit.let.release).start()
        began = time.monotonic()
    assert time.monotonic() - began > 0.1
    assert commit.steps == [1]


def test_it_steps_back_behind_training() -> None:
    """The thread that commits is nicer than the one that trains, as far as there is something nicer."""
    niceness: list[int] = []

    def commit(snapshot: Snapshot) -> CheckpointEntry:
        niceness.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return checkpoint("head", snapshot.step)

    with Background(commit) as background:
        background.submit(snapshot(1))
        background.wait()
    assert niceness == [min(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) + 10, 19)]
