"""The table of the epochs on a terminal: a line for each, with a mark that says whether its checkpoint is committed.

                  training       validation
    phase epoch   loss accuracy    loss accuracy images/s    time    left saved
    head    1/5  0.412    0.871   0.233    0.941     34.1    31 s 4.8 min     ✓

It fits the width that the terminal has when a line is written: columns that matter less drop out. A line is drawn,
above the bar, until the commit of its epoch is reported; then it is written for good.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.text import Text

from job.observe import events
from job.observe.bar import Terminal
from job.wording import short_duration, three_digits

MAX_DRAWN = 5
"""Lines of epochs whose commits are not reported yet."""


@dataclass(frozen=True)
class Column:
    """A column of the table of epochs; `width` includes the space before it, the smallest `rank` matters most."""

    name: str
    width: int
    rank: int
    group: str = ""
    style: str = ""


def columns(names: Sequence[str], num_epochs: int, width: int) -> list[Column]:
    """Those that fit; a terminal of 80 columns has all of them, where the names of the phases are short."""
    phase = min(16, max(map(len, [*names, "phase"])))
    every = [
        Column("phase", phase, 0),
        Column("epoch", max(6, 2 * len(str(num_epochs)) + 2), 1),
        Column("loss", 7, 6, "training"),
        Column("accuracy", 9, 8, "training"),
        Column("loss", 8, 5, "validation"),
        Column("accuracy", 9, 2, "validation", "bold"),
        Column("images/s", 9, 9),
        Column("time", 8, 7),
        Column("left", 8, 3),
        Column("saved", 6, 4, style="green"),
    ]
    # The last column of the terminal stays free: some begin a new line after it.
    fitting, free = [], width - 1
    for column in sorted(every, key=lambda column: column.rank):
        if column.width > free:
            break
        fitting.append(column)
        free -= column.width
    return [column for column in every if column in fitting]


class EpochTable:
    """`num_steps` are those of each phase. An epoch is named by its phase and the steps that are done at its end."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self.num_steps: Mapping[str, int] = {}
        self._most_epochs = 1
        self._headed: list[Column] | None = None
        self._rows: dict[tuple[str, int], Mapping[tuple[str, str], str]] = {}

    def __contains__(self, epoch: tuple[str, int]) -> bool:
        """Whether its commit is not reported yet."""
        return epoch in self._rows

    def add(self, event: events.EpochFinished, seconds_left: float | None) -> None:
        """Draw the line of an epoch, until its commit is reported."""
        num_batches = event.step // (event.epoch + 1)
        self._most_epochs = max([event.step, *self.num_steps.values()]) // num_batches
        self._rows[event.phase, event.step] = {
            ("", "phase"): event.phase,
            ("", "epoch"): f"{event.epoch + 1}/{self.num_steps.get(event.phase, event.step) // num_batches}",
            ("training", "loss"): three_digits(event.train_loss),
            ("training", "accuracy"): f"{event.train_accuracy:.3f}",
            ("validation", "loss"): three_digits(event.validation_loss),
            ("validation", "accuracy"): f"{event.validation_accuracy:.3f}",
            # A short epoch may have only the step that was compiled, whose speed means nothing.
            ("", "images/s"): three_digits(event.images_per_second) if event.images_per_second else "",
            ("", "time"): short_duration(event.train_seconds + event.validation_seconds),
            ("", "left"): "" if seconds_left is None else short_duration(seconds_left),
            ("", "saved"): "",
        }
        while len(self._rows) > MAX_DRAWN:
            self.write(next(iter(self._rows)))

    def drawn(self) -> list[Text]:
        """The lines of the epochs whose commits are not reported yet."""
        return [self._line(row, self._columns()) for row in self._rows.values()]

    def write(self, last: tuple[str, int] | None = None, mark: str = "") -> None:
        """Write the lines up to that of an epoch, which gets the mark, for good; by default all, without a mark."""
        keys = [*self._rows]
        for key in keys[: keys.index(last) + 1] if last else keys:
            row = self._rows.pop(key)
            chosen = self._columns()
            if chosen != self._headed:
                self._headed = chosen
                self._print_headings(chosen)
            self._terminal.print(self._line({**row, ("", "saved"): mark if key == last else ""}, chosen))

    def _columns(self) -> list[Column]:
        return columns(list(self.num_steps), self._most_epochs, self._terminal.width)

    def _print_headings(self, chosen: Sequence[Column]) -> None:
        above, names = "", ""
        for column, following in zip(chosen, [*chosen[1:], None], strict=True):
            names += column.name.rjust(column.width) if names else column.name.ljust(column.width)
            if column.group and (following is None or following.group != column.group):
                above = above.ljust(len(names) - len(column.group)) + column.group
        self._terminal.print(Text(above, "dim"))
        self._terminal.print(Text(names, "bold"))

    def _line(self, row: Mapping[tuple[str, str], str], chosen: Sequence[Column]) -> Text:
        line = Text(no_wrap=True, overflow="ellipsis")
        for column in chosen:
            text = row[column.group, column.name]
            if not line:
                shown = text if len(text) <= column.width else f"{text[: column.width - 1]}…"
                line.append(shown.ljust(column.width), column.style)
            else:
                line.append(text.rjust(column.width), column.style)
        return line
