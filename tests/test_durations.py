"""Seconds by stage, over all attempts at a run."""

from itertools import count

import pytest

from job.durations import Durations


def test_seconds_add_up_over_stages_and_attempts() -> None:
    """What earlier attempts recorded is kept; a stage that is entered twice is one stage."""
    ticks = count(0, 2)
    durations = Durations({"head": 10.0}, clock=lambda: float(next(ticks)))
    with durations.stage("data"):
        pass
    for _ in range(2):
        with durations.stage("head"):
            pass
    assert durations.so_far() == {"head": 14.0, "data": 2.0}


def test_an_open_stage_counts_up_to_now() -> None:
    """A commit in the middle of a phase records what it has taken so far."""
    now = 0.0
    durations = Durations({}, clock=lambda: now)
    with durations.stage("head"):
        now = 3.0
        assert durations.so_far() == {"head": 3.0}
        now = 5.0
    assert durations.so_far() == {"head": 5.0}


def test_a_stage_that_fails_is_counted() -> None:
    """Time is spent, however it ends."""
    ticks = iter([0.0, 1.0])
    durations = Durations({}, clock=lambda: next(ticks))
    with pytest.raises(KeyError), durations.stage("data"):
        raise KeyError
    assert durations.so_far() == {"data": 1.0}
