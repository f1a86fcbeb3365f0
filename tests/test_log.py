"""What a person sees on a terminal, and a log collector elsewhere."""

import io
import json
import os
import re
import sys
from collections.abc import Callable

import pytest

from job.observe.events import Evaluated, RunFailed, StepDone, Stopping
from job.observe.log import Log, without_native_notes
from job.observe.progress import Progress
from tests.conftest import REPOSITORY
from tests.terminal import run_in_terminal


def test_events_are_lines_of_json_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """With what was bound, the position, six digits of each number, and nothing for a table."""
    log = Log("auto", Progress(stage="evaluate"))
    log.bind(run_id="r")
    log.event(Evaluated(accuracy=0.123456789, loss=1.0, num_examples=3))
    log.closing("title", {"a": "b"})
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert line.pop("time").endswith("Z")
    assert line == {
        "run_id": "r", "accuracy": 0.123457, "loss": 1.0, "num_examples": 3, "event": "evaluated", "level": "info",
        "phase": "evaluate", "step": None,
    }  # fmt: skip


def test_a_failure_is_sentences_for_a_person_and_fields_for_a_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """Brackets, which would be markup of a terminal, are shown as they are, in a table too."""
    failure = RunFailed(exit_code=4, reason="[no] data", hint="get some")
    Log("json", Progress()).event(failure)
    log = Log("console", Progress())
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
            "a second Ctrl-C ends at once and loses up to 17 steps",
        ),
        (
            Stopping("SIGTERM", within_seconds=9.0),
            "stopping, on SIGTERM: what is under way is ended, within 9 s; a second SIGTERM ends at once",
        ),
    ],
)
def test_a_person_who_stops_a_run_is_told_what_happens_now(
    capsys: pytest.CaptureFixture[str], event: Stopping, expected: str
) -> None:
    """And what a second signal costs."""
    Log("console", Progress()).event(event)
    assert capsys.readouterr().out == f"{expected}\n"


def test_notes_of_native_libraries_are_dropped_and_the_rest_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    """By the level that each line begins with, even when an error is raised inside."""
    with pytest.raises(KeyError), without_native_notes():
        raise KeyError(os.write(2, b"I0000 port.cc:153] a note\nW0000 x.cc:1] a warning\nE0000 an error\n"))
    os.write(2, b"later")
    assert capfd.readouterr().err == "W0000 x.cc:1] a warning\nE0000 an error\nlater"


@pytest.mark.slow
def test_a_terminal_shows_a_bar_while_it_trains_and_a_table_at_the_end(
    environment: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a real pseudo-terminal."""
    for name, value in environment(head_epochs=60, fine_tune_epochs=1).items():
        monkeypatch.setenv(name, value)
    exit_code, text = run_in_terminal([], cwd=REPOSITORY)
    assert exit_code == 0
    assert re.search(r"head epoch \d+ .*/3 +[\d.]+ images/s +loss \d\.\d{4} +accuracy \d\.\d{4}", text)
    assert "Run small is complete" in text
    assert re.search(r"test accuracy +│ \d\.\d{4} +\(95 % interval", text)
    assert "{" not in text


class TerminalText(io.StringIO):
    def isatty(self) -> bool:
        return True


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
    log = Log("auto", Progress())
    log.event(Evaluated(accuracy=0.5, loss=1.0, num_examples=3))
    assert ("\x1b[" in sys.stdout.getvalue()) == has_colors
    step = StepDone("head", 0, 1, 9, 1, 9, num_examples=3, seconds=1.0, data_wait_seconds=0.0, is_first=False)
    log.step(step, lambda: (1.0, 0.5))
    log.closing("title", {})
    assert ("images/s" in sys.stdout.getvalue()) == has_bar
