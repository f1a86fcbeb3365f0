"""The log of a run, on standard output: a line for each event, with all its facts.

For a log collector: one line of JSON, with time, level, run id, phase and step; epochs count from 0. For a person, who
asked for it: readable lines, something that moves while a phase is compiled and trained, and a table at the end; epochs
count from 1. What a person sees otherwise is in `terminal`.
"""

import contextlib
import sys
import threading
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog
from rich.table import Table
from rich.text import Text
from structlog.processors import add_log_level

from job.observe import events
from job.observe.bar import Bar, Terminal
from job.observe.observer import Observer, RunningMeans
from job.observe.progress import Progress
from job.redaction import redacted, redacted_facts

even_if_unwritable = contextlib.suppress(OSError)
"""A closed pipe or a full disk under the log neither ends a run nor changes its exit code."""


class Log(Observer):
    """What a person or a log collector gets of this process."""

    def bind(self, **fields: Any) -> None:
        """Add fields to every later line of JSON."""

    def stop(self) -> None:
        """Leave nothing that moves: others are going to write, or the process ends."""


class Quiet(Log):
    """Of a log only warnings, errors and the result."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def bind(self, **fields: Any) -> None:
        self._log.bind(**fields)

    def event(self, event: events.Event) -> None:
        if event.level != "info" or isinstance(event, events.RunFinished | events.RunAlreadyDone):
            self._log.event(event)

    def stop(self) -> None:
        self._log.stop()

    def closing(self, title: str, rows: dict[str, str]) -> None:
        self._log.closing(title, rows)


class JsonLines(Log):
    """Writes each event as a line of JSON, with what was bound, and with the phase and the step that it happens in."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        # Signals, metrics and Kubeflow report from threads of their own.
        self._lock = threading.Lock()
        stamp = structlog.processors.TimeStamper(fmt="iso", key="time")
        self._log = _lines(stamp, self._with_position, _shown, structlog.processors.JSONRenderer())

    def bind(self, **fields: Any) -> None:
        self._log = self._log.bind(**fields)

    def event(self, event: events.Event) -> None:
        with even_if_unwritable, self._lock:
            getattr(self._log, event.level)(event.name, **event.fields())

    def _with_position(self, _: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        """Adds phase and step to an event that does not have them itself."""
        stage, step = self._progress.stage, self._progress.step
        return {**event, "phase": event.get("phase", stage), "step": event.get("step", step)}


class ConsoleLines(Log):
    """Writes each event as a readable line; on a terminal also a bar, and a table at the end."""

    def __init__(self, progress: Progress) -> None:
        self._terminal = Terminal(file=sys.stdout)
        self._bar = Bar(self._terminal, progress)
        self._lock = threading.RLock()
        colors = self._terminal.color_system is not None and not self._terminal.no_color
        renderer = structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=18, sort_keys=False)
        stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
        self._log = _lines(stamp, _for_people, _shown, _in_words, renderer)

    def event(self, event: events.Event) -> None:
        with even_if_unwritable, self._lock:
            self._bar.event(event)
            if not isinstance(event, events.Stopping):
                # Below the line about a signal the bar stays: it shows what a person now waits for.
                self._bar.hide()
            if isinstance(event, events.Stopping | events.RunFailed):
                self._terminal.print(redacted(str(event)), markup=False, soft_wrap=True)
            else:
                getattr(self._log, event.level)(event.name, **event.fields())
            if isinstance(event, events.PhaseStarted):
                self._bar.show()

    def step(self, done: events.StepDone, running_means: RunningMeans) -> None:
        self._bar.step(done, running_means)
        with even_if_unwritable, self._lock:
            self._bar.show()

    def stop(self) -> None:
        with even_if_unwritable, self._lock:
            self._bar.hide()

    def closing(self, title: str, rows: dict[str, str]) -> None:
        table = Table(title=Text(title), show_header=False, title_justify="left")
        for name, value in rows.items():
            table.add_row(name, Text(redacted(value)))  # as Text, in which brackets are no markup
        with even_if_unwritable, self._lock:
            self._bar.hide()
            self._terminal.print(table)


def _lines(*processors: structlog.typing.Processor) -> Any:
    """A logger to standard output. Its line is one write, which other processes on the same pipe do not cut."""
    return structlog.wrap_logger(structlog.WriteLogger(sys.stdout), processors=[add_log_level, *processors])


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


def _shown(_: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Without the secrets of URLs, and with six significant digits of each number, of which the record has all."""
    return {
        key: float(f"{value:.6g}") if isinstance(value, float) else redacted_facts(value)
        for key, value in event.items()
    }
