"""What a person sees while an answer is prepared: on standard error, where that is a terminal, and gone at its end."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich import progress as bars
from rich.console import Console


def waiting(text: str) -> AbstractContextManager[object]:
    """Shows what is being done."""
    return Console(stderr=True).status(text)


@contextmanager
def image_bar(total: int) -> Iterator[Callable[..., None]]:
    """Yields what moves a bar by so many images, or by one."""
    console = Console(stderr=True)
    with bars.Progress(
        bars.TextColumn("images"), bars.BarColumn(bar_width=30), bars.MofNCompleteColumn(), bars.TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    ) as shown:  # fmt: skip
        task = shown.add_task("", total=total)
        yield lambda num_images=1: shown.advance(task, num_images)
