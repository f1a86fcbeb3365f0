"""What a person sees of an attempt on a terminal: what it will do, a table of its epochs, its result.

A line moves below that. Every line fits the width that the terminal has when it is written. The full facts of each
event are in `--verbose`, and off a terminal.
"""

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from rich.table import Table
from rich.text import Text

from job.observe import events
from job.observe.bar import Bar, Terminal
from job.observe.epoch_table import EpochTable
from job.observe.ledger import by_stage
from job.observe.log import ConsoleLines, JsonLines, Log, Quiet, even_if_unwritable
from job.observe.observer import RunningMeans
from job.observe.progress import Progress
from job.observe.sentences import sentence
from job.wording import counts, duration, numbered, printable, some, three_digits

LABEL = 10
ESTIMATE_AFTER_SECONDS = 2.0
"""From the first step of an attempt; before that, its speed says little."""
COLORS = {"warning": "yellow", "error": "red"}


class Screen(Log):
    """Shows events to a person; of several workers that of the first one, which claims the run, has the moving line."""

    def __init__(self, terminal: Terminal, progress: Progress) -> None:
        self._terminal, self._progress = terminal, progress
        self._bar = Bar(terminal, progress)
        # Signals, metrics and Kubeflow report from threads of their own.
        self._lock = self._bar.lock
        self._table = EpochTable(terminal)
        self._bar.above = self._table.drawn
        self._first_step_at: float | None = None
        self._result: events.RunFinished | events.RunAlreadyDone | None = None
        self._marks = ("✓", "✗") if terminal.encoding.startswith("utf") else ("*", "!")

    def event(self, event: events.Event) -> None:
        with even_if_unwritable, self._lock:
            self._bar.event(event)
            self._show(event)

    def step(self, done: events.StepDone, running_means: RunningMeans) -> None:
        self._bar.step(done, running_means)
        if self._first_step_at is None:
            self._first_step_at = time.monotonic()
        elif time.monotonic() - self._first_step_at >= ESTIMATE_AFTER_SECONDS:
            with even_if_unwritable, self._lock:
                self._say_estimate()

    def stop(self) -> None:
        with even_if_unwritable, self._lock:
            self._table.write()
            self._bar.hide()

    def closing(self, title: str, rows: dict[str, str]) -> None:
        """The result, where its report is, and what to type next."""
        self.stop()
        with even_if_unwritable, self._lock:
            self._rule(title)
            if (result := self._result) is not None:
                low, high = result.test_accuracy_interval
                self._say(
                    "accuracy", f"{result.test_accuracy:.3f} on test (95 % interval {low:.3f} to {high:.3f})", "bold"
                )
                self._say("loss", f"{three_digits(result.test_loss)} on test")
                seconds = sum(by_stage(self._progress.ledger.of_run()).values())
                self._say("time", f"{duration(seconds)} in all")
                self._say("report", _near(rows["report"]), is_whole=True)
                self._say_command("next", ["thaw predict IMAGE...", f"--run {shlex.quote(_near(result.at))}"])
            self._rule()

    def _show(self, event: events.Event) -> None:
        match event:
            case events.RunClaimed():
                self._say("run", f"{Path(event.at).name}, attempt {event.attempt}", "bold")
                self._say("place", _near(event.at), is_whole=True)
                self._say_command("follow", ["thaw status --watch", f"--run {shlex.quote(_near(event.at))}"])
                self._bar.show()
            case events.DataLoaded():
                self._table.num_steps = event.steps
                images = f"{event.train:,} training, {event.validation:,} validation and {event.test:,} test images"
                self._say("data", f"{event.dataset}: {images}")
                self._say("classes", _classes(event.classes["train"]))
                self._say("steps", counts(event.steps))
            case events.ModelBuilt():
                xla = ", compiled by XLA" if event.xla else ""
                self._say("model", f"{event.backbone}, weights {event.weights}, {event.precision}{xla}")
                self._say("device", event.device)
            case events.HeadTaken():
                new = f", new: {some(event.new_classes)}" if event.new_classes else ""
                self._say("head", f"that of the run, for {numbered(event.num_known, 'class')}{new}")
            case events.Restored() if event.level == "info":
                num_steps = self._table.num_steps.get(event.phase)
                of = f" of {num_steps:,}" if num_steps is not None else ""
                self._say("resumes", f"{event.phase} after step {event.step:,}{of}")
            case events.EpochFinished():
                self._say_estimate()
                self._table.add(event, self._bar.estimate.seconds_left())
            case events.Committed() if event.reason == "stop":
                self._table.write()
                self._say("saved", f"{event.phase} after step {event.step:,}", "green")
            case events.Committed() | events.CommitFailed() if (event.phase, event.step) in self._table:
                self._table.write((event.phase, event.step), self._marks[isinstance(event, events.CommitFailed)])
                self._warn(event)
            case events.RunAlreadyDone():
                self._result = event
                attempts = f"{event.attempts} attempts" if event.attempts > 1 else "1 attempt"
                self._say("run", f"complete since {event.ended}, in {attempts}: nothing is left to do")
            case events.RunFinished():
                self._result = event
            case events.Stopping():
                self._terminal.print(Text(printable(str(event)), "yellow"), width=self._terminal.width - 1)
            case events.RunFailed():
                self._table.write()
                self._bar.hide()
                self._say("error", event.reason, "red")
                self._say("hint", event.hint)
                if event.traceback:
                    self._terminal.print(Text(printable(event.traceback)), soft_wrap=True)
            case (
                events.Committed() | events.Evaluated() | events.Exported() | events.StepCompiled()
                | events.PhaseStarted() | events.WorkersMet()
            ):  # fmt: skip
                # The table, the moving line and the closing lines have them.
                pass
            case _ if event.level == "info":
                self._table.write()
                self._say(event.name.partition("_")[0], sentence(event))
            case _:
                self._warn(event)

    def _warn(self, event: events.Event) -> None:
        if event.level != "info":
            self._say(event.level, sentence(event), COLORS[event.level])
            self._say("hint", getattr(event, "hint", ""))

    def _say(self, label: str, text: str, style: str = "", *, is_whole: bool = False) -> None:
        """A label and a text beside it, folded at words; one that has to be copied in one piece is not folded."""
        text, width = printable(text), self._terminal.width - 1
        if not text:
            return
        if is_whole and LABEL + 1 + len(text) > width:
            self._terminal.print(Text(label, "dim"))
            self._terminal.print(Text(text, style), soft_wrap=True)
            return
        row = Table.grid(padding=(0, 1, 0, 0))
        row.add_column(min_width=LABEL)
        row.add_column(overflow="fold")
        row.add_row(Text(label, style or "dim"), Text(text, style))
        self._terminal.print(row, width=width)

    def _say_command(self, label: str, parts: Sequence[str]) -> None:
        """A command to copy: a line for each part, as a shell reads them, where one is too narrow."""
        command = " ".join(parts)
        if LABEL + 1 + len(command) < self._terminal.width:
            self._say(label, command, is_whole=True)
            return
        self._terminal.print(Text(label, "dim"))
        self._terminal.print(Text(" \\\n  ".join(map(printable, parts))), soft_wrap=True)

    def _rule(self, title: str = "") -> None:
        line = "─" if self._marks[0] == "✓" else "-"
        begin = f"{line}{line} {printable(title)} " if title else ""
        width = min(78, self._terminal.width - 1)
        text = Text(f"{begin}{line * max(0, width - len(begin))}", "green", no_wrap=True, overflow="ellipsis")
        self._terminal.print(text, width=width)

    def _say_estimate(self) -> None:
        """Once, when a speed is known."""
        left = self._bar.estimate.seconds_left()
        if self._first_step_at != float("inf") and left is not None:
            self._say("estimate", f"about {duration(left)} to the end")
            self._first_step_at = float("inf")


def _classes(images: Mapping[str, int]) -> str:
    """Of the training images: each class, or of many their number and the range."""
    if "num_classes" in images:
        return f"{images['num_classes']:,}, with {images['fewest']:,} to {images['most']:,} training images each"
    return f"{len(images)}: {counts(images)}"


def _near(place: str) -> str:
    """A path as a person would type it here; a place that is not below this folder as it is."""
    try:
        return str(Path(place).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return place


def open_log(
    log_format: Literal["auto", "console", "json"],
    progress: Progress,
    *,
    is_verbose: bool = False,
    is_quiet: bool = False,
) -> Log:
    """The log of this process: a screen on a terminal, and lines elsewhere.

    `is_verbose` gives lines on a terminal too, `is_quiet` leaves warnings, errors and the result.
    """
    log: Log
    if log_format == "auto" and sys.stdout.isatty():
        log = ConsoleLines(progress) if is_verbose else Screen(Terminal(file=sys.stdout), progress)
    else:
        log = ConsoleLines(progress) if log_format == "console" else JsonLines(progress)
    return Quiet(log) if is_quiet else log
