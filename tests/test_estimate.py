"""Progress and the time left: one formula, fed by the steps of an attempt or by the record."""

import pytest

from job.observe.estimate import Estimate
from job.observe.events import DataLoaded, EpochFinished, PhaseStarted, Restored, StepDone
from job.run import standing
from tests.recorded import checkpoint, epoch, record

NUM_BATCHES = 10
COSTS = {"head": 1.0, "fine_tune": 3.0}


class Attempt:
    """An attempt at two epochs of either phase, of ten batches each, as its estimate follows it."""

    def __init__(self, *phases: str) -> None:
        self.now = 0.0
        self.estimate = Estimate(clock=lambda: self.now)
        steps = dict.fromkeys(phases, 2 * NUM_BATCHES)
        self.estimate.event(DataLoaded("d", "memory", 100, 20, 40, steps=steps, classes={}, relative_costs=COSTS))

    def begin(self, phase: str, step: int = 0) -> None:
        self.phase = phase
        self.estimate.event(PhaseStarted(phase, step // NUM_BATCHES, step, 1e-3))

    def steps(self, first: int, last: int, *, seconds: float) -> None:
        for step in range(first, last + 1):
            self.now += seconds
            self.estimate.step(
                StepDone(self.phase, 0, step, 2 * NUM_BATCHES, 1, NUM_BATCHES, 10, seconds, 0.0, is_first=step == first)
            )

    def validate(self, index: int, *, seconds: float) -> None:
        self.now += seconds
        self.estimate.event(EpochFinished(self.phase, index, 10 * (index + 1), 0, 0, 0, 0, 0, 1, seconds, 50, 1e-3))


def test_progress_counts_steps_by_what_they_cost() -> None:
    """A step of fine-tuning is three of the head phase; nothing done is 0, all done is 1."""
    run = Attempt("head", "fine_tune")
    ratios = [run.estimate.ratio()]
    for phase, step in (("head", 0), ("head", 10), ("fine_tune", 0), ("fine_tune", 10), ("fine_tune", 20)):
        run.begin(phase, step)
        ratios.append(run.estimate.ratio())
    assert ratios == pytest.approx([0, 0, 10 / 80, 20 / 80, 50 / 80, 1])
    assert Estimate().ratio() == 0.0
    only = Attempt("fine_tune")
    only.begin("fine_tune", 5)
    assert only.estimate.ratio() == 0.25


def test_a_restart_after_the_last_step_has_all_training_done() -> None:
    """No phase starts again: what is left is to evaluate."""
    run = Attempt("head", "fine_tune")
    run.estimate.event(Restored("checkpoints/a", "fine_tune", 2 * NUM_BATCHES))
    assert run.estimate.ratio() == 1.0


def test_the_time_left_is_unknown_before_the_second_step() -> None:
    """The first one is compiled: its time says nothing about the others."""
    run = Attempt("head", "fine_tune")
    run.begin("head")
    run.steps(1, 1, seconds=60)
    assert run.estimate.seconds_left() is None
    run.steps(2, 2, seconds=2)
    assert run.estimate.seconds_left() == pytest.approx(18 * 2 + 20 * 6)


def test_an_attempt_and_its_record_give_the_same_time() -> None:
    """Steps at the speed of their phase or of another by cost, and all evaluations at a validation's speed."""
    assert standing.seconds_left(record(), standing.phase_progress(record())) is None
    assert standing.seconds_left(record(state="done"), []) == 0

    def recorded(*history: str, speed: float, phase: str, step: int) -> float | None:
        epochs = tuple(epoch(name, history[:index].count(name), speed) for index, name in enumerate(history))
        found = record(history=epochs, checkpoints=(checkpoint(phase, step),))
        return standing.seconds_left(found, standing.phase_progress(found))

    run = Attempt("head", "fine_tune")
    run.begin("head")
    run.steps(1, 10, seconds=0.2)
    run.validate(0, seconds=2)
    expected = 10 * 0.2 + 20 * 0.6 + 3 * 2 + (2 + 4)
    assert run.estimate.seconds_left() == pytest.approx(expected)
    assert recorded("head", speed=50, phase="head", step=10) == pytest.approx(expected)

    run.steps(11, 20, seconds=0.2)
    run.validate(1, seconds=2)
    run.begin("fine_tune")
    run.steps(1, 10, seconds=0.5)
    run.validate(0, seconds=2)
    expected = 10 * 0.5 + 2 + (2 + 4)
    assert run.estimate.seconds_left() == pytest.approx(expected)
    assert recorded("head", "head", "fine_tune", speed=20, phase="fine_tune", step=10) == pytest.approx(expected)


def test_an_epoch_of_one_compiled_step_says_nothing_of_the_speed() -> None:
    """So its images a second are 0, as when an attempt continues at the last step of an epoch."""
    compiled = epoch("head", 1, 0.0)
    found = record(history=(epoch("head", 0, 50), compiled), checkpoints=(checkpoint("head", 20),))
    assert standing.seconds_left(found, standing.phase_progress(found)) == pytest.approx(20 * 0.6 + 2 * 2 + (2 + 4))
    found = record(history=(compiled.model_copy(update={"epoch": 0}),))
    assert standing.seconds_left(found, standing.phase_progress(found)) is None
