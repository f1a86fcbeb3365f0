"""How far an attempt is, for the messages about its end; and what every part of an attempt is given."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from job.observe.ledger import Category, Ledger
from job.observe.observer import Observer
from job.phases import PHASE_NAMES, STATES_AFTER, STATES_BEFORE


@dataclass
class Progress:
    """`step` counts the steps done in the phase; `last_commit` is a checkpoint's name, phase and step.

    `phases` are the names of the run's phases, `reached` is the furthest step of each that this attempt has done,
    `ledger` where its time went. After a failure the stage is the one that failed. Where another worker commits,
    nothing is known of commits.
    """

    ledger: Ledger = field(default_factory=Ledger)
    stage: str = "start"
    phases: Sequence[str] = PHASE_NAMES
    step: int | None = None
    reached: dict[str, int] = field(default_factory=dict)
    last_commit: dict[str, Any] | None = None
    commits: bool = True

    @contextmanager
    def entering(self, stage: str, category: Category) -> Iterator[None]:
        """A part of the run; its time is of this category unless another one is opened inside."""
        self.stage, self.step = stage, None
        with self.ledger.stage(stage, category):
            yield

    def committed(self, checkpoint: str, phase: str, step: int) -> None:
        """A checkpoint is in the record."""
        if self.commits:
            self.last_commit = {"checkpoint": checkpoint, "phase": phase, "step": step}

    def uncommitted_steps(self) -> int | None:
        """Steps of the phase that would have to be done again; None outside of training, or if not known."""
        if self.stage not in self.phases or not self.commits:
            return None
        last = self.last_commit or {}
        return max(0, (self.step or 0) - (last["step"] if last.get("phase") == self.stage else 0))

    @property
    def states(self) -> tuple[str, ...]:
        """The states of the run, in order."""
        return (*STATES_BEFORE, *self.phases, *STATES_AFTER)

    def account(self) -> dict[str, Any]:
        """What the record keeps of an attempt while it lasts."""
        return {"seconds": self.ledger.seconds(), "reached": dict(self.reached)}


@dataclass(frozen=True)
class Context:
    """`observer` receives the events, `progress` how far the attempt is; `check_stop` raises when it must end.

    `check_stop` is called often. It raises Interrupted when the process must stop, Superseded when the run is lost.
    `give_up` ends the process at once with the exit code and the reason given, when it hangs.
    """

    observer: Observer
    progress: Progress
    check_stop: Callable[[], None]
    give_up: Callable[[int, str], None] = lambda exit_code, reason: None
