"""The phases of training, in order. A new one is one row, and settings `<name>_epochs` and `<name>_learning_rate`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True, kw_only=True)
class PhaseSpec:
    """`trainable` are the parts of the model that train, `relative_cost` the time of a step, `title` is for people."""

    name: str
    trainable: tuple[str, ...]
    relative_cost: float
    title: str


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A phase of one run: which parts of the model train, how fast, and for how many epochs."""

    name: str
    trainable: tuple[str, ...]
    learning_rate: float
    epochs: int


PHASES = (
    # With a frozen backbone a step is little more than a forward pass; a backward pass costs two more.
    PhaseSpec(name="head", trainable=("head",), relative_cost=1.0, title="head"),
    PhaseSpec(name="fine_tune", trainable=("backbone", "head"), relative_cost=3.0, title="fine-tuning"),
)

PHASE_NAMES = tuple(phase.name for phase in PHASES)
RELATIVE_COST = {phase.name: phase.relative_cost for phase in PHASES}
TITLES = {phase.name: phase.title for phase in PHASES}
STATES = ("prepare", *PHASE_NAMES, "evaluate", "export", "done")
"""The states of a run, in order."""

if TYPE_CHECKING:
    PhaseName = str
    State = str
else:
    PhaseName = Literal[PHASE_NAMES]
    State = Literal[STATES]
