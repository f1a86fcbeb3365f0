"""How far an attempt has come, for whoever has to say so when it ends early."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from job.observe.ledger import Category, Ledger


@dataclass
class Progress:
    """`step` counts the steps done in the phase; `last_commit` is a checkpoint's name, phase and step.

    `reached` is the furthest step of each phase that this attempt has done, `ledger` where its time went. The
    stage stays what it was when the attempt fails.
    """

    ledger: Ledger = field(default_factory=Ledger)
    stage: str = "start"
    step: int | None = None
    reached: dict[str, int] = field(default_factory=dict)
    last_commit: dict[str, Any] | None = None

    @contextmanager
    def entering(self, stage: str, category: Category) -> Iterator[None]:
        """A part of the run, whose time is of this category where no other is said."""
        self.stage, self.step = stage, None
        with self.ledger.stage(stage, category):
            yield

    def account(self) -> dict[str, Any]:
        """What the record keeps of an attempt while it lasts."""
        return {"seconds": self.ledger.seconds(), "reached": dict(self.reached)}
