"""What a person or a log collector reads while a run goes on: events, a progress bar, a closing table.

On a terminal events are readable lines and the epoch under way has a bar; elsewhere each event is one line of JSON
on standard output, with time, level, run id, phase and step, and nothing is written per step.
"""

import contextlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, BinaryIO, Literal

import structlog
from rich import progress as bars
from rich.console import Console as Terminal
from rich.table import Table
from rich.text import Text

from job.observe import events
from job.observe.progress import Progress
from job.redaction import redacted_facts

BAR_SECONDS = 0.2

_NATIVE_NOTE = re.compile(rb"^(I\d{4} |WARNING: All log messages before absl::InitializeLog)")


@contextlib.contextmanager
def without_native_notes() -> Iterator[None]:
    """Drop the notes of level "info" that native libraries write to standard error inside; keep all else.

    TensorFlow 2.21 logs about oneDNN while it is imported, before any variable that it reads can silence it.
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
    """In memory where the system can, which is Linux: there need not be a folder for temporary files."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("stderr"), "w+b")
    return tempfile.TemporaryFile()


_EVEN_IF_NOBODY_READS = contextlib.suppress(OSError)
"""A closed pipe or a full disk under the log is no reason to end a run, or to end it with another exit code."""


class Console:
    """Events through structlog; on a terminal with a progress bar."""

    def __init__(self, log_format: Literal["auto", "console", "json"], progress: Progress | None = None) -> None:
        is_terminal = sys.stdout.isatty()
        readable = log_format == "console" or (log_format == "auto" and is_terminal)
        self._terminal = Terminal(file=sys.stdout, highlight=False) if readable else None
        self._show_bar = readable and is_terminal
        self._bar: bars.Progress | None = None
        self._stepped_at = 0.0
        renderer: Any = (
            structlog.dev.ConsoleRenderer(colors=is_terminal, pad_event_to=18, sort_keys=False)
            if readable
            else structlog.processors.JSONRenderer()
        )
        stamp = structlog.processors.TimeStamper(
            fmt="%H:%M:%S" if readable else "iso", utc=not readable, key="timestamp" if readable else "time"
        )
        where = [] if readable or progress is None else [_Where(progress)]
        in_words = [_in_words] if readable else []
        self._log = structlog.wrap_logger(
            structlog.PrintLogger(sys.stdout),
            processors=[structlog.processors.add_log_level, stamp, *where, _rounded, _redacted, *in_words, renderer],
            wrapper_class=structlog.make_filtering_bound_logger(20),
        )

    def bind(self, **facts: Any) -> None:
        """Add facts to every later event, where events are read by machines."""
        if self._terminal is None:
            self._log = self._log.bind(**facts)

    def event(self, event: events.Event) -> None:
        with _EVEN_IF_NOBODY_READS:
            self._end_bar()
            getattr(self._log, event.level)(event.name, **event.fields())

    def failure(self, *, exit_code: int, reason: str, hint: str = "", **facts: Any) -> None:
        """Why the run ended, and the way out; on a terminal as sentences."""
        with _EVEN_IF_NOBODY_READS:
            self._end_bar()
            if self._terminal is None:
                self._log.error(events.RunFailed.name, exit_code=exit_code, reason=reason, hint=hint, **facts)
                return
            rest = (f"{name}: {value}" for name, value in ({"hint": hint} | facts).items() if value)
            text = redacted_facts("\n".join([f"error: {reason}", *rest]))
            self._terminal.print(text, markup=False, soft_wrap=True)

    def step(self, done: events.StepDone, running_means: events.RunningMeans) -> None:
        """Move the bar, at most five times a second: reading the loss waits for the device."""
        if not self._show_bar or time.monotonic() - self._stepped_at < BAR_SECONDS:
            return
        self._stepped_at = time.monotonic()
        if self._bar is None:
            self._bar = bars.Progress(
                bars.TextColumn("{task.description}"),
                bars.BarColumn(bar_width=30),
                bars.MofNCompleteColumn(),
                bars.TextColumn("{task.fields[numbers]}"),
                bars.TimeRemainingColumn(),
                console=self._terminal,
                transient=True,
                refresh_per_second=4,
            )
            self._bar.start()
            self._bar.add_task("", total=done.num_batches, completed=done.batch - 1, numbers="")
        (task,) = self._bar.tasks
        loss, accuracy = running_means()
        rate = done.num_examples * (task.speed or 0.0)
        self._bar.update(
            task.id,
            completed=done.batch,
            description=f"{done.phase} epoch {done.epoch + 1}",
            numbers=f"{rate:5.1f} images/s  loss {loss:.4f}  accuracy {accuracy:.4f}",
        )

    def closing(self, title: str, rows: dict[str, str]) -> None:
        """A table at the end of a run, on a terminal."""
        self._end_bar()
        if self._terminal is None:
            return
        table = Table(title=Text(title), show_header=False, title_justify="left")
        for name, value in rows.items():
            # As text: what looks like markup in a path is none.
            table.add_row(name, Text(str(redacted_facts(value))))
        self._terminal.print(table)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = None


class _Where:
    """Adds phase and step to every event that does not say them itself."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __call__(self, _: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event.setdefault("phase", self._progress.stage)
        event.setdefault("step", self._progress.step)
        return event


def _in_words(_: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Values by name as a person writes them: `cat 20, dog 20`, with brackets where there are more inside."""

    def text(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        inside = ((name, text(item), isinstance(item, Mapping)) for name, item in value.items())
        return ", ".join(f"{name} ({item})" if is_nested else f"{name} {item}" for name, item, is_nested in inside)

    return {key: text(value) for key, value in event.items()}


def _rounded(_: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Six significant digits are enough to read; the record keeps every one."""
    return {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in event.items()}


def _redacted(_: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """No secret of a URL is shown, wherever the text comes from."""
    return {key: redacted_facts(value) for key, value in event.items()}
