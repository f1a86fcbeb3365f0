"""What the past of a phase decides: the learning rate of a step, the end of the phase, its best epoch.

Pure functions of the step and of the validated epochs, so an attempt that goes on decides as one that never stopped.
"""

import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

from job.phases import Phase

MIN_DELTA = 1e-4
"""What counts as an improvement for a plateau, as in `keras.callbacks.ReduceLROnPlateau`."""


class Validated(Protocol):
    """An epoch of a phase, with its mean validation loss in nats and its validation accuracies in 0..1."""

    @property
    def phase(self) -> str: ...
    @property
    def validation_loss(self) -> float: ...
    @property
    def validation_accuracy(self) -> float: ...
    @property
    def validation_balanced_accuracy(self) -> float | None: ...


Epoch = TypeVar("Epoch", bound=Validated)


def history_of(phase: Phase, history: Sequence[Epoch]) -> list[Epoch]:
    """The epochs of this phase, of a history of all."""
    return [epoch for epoch in history if epoch.phase == phase.name]


def learning_rate(phase: Phase, step: int, *, steps_per_epoch: int, history: Sequence[Validated] = ()) -> float:
    """The rate of the step after `step` steps of a phase, whose epochs so far are `history`.

    It is learning_rate * warm-up * schedule. The warm-up is t / w for the first w steps, the schedule begins after them
    with u = (t - w) / (n - w) of its n - w steps done, and e = end_factor:

        constant   1
        linear     e + (1 - e) * (1 - u)
        cosine     e + (1 - e) * (1 + cos(pi * u)) / 2
        plateau    plateau_factor, to the power of the plateaus so far

    `keras.optimizers.schedules.CosineDecay` and `PolynomialDecay` are the same functions. Cosine: Loshchilov & Hutter
    2017, arXiv:1608.03983, equation 5, without restarts.
    """
    num_steps = phase.epochs * steps_per_epoch
    warmup_steps = min(round(phase.warmup_epochs * steps_per_epoch), num_steps)
    if step < warmup_steps:
        return phase.learning_rate * step / warmup_steps
    if phase.schedule == "plateau":
        return phase.learning_rate * phase.plateau_factor ** _num_plateaus(phase, history)
    if phase.schedule == "constant":
        return phase.learning_rate
    done = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    left = 1 - done if phase.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return phase.learning_rate * (phase.end_factor + (1 - phase.end_factor) * left)


def is_over(phase: Phase, history: Sequence[Validated]) -> bool:
    """Whether the phase has no epoch left: all are done, or the last `patience` of them were no better than before."""
    if len(history) >= phase.epochs:
        return True
    return phase.patience is not None and bool(history) and len(history) - 1 - best(phase, history) >= phase.patience


def best(phase: Phase, history: Sequence[Validated]) -> int:
    """The index of the best of some epochs, the first of equal ones."""
    badness = [_badness(phase, epoch) for epoch in history]
    return badness.index(min(badness))


def _num_plateaus(phase: Phase, history: Sequence[Validated]) -> int:
    """How often `plateau_patience` epochs in a row brought no improvement."""
    lowest, waited, found = math.inf, 0, 0
    for epoch in history:
        waited += 1
        if _badness(phase, epoch) < lowest - MIN_DELTA:
            lowest, waited = _badness(phase, epoch), 0
        elif waited >= phase.plateau_patience:
            found, waited = found + 1, 0
    return found


def _badness(phase: Phase, epoch: Validated) -> float:
    match phase.monitor:
        case "loss":
            return epoch.validation_loss
        case "accuracy":
            return -epoch.validation_accuracy
        case "balanced_accuracy":
            # Only epochs of a version that could not monitor it have none.
            assert epoch.validation_balanced_accuracy is not None
            return -epoch.validation_balanced_accuracy
