"""The log of a run, on standard output, for a person or for a log collector.

On a terminal: readable lines, something that moves while a phase is compiled and trained, and a table at the end;
epochs count from 1. Elsewhere: one line of JSON for each event, with time, level, run id, phase and step, and no line
for a step; epochs count from 0.
"""

import contextlib
import logging
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, MutableMapping
from datetime import timedelta
from typing import Any, BinaryIO, Literal

import structlog
from rich import progress as bars
from rich.console import Console as Terminal
from rich.table import Table
from rich.text import Text
from structlog.processors import add_log_level

from job.observe import events
from job.observe.estimate import Estimate
from job.observe.observer import Observer, RunningMeans
from job.observe.progress import Progress
from job.redaction import redacted, redacted_facts

BAR_SECONDS = 0.2

_NATIVE_NOTE = re.compile(rb"^(I\d{4} |WARNING: All log messages before absl::InitializeLog)")


@contextlib.contextmanager
def without_native_notes() -> Iterator[None]:
    """Drop what native libraries write to standard error inside with level "info"; keep all else.

    TensorFlow 2.21 logs about oneDNN while it is imported, before it reads the variable that would silence it.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with _nameless_file() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            captured.seek(0)
            for line in captured:
                if not _NATIVE_NOTE.match(line):
                    os.write(2, line)


def _nameless_file() -> BinaryIO:
    """In memory on Linux, where there may be no folder for temporary files."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("stderr"), "w+b")
    return tempfile.TemporaryFile()


_even_if_unwritable = contextlib.suppress(OSError)
"""A closed pipe or a full disk under the log neither ends a run nor changes its exit code."""


class Log(Observer):
    """An observer that writes events with structlog, and on a terminal shows a progress bar."""

    def __init__(self, log_format: Literal["auto", "console", "json"], progress: Progress) -> None:
        is_terminal = sys.stdout.isatty()
        readable = log_format == "console" or (log_format == "auto" and is_terminal)
        self._terminal = Terminal(file=sys.stdout, highlight=False) if readable else None
        self._show_bar = self._terminal is not None and is_terminal and not self._terminal.is_dumb_terminal
        self._bar: bars.Progress | None = None
        self._stepped_at = 0.0
        self._estimate, self._batch_size = Estimate(), 0
        # Signals, metrics and Kubeflow report from threads of their own.
        self._lock = threading.RLock()
        self._progress = progress
        processors: list[structlog.typing.Processor]
        if self._terminal is not None:
            colors = is_terminal and self._terminal.color_system is not None and not self._terminal.no_color
            renderer = structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=18, sort_keys=False)
            stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
            processors = [add_log_level, stamp, _for_people, _rounded, _redacted, _in_words, renderer]
        else:
            stamp = structlog.processors.TimeStamper(fmt="iso", key="time")
            json = structlog.processors.JSONRenderer()
            processors = [add_log_level, stamp, self._with_position, _rounded, _redacted, json]
        self._log = structlog.wrap_logger(
            # Its line is one write, which the lines of other processes on the same pipe do not cut.
            structlog.WriteLogger(sys.stdout),
            processors=processors,
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        )

    def bind(self, **fields: Any) -> None:
        """Add fields to every later line of JSON."""
        if self._terminal is None:
            self._log = self._log.bind(**fields)

    def event(self, event: events.Event) -> None:
        with _even_if_unwritable, self._lock:
            self._estimate.event(event)
            if isinstance(event, events.Stopping) and self._terminal is not None:
                # What moves goes on below the line: it is what a person now waits for.
                self._say(event)
                return
            self._end_bar()
            if isinstance(event, events.RunFailed) and self._terminal is not None:
                self._say(event)
            else:
                getattr(self._log, event.level)(event.name, **event.fields())
            if isinstance(event, events.PhaseStarted) and self._show_bar:
                columns = bars.SpinnerColumn(), bars.TextColumn("{task.description} {task.elapsed:.0f} s")
                self._begin_bar(*columns).add_task(f"compiling the first step of {event.phase}", total=None)

    def step(self, done: events.StepDone, running_means: RunningMeans) -> None:
        """Move the bar, but not more than five times a second: reading the loss waits for the device."""
        if not self._show_bar:
            return
        self._estimate.step(done)
        self._batch_size = max(self._batch_size, done.num_examples)
        if time.monotonic() - self._stepped_at < BAR_SECONDS:
            return
        self._stepped_at = time.monotonic()
        loss, accuracy = running_means()
        with self._lock:
            if self._bar is None:
                text, numbers = bars.TextColumn("{task.description}"), bars.TextColumn("{task.fields[numbers]}")
                bar = self._begin_bar(text, bars.BarColumn(bar_width=30), bars.MofNCompleteColumn(), numbers)
                bar.add_task("", total=done.num_batches, completed=done.batch - 1, numbers="")
            else:
                bar = self._bar
            bar.update(
                bar.task_ids[0],
                completed=done.batch,
                description=f"{done.phase} epoch {done.epoch + 1}",
                numbers=f"loss {loss:.3f}  accuracy {accuracy:.3f}{self._pace()}",
            )

    def _pace(self) -> str:
        """Images a second and the time left of the run; nothing before a step was measured."""
        step_seconds, seconds_left = self._estimate.step_seconds(), self._estimate.seconds_left()
        # Short, for a terminal of 80 columns.
        speed = self._batch_size / step_seconds if step_seconds else 0.0
        rate = f"  {speed:.{0 if speed >= 10 else 1}f} images/s" if speed else ""
        return rate if seconds_left is None else f"{rate}  run {timedelta(seconds=round(seconds_left))} left"

    def closing(self, title: str, rows: dict[str, str]) -> None:
        """Show the result of a run as a table, on a terminal only."""
        self._end_bar()
        if self._terminal is None:
            return
        table = Table(title=Text(title), show_header=False, title_justify="left")
        for name, value in rows.items():
            table.add_row(name, Text(redacted(value)))  # as Text, in which brackets are no markup
        self._terminal.print(table)

    def _with_position(self, _: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        """Adds phase and step to an event that does not have them itself."""
        stage, step = self._progress.stage, self._progress.step
        return {**event, "phase": event.get("phase", stage), "step": event.get("step", step)}

    def _say(self, event: events.Event) -> None:
        assert self._terminal is not None
        self._terminal.print(redacted(str(event)), markup=False, soft_wrap=True)

    def _begin_bar(self, *columns: bars.ProgressColumn) -> bars.Progress:
        self._bar = bars.Progress(*columns, console=self._terminal, transient=True, refresh_per_second=4)
        self._bar.start()
        return self._bar

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = None


def _for_people(_: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Epochs counted from 1, as everywhere but for programs, and no speed where none was measured."""
    shown = {key: value for key, value in event.items() if (key, value) != ("images_per_second", 0.0)}
    return shown | {"epoch": shown["epoch"] + 1} if "epoch" in shown else shown


def _in_words(_: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Mappings as a person writes them: `cat 20, dog 20`, with brackets around inner ones."""

    def text(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        inside = ((name, text(item), isinstance(item, Mapping)) for name, item in value.items())
        return ", ".join(f"{name} ({item})" if is_nested else f"{name} {item}" for name, item, is_nested in inside)

    return {key: text(value) for key, value in event.items()}


def _rounded(_: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Six significant digits are enough here; the record has them all."""
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in event.items()}


def _redacted(_: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Without the secrets of URLs, wherever a text comes from."""
    return {key: redacted_facts(value) for key, value in event.items()}
