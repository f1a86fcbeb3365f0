"""What a person sees on a terminal, and a collector elsewhere."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from job.observe import events
from job.observe.log import Console, without_native_notes
from tests.conftest import REPOSITORY


def test_events_are_lines_of_json_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """With what was bound, six digits of each number, and nothing for a step or a table."""
    console = Console("auto")
    console.bind(run_id="r")
    console.event(events.Evaluated(accuracy=0.123456789, loss=1.0, num_examples=3))
    console.closing("title", {"a": "b"})
    (line,) = capsys.readouterr().out.splitlines()
    content = json.loads(line)
    assert (content["event"], content["run_id"], content["num_examples"]) == ("evaluated", "r", 3)
    assert content["accuracy"] == 0.123457
    assert content["level"] == "info"


def test_failures_say_reason_and_hint_in_both_formats(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As sentences for a person, as fields for a machine."""
    Console("json").failure(exit_code=4, reason="[no] data", hint="get some")
    Console("console").failure(exit_code=4, reason="[no] data", hint="get some")
    machine, *person = capsys.readouterr().out.splitlines()
    assert json.loads(machine)["reason"] == "[no] data"
    assert person == ["error: [no] data", "hint: get some"]


def test_notes_of_native_libraries_are_dropped_and_warnings_kept() -> None:
    """By the level that each line begins with."""
    program = (
        "import os; from job.observe.log import without_native_notes\n"
        "with without_native_notes():\n"
        "    for line in (b'I0000 port.cc:153] a note', b'W0000 x.cc:1] a warning', b'E0000 an error'):\n"
        "        os.write(2, line + b'\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, timeout=60)
    assert done.stderr == "W0000 x.cc:1] a warning\nE0000 an error\n"


def test_an_error_inside_is_not_swallowed(capfd: pytest.CaptureFixture[str]) -> None:
    """Standard error is put back whatever happens."""
    with pytest.raises(KeyError), without_native_notes():
        raise KeyError
    os.write(2, b"still here")
    assert capfd.readouterr().err == "still here"


def test_a_terminal_shows_a_bar_while_it_trains_and_a_table_at_the_end(
    environment: Callable[..., dict[str, str]],
) -> None:
    """In a real pseudo-terminal."""
    master, slave = pty.openpty()
    env = environment(head_epochs=60, fine_tune_epochs=1) | {"TERM": "xterm-256color", "COLUMNS": "140"}
    with subprocess.Popen([sys.executable, "-m", "job"], env=env, cwd=REPOSITORY, stdout=slave, stderr=slave) as run:
        os.close(slave)
        screen = io.BytesIO()
        while True:
            try:
                data = os.read(master, 4096)
            except OSError:
                break
            screen.write(data)
        assert run.wait(timeout=120) == 0
    os.close(master)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue().decode())
    assert re.search(r"head epoch \d+ .*/3 +[\d.]+ images/s +loss \d\.\d{4} +accuracy \d\.\d{4}", text)
    assert "Run small is complete" in text
    assert re.search(r"test accuracy +│ \d\.\d{4} +\(95 % interval", text)
    assert "{" not in text


def test_a_closing_table_shows_paths_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """What rich would read as markup is the name of a folder."""
    Console("console").closing("Run x [/b] is complete", {"results": "/runs/[/x]/a"})
    assert "/runs/[/x]/a" in capsys.readouterr().out
