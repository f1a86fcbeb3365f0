"""What a person or a log collector reads while a run goes on: events, a progress bar, a closing table.

On a terminal events are readable lines and the epoch under way has a bar; elsewhere each event is one line of JSON
on standard output, and nothing is written per step.
"""

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Literal

import structlog
from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from job import events

_NATIVE_NOTE = re.compile(rb"^(I\d{4} |WARNING: All log messages before absl::InitializeLog)")


@contextlib.contextmanager
def without_native_notes() -> Iterator[None]:
    """Drop the notes of level "info" that native libraries write to standard error inside; keep all else.

    TensorFlow 2.21 logs about oneDNN while it is imported, before any variable that it reads can silence it.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with os.fdopen(os.memfd_create("stderr"), "w+b") as captured:
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


_EVEN_IF_NOBODY_READS = contextlib.suppress(OSError)
"""A closed pipe or a full disk under the log is no reason to end a run, or to end it with another exit code."""


class Console:
    """Events through structlog; on a terminal with a progress bar."""

    def __init__(self, log_format: Literal["auto", "console", "json"]) -> None:
        is_terminal = sys.stdout.isatty()
        readable = log_format == "console" or (log_format == "auto" and is_terminal)
        self._terminal = Terminal(file=sys.stdout, highlight=False) if readable else None
        self._show_bar = readable and is_terminal
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._stepped_at = 0.0
        renderer: Any = (
            structlog.dev.ConsoleRenderer(colors=is_terminal, pad_event_to=18, sort_keys=False)
            if readable
            else structlog.processors.JSONRenderer()
        )
        stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S" if readable else "iso", utc=not readable)
        self._log = structlog.wrap_logger(
            structlog.PrintLogger(sys.stdout),
            processors=[structlog.processors.add_log_level, stamp, _rounded, renderer],
            wrapper_class=structlog.make_filtering_bound_logger(20),
        )

    @property
    def wants_steps(self) -> bool:
        """At most five times a second: reading the loss waits for the device."""
        return self._show_bar and time.monotonic() - self._stepped_at > 0.2

    def bind(self, **facts: Any) -> None:
        """Add facts to every later event, where events are read by machines."""
        if self._terminal is None:
            self._log = self._log.bind(**facts)

    def event(self, name: str, **facts: Any) -> None:
        with _EVEN_IF_NOBODY_READS:
            self._end_bar()
            self._log.info(name, **facts)

    def warning(self, name: str, **facts: Any) -> None:
        with _EVEN_IF_NOBODY_READS:
            self._end_bar()
            self._log.warning(name, **facts)

    def failure(self, *, exit_code: int, reason: str, hint: str = "", **facts: Any) -> None:
        """Why the run ended, and the way out; on a terminal as sentences."""
        with _EVEN_IF_NOBODY_READS:
            self._end_bar()
            if self._terminal is None:
                self._log.error(events.RUN_FAILED, exit_code=exit_code, reason=reason, hint=hint, **facts)
                return
            rest = (f"{name}: {value}" for name, value in ({"hint": hint} | facts).items() if value)
            self._terminal.print("\n".join([f"error: {reason}", *rest]), markup=False, soft_wrap=True)

    def step(self, *, title: str, done: int, total: int, batch_size: int, loss: float, accuracy: float) -> None:
        self._stepped_at = time.monotonic()
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(),
                console=self._terminal,
                transient=True,
                refresh_per_second=4,
            )
            self._progress.start()
            self._task = self._progress.add_task(title, total=total, completed=done - 1, numbers="")
        if self._task is None:
            return
        task = self._progress.tasks[0]
        rate = batch_size * (task.speed or 0.0)
        numbers = f"{rate:5.1f} images/s  loss {loss:.4f}  accuracy {accuracy:.4f}"
        self._progress.update(self._task, completed=done, description=title, numbers=numbers)

    def closing(self, title: str, rows: dict[str, str]) -> None:
        """A table at the end of a run, on a terminal."""
        self._end_bar()
        if self._terminal is None:
            return
        table = Table(title=title, show_header=False, title_justify="left")
        for name, value in rows.items():
            table.add_row(name, value)
        self._terminal.print(table)

    def _end_bar(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._task = None, None


def _rounded(_: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Six significant digits are enough to read; the record keeps every one."""
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in event.items()}
