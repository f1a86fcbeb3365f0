"""How much of the training is done, and when it will be: from steps, and from how long they take."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from job.phases import RELATIVE_COST


class Estimate:
    """Steps done and left, by phase in order; `num_steps` are those of each phase in all."""

    def __init__(self, num_steps: Mapping[str, int], clock: Callable[[], float] = time.monotonic) -> None:
        self.num_steps = dict(num_steps)
        self._clock = clock
        self._phase = ""
        self._step = 0
        self._first: tuple[int, float] | None = None

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Estimate":
        """Of a run whose data is loaded: `head_steps` and `fine_tune_steps` are facts of that event."""
        return cls({phase: facts[f"{phase}_steps"] for phase in RELATIVE_COST if f"{phase}_steps" in facts})

    def begin(self, phase: str, step: int) -> None:
        """A phase begins, or is continued, with `step` of its steps done."""
        self._phase, self._step, self._first = phase, step, None

    def done(self, step: int) -> None:
        """A step of the phase is done. The first one of an attempt is compiled, and tells nothing of the others."""
        self._step = step
        self._first = self._first or (step, self._clock())

    def ratio(self) -> float:
        """The share of the training that is done, 0 to 1, weighted by what a step of its phase costs."""
        whole = sum(count * RELATIVE_COST[phase] for phase, count in self.num_steps.items())
        return 1.0 - self._left() / whole if whole else 0.0

    def seconds_left(self) -> float | None:
        """Seconds until the last step, from those since the first; None before the second step of a phase."""
        if self._first is None or self._step == self._first[0]:
            return None
        first_step, since = self._first
        seconds_a_step = (self._clock() - since) / (self._step - first_step)
        return self._left() * seconds_a_step / RELATIVE_COST[self._phase]

    def _left(self) -> float:
        """What is left to do, in steps of the head phase."""
        left, is_ahead = 0.0, not self._phase
        for phase, count in self.num_steps.items():
            if phase == self._phase:
                left += (count - self._step) * RELATIVE_COST[phase]
                is_ahead = True
            elif is_ahead:
                left += count * RELATIVE_COST[phase]
        return left
