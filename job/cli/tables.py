"""How answers are written: a table for a person, JSON for a program; always on standard output."""

import contextlib
import json
import sys
from collections.abc import Container, Iterator
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from job.errors import Interrupted
from job.paths import escaped

WIDTH_ELSEWHERE = 200
"""Columns where there is no terminal: rich would fold at 80."""

COLORS = {
    "done": "green", "running": "cyan", "stopped": "yellow", "killed": "yellow", "failed": "red", "damaged": "red",
    "unreadable": "red",
}  # fmt: skip
"""Of a run, by its condition."""


class TableConsole(Console):
    """Standard output for tables. Raises BrokenPipeError when it is closed, where rich would end the process."""

    def __init__(self) -> None:
        super().__init__(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else WIDTH_ELSEWHERE)

    def print(self, *objects: Any, **options: Any) -> None:
        with writing():
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def table(*columns: str, right: Container[str] = ()) -> Table:
    """A table without lines; the columns in `right` hold numbers."""
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        made.add_column(name, overflow="fold", justify="right" if name in right else "left")
    return made


def print_json(content: Any, *, indent: int | None = None) -> None:
    """One document; on one line unless it is indented."""
    with writing():
        print(json.dumps(content, indent=indent, allow_nan=False), flush=True)


def show(content: Any, table: RenderableType, *, as_json: bool) -> None:
    """Print an answer, as JSON or as a table."""
    if as_json:
        print_json(content, indent=1)
    else:
        TableConsole().print(table)


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Turn a full disk under standard output into Interrupted: as a closed pipe, a BrokenPipeError, it is no bug."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Interrupted(f"standard output cannot be written: {error.strerror}", hint="send it elsewhere") from error


def digits(value: float | None) -> str:
    """An accuracy or a loss with four decimals; empty where there is none."""
    return "" if value is None else f"{value:.4f}"


def plain(text: str, style: str = "") -> Text:
    """A name from outside, which may hold anything: no markup, and nothing that moves the cursor."""
    return Text(escaped(text), style=style)


def setting_text(value: Any) -> str:
    """A recorded setting as it would be written into its variable; one that is not set is empty."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
