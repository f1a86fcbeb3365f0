"""What a person sees on a terminal, and a log collector elsewhere."""

import io
import json
import os
import re
import socket
import sys

import pytest

from job.observe import bar as bar_module
from job.observe.estimate import Estimate
from job.observe.events import DataLoaded, EpochFinished, Evaluated, PhaseStarted, RunFailed, StepDone, Stopping
from job.observe.log import ConsoleLines, JsonLines
from job.observe.progress import Progress
from tests.test_terminal import TerminalText


def test_events_are_lines_of_json_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """With what was bound, the position, six digits of each number, and nothing for a table."""
    log = JsonLines(Progress(stage="evaluate"))
    log.bind(run_id="r")
    log.event(Evaluated(accuracy=0.123456789, balanced_accuracy=0.5, loss=1.0, num_examples=3))
    log.closing("title", {"a": "b"})
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert line.pop("time").endswith("Z")
    assert line == {
        "run_id": "r", "accuracy": 0.123457, "balanced_accuracy": 0.5, "loss": 1.0, "num_examples": 3,
        "event": "evaluated", "level": "info", "phase": "evaluate", "step": None,
    }  # fmt: skip


def test_a_line_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several processes share a pipe, unbuffered in the image: what is written in pieces is cut by other lines."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, os.fdopen(theirs.detach(), "wb", buffering=0) as raw:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, write_through=True))
        JsonLines(Progress()).event(Evaluated(accuracy=0.5, balanced_accuracy=0.5, loss=1.0, num_examples=3))
        packet = ours.recv(65536)
        assert packet.endswith(b"}\n")
        sys.stdout.detach()  # type: ignore[attr-defined]


def test_a_failure_is_sentences_for_a_person_and_fields_for_a_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets, which would be markup of a terminal, are shown as they are, in a table too."""
    failure = RunFailed(exit_code=4, reason="[no] data", hint="get some")
    JsonLines(Progress()).event(failure)
    log = ConsoleLines(Progress())
    log.event(failure)
    log.closing("Run x [/b] is complete", {"results": "/runs/[/x]/a"})
    machine, *person = capsys.readouterr().out.splitlines()
    line = json.loads(machine)
    assert (line["level"], line["exit_code"], line["reason"], line["hint"]) == ("error", 4, "[no] data", "get some")
    assert [text.strip() for text in person[:3]] == ["error: [no] data", "hint: get some", "Run x [/b] is complete"]
    assert "/runs/[/x]/a" in "".join(person)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            Stopping("SIGINT", within_seconds=13.5, uncommitted_steps=16),
            "stopping, on SIGINT: the step under way is finished, then the state is committed, within 13.5 s; "
            "a second Ctrl-C ends at once (steps lost: at most 17)",
        ),
        (
            Stopping("SIGTERM", within_seconds=9.0),
            "stopping, on SIGTERM: it ends as soon as it can, within 9 s; a second SIGTERM ends at once",
        ),
    ],
)
def test_a_person_who_stops_a_run_is_told_what_happens_now(
    capsys: pytest.CaptureFixture[str], event: Stopping, expected: str
) -> None:
    """And what a second signal costs."""
    ConsoleLines(Progress()).event(event)
    assert capsys.readouterr().out == f"{expected}\n"


@pytest.mark.parametrize(
    ("variables", "has_colors", "has_bar"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False, True),
        ({"TERM": "dumb"}, False, False),
    ],
)
def test_a_terminal_gets_only_what_it_can_show(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], has_colors: bool, has_bar: bool
) -> None:
    """Colors and a bar; NO_COLOR is a convention of many programs."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", TerminalText())
    log = ConsoleLines(Progress(stage="head"))
    log.event(Evaluated(accuracy=0.5, balanced_accuracy=0.5, loss=1.0, num_examples=3))
    assert ("\x1b[" in sys.stdout.getvalue()) == has_colors
    log.step(step_done(1), lambda: (1.0, 0.5))
    log.closing("title", {})
    assert ("accuracy" in sys.stdout.getvalue().split("num_examples")[1]) == has_bar


def step_done(step: int, *, num_examples: int = 10) -> StepDone:
    return StepDone(
        "head", (step - 1) // 2, step, 4, 2 - step % 2, 2, num_examples, seconds=0.0, data_wait_seconds=0.0,
        is_first=step == 1,
    )  # fmt: skip


def test_a_terminal_shows_what_goes_on_how_fast_and_how_long_the_run_still_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Across epochs, which may be shorter than it takes to measure one; a line about a signal leaves it moving."""
    now, out = 0.0, TerminalText()
    monkeypatch.setattr(bar_module, "Estimate", lambda: Estimate(clock=lambda: now))
    monkeypatch.setattr(bar_module, "STEP_SECONDS", 0.0)
    monkeypatch.setattr(sys, "stdout", out)
    for name, value in {"TERM": "xterm", "COLUMNS": "200", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    log = ConsoleLines(Progress(stage="head"))
    steps, costs = {"head": 4, "fine_tune": 100}, {"head": 1.0, "fine_tune": 3.0}
    log.event(DataLoaded("d", "memory", 15, 5, 5, steps=steps, classes={}, relative_costs=costs))
    log.event(PhaseStarted("head", epoch=0, step=0, learning_rate=1e-3))
    log.event(Stopping("SIGINT", within_seconds=13.5, uncommitted_steps=0))
    shown = []
    for step, size in ((1, 10), (2, 5), (3, 10), (4, 5)):
        log.step(step_done(step, num_examples=size), lambda: (1.0, 0.5))
        now += 0.5
        if step == 2:
            log.event(
                EpochFinished(
                    "head", 0, 2, 0.1, 0.9, 0.2, 0.8, 0.8, 1.0, 0.0, images_per_second=0.0, learning_rate=1e-3
                )
            )
        shown.append(out.getvalue().removeprefix("".join(shown)))
    log.closing("title", {})
    assert "compiling the first step of head 0 s" in shown[0].split("a second Ctrl-C ends at once")[1]
    assert "epoch=1 " in shown[0]
    assert "images/s" not in shown[0]
    assert "epoch=1 " in shown[1]
    assert "images_per_second" not in shown[1]
    # The head is done; a step of fine-tuning costs three of its steps.
    last = out.getvalue().removeprefix("".join(shown[:2]))
    assert re.search("head 2/2 .* 2/2  loss 1.00  accuracy 0.500  20.0 images/s  2 min 30 s left", last)
