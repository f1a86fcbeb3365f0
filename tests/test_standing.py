"""What is said of a run: its condition, how far it is, and how long the rest takes."""

from datetime import timedelta
from typing import Any

import pytest

from job.run import standing
from job.schema import Record
from tests.recorded import NOON, attempt, checkpoint, epoch, record


@pytest.mark.parametrize(
    ("fields", "held_seconds", "expected"),
    [
        ({"state": "done", "attempts": (attempt(end=NOON, exit_code=0),)}, 0, "done"),
        ({"state": "done", "attempts": (attempt(end=NOON, exit_code=6),)}, 0, "done"),
        ({"state": "head"}, 20, "running"),
        ({"state": "head"}, 0, "killed"),
        ({"state": "head", "attempts": (attempt(end=NOON, exit_code=42),)}, 0, "stopped"),
        ({"state": "head", "attempts": (attempt(end=NOON, exit_code=44),)}, 0, "stopped"),
        ({"state": "head", "attempts": (attempt(end=NOON, exit_code=5),)}, 0, "failed"),
        ({"state": "head", "attempts": (attempt(end=NOON, exit_code=1),)}, 0, "failed"),
    ],
)
def test_the_condition_is_that_of_the_newest_attempt(fields: Any, held_seconds: float, expected: str) -> None:
    """One without an end is alive as long as its lease."""
    assert standing.condition(record(**fields), held_seconds=held_seconds) == expected


def steps(found: Record, *, is_running: bool = False) -> dict[str, tuple[int, int | None]]:
    return {phase.name: (phase.step, phase.num_steps) for phase in standing.phases(found, is_running=is_running)}


def test_a_phase_is_as_far_as_it_is_committed() -> None:
    """Those before the newest checkpoint are complete."""
    assert steps(record()) == {"head": (0, 20), "fine_tune": (0, 20)}
    assert steps(record(checkpoints=(checkpoint("head", 7),))) == {"head": (7, 20), "fine_tune": (0, 20)}
    assert steps(record(checkpoints=(checkpoint("fine_tune", 5),))) == {"head": (20, 20), "fine_tune": (5, 20)}
    assert steps(record(inputs={})) == {"head": (0, None), "fine_tune": (0, None)}


def test_an_attempt_that_goes_on_is_as_far_as_it_got() -> None:
    """What it has not committed is lost when it ends, so it counts no longer."""
    found = record(checkpoints=(checkpoint("head", 7),), attempts=(attempt(reached={"head": 12}),))
    assert steps(found, is_running=True)["head"] == (12, 20)
    assert steps(found)["head"] == (7, 20)


def test_the_share_that_is_done_weighs_steps_by_their_cost() -> None:
    """A step of fine-tuning costs three of the head: 20 + 3 * 5 of 20 + 3 * 20."""
    found = record(checkpoints=(checkpoint("fine_tune", 5),))
    assert standing.ratio(standing.phases(found)) == pytest.approx(35 / 80)


def left(found: Record) -> float | None:
    return standing.seconds_left(found, standing.phases(found))


def test_the_time_left_comes_from_measured_epochs() -> None:
    """Steps at the speed of their phase, validations still to come, and the test at the speed of a validation."""
    assert left(record()) is None
    assert left(record(state="done")) == 0
    # One epoch of the head is left at 50 images/s, two of fine-tuning at a third of that; three validations of 2 s.
    found = record(history=(epoch("head", 0, 50.0),), checkpoints=(checkpoint("head", 10),))
    assert left(found) == pytest.approx(100 / 50 + 200 / (50 / 3) + 3 * 2 + 4)
    # Fine-tuning has been measured now.
    history = (epoch("head", 0, 50.0), epoch("head", 1, 50.0), epoch("fine_tune", 0, 20.0))
    found = record(history=history, checkpoints=(checkpoint("fine_tune", 10),))
    assert left(found) == pytest.approx(100 / 20 + 2 + 4)


def test_the_last_change_is_the_newest_moment_of_the_record() -> None:
    """Of a start, an end, or a commit."""
    assert standing.last_change(record(attempts=())) is None
    assert standing.last_change(record()) == NOON
    assert standing.last_change(record(checkpoints=(checkpoint("head", 1),))) == NOON + timedelta(hours=1)
