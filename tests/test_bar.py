"""The line that moves at the bottom of a terminal, and what is written above it by other threads."""

import io
import sys

import pytest

from job.observe import bar, events
from job.observe.bar import Bar, Terminal
from job.observe.progress import Progress
from job.observe.terminal import Screen
from job.phases import PHASE_NAMES, STAGES, STATES_BEFORE
from tests.terminal import screen


@pytest.mark.parametrize("stage", sorted((STAGES | {*PHASE_NAMES}) - {*STATES_BEFORE}))
def test_each_part_of_a_run_has_words_of_its_own(stage: str) -> None:
    """Only a phase compiles a step."""
    progress = Progress()
    progress.stage = stage
    terminal = Terminal(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    with terminal.capture() as shown:
        terminal.print(Bar(terminal, progress))
    assert (f"compiling the first step of {stage}" in shown.get()) == (stage in PHASE_NAMES)


def test_a_line_that_is_written_while_another_thread_draws_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every epoch is there in the end, however often the moving line is drawn and whenever threads take turns."""
    monkeypatch.setattr(bar, "DRAW_SECONDS", 0.0)
    interval = sys.getswitchinterval()
    file = io.StringIO()
    log = Screen(Terminal(file=file, width=80, height=50, force_terminal=True, color_system=None), Progress())
    log.event(events.RunClaimed("/runs/cats", attempt=1, state="prepare"))
    epochs = range(1000)
    sys.setswitchinterval(1e-6)
    try:
        for epoch in epochs:
            log.event(
                events.EpochFinished(
                    "head",
                    epoch,
                    epoch + 1,
                    0.5,
                    0.9,
                    0.5,
                    0.9,
                    0.9,
                    1.0,
                    1.0,
                    images_per_second=9.0,
                    learning_rate=1e-3,
                )
            )
            log.event(events.Committed("epoch", "head", epoch + 1, 10, 1.0, 0.1, f"checkpoints/{epoch}"))
    finally:
        sys.setswitchinterval(interval)
    log.stop()
    written = file.getvalue().replace("\n", "\r\n")
    shown = [line.split()[1].split("/")[0] for line in screen(written, 80) if line.startswith("head ")]
    assert shown == [str(epoch + 1) for epoch in epochs]
