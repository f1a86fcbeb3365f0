"""The status of a run by its record: its condition, and how far it is. The time left is in test_estimate.py."""

from datetime import timedelta
from typing import Any

import pytest

from job.run import standing
from tests.recorded import NOON, attempt, checkpoint, record


@pytest.mark.parametrize(
    ("state", "exit_code", "held_seconds", "expected"),
    [
        ("done", 0, 0, "done"),
        ("done", 6, 0, "done"),
        ("head", None, 20, "running"),
        ("head", None, 0, "killed"),
        ("head", 42, 0, "stopped"),
        ("head", 44, 0, "stopped"),
        ("head", 45, 0, "stopped"),
        ("head", 5, 0, "failed"),
        ("head", 1, 0, "failed"),
    ],
)
def test_the_condition_is_that_of_the_newest_attempt(
    state: str, exit_code: int | None, held_seconds: float, expected: str
) -> None:
    """One without an end is alive as long as its lease."""
    end = None if exit_code is None else NOON
    found = record(state=state, attempts=(attempt(end=end, exit_code=exit_code),))
    assert standing.condition(found, held_seconds=held_seconds) == expected


@pytest.mark.parametrize(
    ("fields", "head", "fine_tune"),
    [
        ({}, (0, 20), (0, 20)),
        ({"checkpoints": (checkpoint("head", 7),)}, (7, 20), (0, 20)),
        ({"checkpoints": (checkpoint("fine_tune", 5),)}, (20, 20), (5, 20)),
        ({"inputs": {}}, (0, None), (0, None)),
    ],
)
def test_a_phase_is_as_far_as_it_is_committed(fields: Any, head: Any, fine_tune: Any) -> None:
    """Those before the newest checkpoint are complete. Uncommitted steps count while their attempt is running."""
    found = record(**fields, attempts=(attempt(reached={"fine_tune": 9}),))
    assert [(phase.step, phase.num_steps) for phase in standing.phase_progress(found)] == [head, fine_tune]
    assert standing.phase_progress(found, is_running=True)[1].step == 9


@pytest.mark.parametrize(
    ("ends", "commit_of", "is_running", "expected"),
    [
        ((None,), None, True, None),
        ((None,), None, False, (1, 1)),
        ((None, None), None, True, (1, 1)),
        ((None, None, None), None, True, (2, 2)),
        ((None, 42, None, None), None, True, (3, 1)),
        ((None, 42, None), None, True, None),
        ((None, None, None), 1, False, (3, 3)),
        ((None, None, None), 2, False, (3, 2)),
        ((None, None), 2, True, (1, 1)),
    ],
)
def test_attempts_without_an_end_are_counted_from_the_last_commit(
    ends: tuple[int | None, ...], commit_of: int | None, is_running: bool, expected: tuple[int, int] | None
) -> None:
    """One that came to a commit came further; the one that is running may still end well."""
    attempts = tuple(
        attempt(number=number, exit_code=code, end=NOON if code else None, seconds={"head": {}}, reached={"head": 7})
        for number, code in enumerate(ends, 1)
    )
    commits = () if commit_of is None else (checkpoint("head", 5).model_copy(update={"attempt": commit_of}),)
    found = standing.killed(record(attempts=attempts, checkpoints=commits), is_running=is_running)
    assert (found and (found.attempt.number, found.in_a_row)) == expected
    if found:
        assert (found.stage, found.step) == ("head", 7)
        assert ("memory is the likely cause" in str(found)) == (found.in_a_row > 1)


def test_the_last_change_is_the_newest_time_of_the_record() -> None:
    """Of a start, an end, or a commit."""
    assert standing.last_change(record()) == NOON
    assert standing.last_change(record(checkpoints=(checkpoint("head", 1),))) == NOON + timedelta(hours=1)
