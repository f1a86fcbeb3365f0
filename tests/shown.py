"""A run as its events, shown as the program shows it on this terminal: `python -m tests.shown [flag ...]`.

`--resized` waits in the middle until the terminal has another width, `--long` has places and names that are long, and
`--verbose` and `--quiet` are those of the program.
"""

import os
import sys
import time

from rich.console import Console, ConsoleOptions, RenderResult

from job.observe import bar, terminal
from job.observe.data_events import ClassRare
from job.observe.estimate import Estimate
from job.observe.events import (
    CommitFailed,
    Committed,
    DataLoaded,
    EpochFinished,
    Evaluated,
    ModelBuilt,
    PhaseStarted,
    RunClaimed,
    RunFinished,
    StepCompiled,
    StepDone,
    StoppedEarly,
)
from job.observe.ledger import Ledger
from job.observe.log import Log
from job.observe.progress import Progress
from job.observe.terminal import open_log

drawn_at: list[float] = []
_console_of = bar.Bar.__rich_console__


def drawn(self: bar.Bar, console: Console, options: ConsoleOptions) -> RenderResult:
    """What the moving line shows; noted."""
    drawn_at.append(time.monotonic())
    return _console_of(self, console, options)


def wait_until_drawn() -> None:
    """Return once a terminal that has a moving line shows it as it is now; the drawing under way may be older."""
    before = len(drawn_at)
    while before and len(drawn_at) < before + 2:
        time.sleep(0.01)


class Clock:
    """Seconds that pass only where `now` is moved."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Run:
    """Two epochs of two steps in each of two phases."""

    def __init__(self, flags: list[str]) -> None:
        self.clock = Clock()
        bar.Estimate = lambda: Estimate(self.clock)  # type: ignore[assignment, misc]
        terminal.ESTIMATE_AFTER_SECONDS = 0.0
        bar.STEP_SECONDS = 0.0
        bar.Bar.__rich_console__ = drawn  # type: ignore[method-assign]
        self.progress = Progress(ledger=Ledger(self.clock), stage="import")
        self.is_resized, self.is_long = "--resized" in flags, "--long" in flags
        self.place = f"/runs/{'cats-and-dogs-' * 5}1" if self.is_long else "/runs/cats"
        self.log: Log = open_log("auto", self.progress, is_verbose="--verbose" in flags, is_quiet="--quiet" in flags)

    def show(self) -> None:
        say = self.log.event
        say(RunClaimed(self.place, attempt=2, state="prepare"))
        wait_until_drawn()
        self.progress.stage = "data"
        classes = {"cat": 700, "dog": 700}
        say(DataLoaded(
            "cats/1.0.0", "memory", 1400, 300, 300, steps={"head": 4, "fine_tune": 4},
            classes=dict.fromkeys(("train", "validation", "test"), classes),
            relative_costs={"head": 1.0, "fine_tune": 3.0},
        ))  # fmt: skip
        say(ClassRare(10, 2, ["owl", "a\x1b[2Jb [red]"]))
        say(ModelBuilt("Xception", "imagenet", "bfloat16", False, "AMD EPYC"))
        for phase in ("head", "fine_tune"):
            say(PhaseStarted(phase, epoch=0, step=0, learning_rate=1e-3))
            self.progress.stage = phase
            for epoch in (0, 1):
                self.epoch(phase, epoch)
            if self.is_resized and phase == "head":
                self.wait_for_another_width()
        say(StoppedEarly("fine_tune", 4, best_epoch=0))
        say(Evaluated(0.9766666, 0.9766, 0.0989, 300))
        say(RunFinished(self.place, 0.9766666, (0.952628, 0.988652), 0.0989, "93b0c0a7"))
        self.log.closing("Run cats is complete", {"report": f"{self.place}/report/index.html"})

    def epoch(self, phase: str, epoch: int) -> None:
        for batch in (1, 2):
            step = 2 * epoch + batch
            done = StepDone(phase, epoch, step, 4, batch, 2, 700, 1.0, 0.0, is_first=step == 1)
            self.log.step(done, lambda: (0.6931, 0.5))
            if step == 1:
                self.log.event(StepCompiled(phase, 2.0))
            if (phase, step) == ("fine_tune", 3):
                wait_until_drawn()
            self.clock.now += 30.0
        loss = 0.71 / (step * (1 if phase == "head" else 10))
        done_epoch = EpochFinished(
            phase, epoch, step, loss, 1 - loss / 2, loss / 3, 0.98765, 0.9, 60.0, 1.5, images_per_second=23.33,
            learning_rate=1e-3,
        )  # fmt: skip
        self.log.event(done_epoch)
        if (phase, epoch) == ("fine_tune", 0):
            self.log.event(CommitFailed(phase, step, reason="the store is full", error="StorageError"))
        else:
            self.log.event(Committed("epoch", phase, step, 10, 1.0, 0.1, f"checkpoints/{phase}-{step}"))

    def wait_for_another_width(self) -> None:
        before, until = os.get_terminal_size(), time.monotonic() + 120
        print("resize me", flush=True)
        while os.get_terminal_size() == before and time.monotonic() < until:
            time.sleep(0.05)
        print("resized", flush=True)


if __name__ == "__main__":
    Run(sys.argv[1:]).show()
