"""The line that moves at the bottom of a terminal: what goes on, how far it is, how fast, and the time left.

It fits the width that the terminal has at that moment: what matters less is left out.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from job.observe import events
from job.observe.estimate import Estimate
from job.observe.observer import RunningMeans
from job.observe.progress import Progress
from job.wording import duration, three_digits

DRAW_SECONDS = 0.25
STEP_SECONDS = 0.2
"""Between two readings of the loss, each of which waits for the device."""
NARROWEST, WIDEST = 8, 40
"""Columns of the bar itself."""

STAGES = {
    "start": "starting", "claim": "claiming the run", "join": "joining the run", "import": "loading TensorFlow",
    "meet": "meeting the other workers", "fetch": "fetching data and weights",
    "data": "reading the data", "model": "building the model",
    "restore": "reading the checkpoint", "evaluate": "evaluating on validation and test",
    "export": "writing the model and the report", "done": "finishing",
}  # fmt: skip
"""What goes on in each part of a run but its phases."""


class Terminal(Console):
    """Standard output. The cursor stays visible: a process that is ended at once could not show it again.

    Raises BrokenPipeError when it is closed, where rich would end the process.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, **options)
        self.can_redraw = self.is_terminal and not self.is_dumb_terminal

    def show_cursor(self, show: bool = True) -> bool:
        return False

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Bar:
    """Follows an attempt by its events and steps; drawn between `show` and `hide`, where the terminal can do that.

    What changes the lines `above` or writes below them holds `lock`, as the thread that draws does. Between what rich's
    own thread draws and what another one erases there is no such lock, and a line that was written for good is erased.
    """

    def __init__(self, terminal: Terminal, progress: Progress) -> None:
        self.lock = threading.RLock()
        self.estimate = Estimate()
        self.above: Callable[[], Sequence[RenderableType]] = lambda: ()
        self._terminal, self._progress = terminal, progress
        self._live: Live | None = None
        self._batch_size = 0.0
        self._stepped_at = 0.0
        self._newest: tuple[events.StepDone, float, float] | None = None
        self._doing, self._since = "", 0.0
        self._spinner = Spinner("line" if terminal.options.ascii_only else "dots", style="green")

    def event(self, event: events.Event) -> None:
        self.estimate.event(event)
        if isinstance(event, events.PhaseStarted):
            self._newest = None

    def step(self, done: events.StepDone, running_means: RunningMeans) -> None:
        """Not more than five times a second: reading the loss waits for the device."""
        self.estimate.step(done)
        self._batch_size = max(self._batch_size, done.num_examples / done.num_steps_done)
        is_due = self._newest is None or time.monotonic() - self._stepped_at >= STEP_SECONDS
        if is_due and self._terminal.can_redraw:
            self._stepped_at = time.monotonic()
            self._newest = done, *running_means()

    def show(self) -> None:
        if self._live is None and self._terminal.can_redraw:
            self._live = Live(self, console=self._terminal, transient=True, auto_refresh=False)
            self._live.start(refresh=True)
            threading.Thread(target=self._draw, args=(self._live,), name="bar", daemon=True).start()

    def hide(self) -> None:
        with self.lock:
            if self._live is not None:
                self._live.stop()
            self._live = None

    def _draw(self, live: Live) -> None:
        while True:
            time.sleep(DRAW_SECONDS)
            with self.lock:
                if self._live is not live:
                    return
                live.refresh()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What is drawn, by what is known and how wide the terminal is at this moment."""
        yield from self.above()
        newest = self._newest
        if newest is not None and newest[0].phase == self._progress.stage:
            yield self._line(*newest, width=options.max_width)
        else:
            yield self._waiting()

    def _waiting(self) -> RenderableType:
        stage = self._progress.stage
        doing = f"compiling the first step of {stage}" if stage in self._progress.phases else STAGES[stage]
        if doing != self._doing:
            self._doing, self._since = doing, time.monotonic()
        text = f"{doing} {duration(time.monotonic() - self._since)}"
        self._spinner.update(text=Text(text, no_wrap=True, overflow="ellipsis"))
        return self._spinner

    def _line(self, done: events.StepDone, loss: float, accuracy: float, *, width: int) -> RenderableType:
        left, step_seconds = self.estimate.seconds_left(), self.estimate.step_seconds()
        position = f"{done.phase} {done.epoch + 1}/{done.num_steps // done.num_batches}"
        steps = f"{done.batch}/{done.num_batches}"
        numbers = {
            "loss": f"loss {three_digits(loss)}",
            "accuracy": f"accuracy {accuracy:.3f}",
            "speed": f"{three_digits(self._batch_size / step_seconds)} images/s" if step_seconds else "",
            "left": f"{duration(left)} left" if left is not None else "",
        }
        # The last column stays free: some terminals begin a new line after it.
        free = width - 1 - NARROWEST - sum(len(text) + 2 for text in (position, steps))
        chosen = set()
        for name in ("left", "accuracy", "loss", "speed"):
            if numbers[name] and len(numbers[name]) + 2 <= free:
                chosen.add(name)
                free -= len(numbers[name]) + 2
        bar = ProgressBar(total=done.num_batches, completed=done.batch, width=min(WIDEST, NARROWEST + max(0, free)))
        texts = [text for name, text in numbers.items() if name in chosen]
        cells: list[RenderableType] = [position, bar, steps, *texts]
        row = Table.grid(padding=(0, 2, 0, 0))
        for _ in cells:
            row.add_column(no_wrap=True)
        row.add_row(*cells)
        return row
