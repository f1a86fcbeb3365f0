"""How much of the training is done, and how long the rest takes: one formula, wherever it is shown.

Of the rest, each step takes as long as the newest measured steps of its phase; where none was measured, as long as the
newest ones of another phase by their relative cost. Each epoch still to be validated takes as long as the newest
validation, and the final evaluation, over validation and test, as long as that for as many images.

Two sources feed it. `status` reads the record (see `job.run.standing`): committed steps, and the speed of whole epochs.
An attempt itself has newer numbers, in `Estimate`: the steps it has done, and their speed since its first one.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from job.observe import events


@dataclass(frozen=True)
class PhaseProgress:
    """How far a phase is: `step` of `num_steps`, where the latter is None until the size of the data is known."""

    name: str
    relative_cost: float
    step: int
    num_steps: int | None
    num_epochs_done: int
    num_epochs: int


def ratio(phases: Sequence[PhaseProgress]) -> float | None:
    """The share of the training that is done, 0 to 1, weighted by the cost of a step; None if unknown."""
    done = whole = 0.0
    for phase in phases:
        if phase.num_steps is None:
            return None
        done += phase.step * phase.relative_cost
        whole += phase.num_steps * phase.relative_cost
    return done / whole if whole else None


def seconds_left(
    phases: Sequence[PhaseProgress],
    step_seconds: Mapping[str, float],
    *,
    validation_seconds: float,
    num_validation: int,
    num_test: int,
) -> float | None:
    """About how long the rest takes; `step_seconds` are measured ones by phase, the newest last. None without one.

    `validation_seconds` are those of the newest validation, over `num_validation` images; `num_test` are those of test.
    """
    if not step_seconds:
        return None
    newest, costs = list(step_seconds)[-1], {phase.name: phase.relative_cost for phase in phases}
    seconds = validation_seconds * (1 + num_test / max(1, num_validation))
    for phase in phases:
        by_cost = step_seconds[newest] * phase.relative_cost / costs.get(newest, phase.relative_cost)
        seconds += ((phase.num_steps or 0) - phase.step) * step_seconds.get(phase.name, by_cost)
        seconds += (phase.num_epochs - phase.num_epochs_done) * validation_seconds
    return seconds


class Estimate:
    """Follows one attempt by its events and steps."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._num_steps: dict[str, int] = {}
        self._costs: Mapping[str, float] = {}
        self._phase, self._step, self._num_epochs_done, self._num_batches = "", 0, 0, 0
        self._step_seconds: dict[str, float] = {}
        self._first: tuple[int, float] | None = None
        self._validation_seconds = 0.0
        self._num_validation = self._num_test = 0

    def event(self, event: events.Event) -> None:
        match event:
            case events.DataLoaded():
                self._num_steps, self._costs = dict(event.steps), event.relative_costs
                self._num_validation, self._num_test = event.validation, event.test
            case events.Restored() if event.checkpoint:
                # A phase that is over does not start again.
                self._phase, self._step = event.phase, event.step
            case events.PhaseStarted():
                self._phase, self._step, self._num_epochs_done = event.phase, event.step, event.epoch
                self._first = None
            case events.StoppedEarly():
                self._num_steps[event.phase] = event.step
            case events.EpochFinished():
                self._num_epochs_done = event.epoch + 1
                self._validation_seconds = event.validation_seconds
                if self._first is not None:
                    # Steps are measured by the clock; the validation is counted by itself.
                    self._first = self._first[0], self._first[1] + event.validation_seconds

    def step(self, done: events.StepDone) -> None:
        """The first step of an attempt is compiled, so its time says nothing about the others."""
        self._step, self._num_batches = done.step, done.num_batches
        if self._first is None:
            self._first = done.step, self._clock()
        elif done.step > self._first[0]:
            self._step_seconds[self._phase] = (self._clock() - self._first[1]) / (done.step - self._first[0])

    def ratio(self) -> float:
        """The share of the training that is done, 0 to 1; 0 while it is unknown."""
        return ratio(self._phases()) or 0.0

    def step_seconds(self) -> float | None:
        """Of a step of the current phase, with all that it waits for; None before a second one was done."""
        return self._step_seconds.get(self._phase)

    def seconds_left(self) -> float | None:
        """About how long the rest of the run takes; None before a second step was done."""
        return seconds_left(
            self._phases(),
            self._step_seconds,
            validation_seconds=self._validation_seconds,
            num_validation=self._num_validation,
            num_test=self._num_test,
        )

    def _phases(self) -> list[PhaseProgress]:
        phases, is_ahead = [], not self._phase
        for name, num_steps in self._num_steps.items():
            num_epochs = num_steps // self._num_batches if self._num_batches else 0
            step, num_epochs_done = (0, 0) if is_ahead else (num_steps, num_epochs)
            if name == self._phase:
                step, num_epochs_done, is_ahead = self._step, self._num_epochs_done, True
            cost = self._costs.get(name, 1.0)
            phases.append(PhaseProgress(name, cost, step, num_steps, num_epochs_done, num_epochs))
        return phases
