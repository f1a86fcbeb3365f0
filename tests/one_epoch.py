"""An epoch of three batches, the last of which is half as large: what is left after it, for any recipe."""

from typing import Any

import numpy as np

from job.data.splits import Splits
from job.observe.events import EpochFinished
from job.observe.ledger import Ledger
from job.phases import Phase
from job.train.loop import Position, train_phase
from job.train.state import PhaseState
from job.train.step import Recipe
from tests.classifiers import ALONE, build

HEAD = Phase(name="head", unfreeze="none", learning_rate=1e-2, epochs=1)
FINE_TUNE = Phase(name="fine_tune", unfreeze="all", learning_rate=1e-3, epochs=1)
MIXED: dict[str, Any] = {"mixup": 0.4, "cutmix": 1.0, "class_weights": (0.6, 2.5)}
"""Fields of the recipe, of two classes."""


def trained(
    splits: Splits, phase: Phase, *, xla: bool = False, **recipe: Any
) -> tuple[dict[str, np.ndarray], list[float]]:
    """The state after an epoch of batches of 16, 16 and 8, and the losses of training and validation."""
    state = PhaseState(build(dropout=0.5), phase)
    *_, epoch = train_phase(
        state, train=splits.train, validation=splits.validation, recipe=Recipe(16, 0, xla=xla, **recipe),
        position=Position(), ledger=Ledger(), collective=ALONE,
    )  # fmt: skip
    assert isinstance(epoch, EpochFinished)
    return state.arrays(), [epoch.train_loss, epoch.validation_loss]
