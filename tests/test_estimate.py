"""Progress and the end of the training, from steps."""

from collections.abc import Iterator

import pytest

from job.observe.estimate import Estimate


@pytest.fixture
def now() -> Iterator[list[float]]:
    return [0.0]


def estimate(now: list[float]) -> Estimate:
    return Estimate({"head": 30, "fine_tune": 10}, clock=lambda: now[0])


def test_progress_counts_steps_by_what_they_cost(now: list[float]) -> None:
    """A step of fine-tuning is three of the head phase; nothing done is 0, all done is 1."""
    training = estimate(now)
    assert training.ratio() == 0.0
    training.begin("head", 0)
    assert training.ratio() == 0.0
    training.done(15)
    assert training.ratio() == pytest.approx(0.25)
    training.begin("fine_tune", 5)
    assert training.ratio() == pytest.approx(0.75)
    training.done(10)
    assert training.ratio() == 1.0


def test_the_time_left_is_unknown_before_the_second_step(now: list[float]) -> None:
    """The first one is compiled: its time tells nothing."""
    training = estimate(now)
    training.begin("head", 0)
    assert training.seconds_left() is None
    now[0] = 60.0
    training.done(1)
    assert training.seconds_left() is None


def test_the_time_left_goes_by_the_steps_of_this_phase(now: list[float]) -> None:
    """And expects a step of fine-tuning to take three times as long as one of the head."""
    training = estimate(now)
    training.begin("head", 0)
    training.done(1)
    now[0] = 18.0
    training.done(10)
    assert training.seconds_left() == pytest.approx(20 * 2.0 + 10 * 6.0)
    training.begin("fine_tune", 0)
    training.done(1)
    now[0] += 8.0
    training.done(2)
    assert training.seconds_left() == pytest.approx(8 * 8.0)


def test_a_phase_that_does_not_train_counts_for_nothing(now: list[float]) -> None:
    """Nor does a run whose steps are not known yet."""
    training = Estimate({"fine_tune": 4}, clock=lambda: now[0])
    training.begin("fine_tune", 1)
    assert training.ratio() == 0.25
    assert Estimate({}).ratio() == 0.0
