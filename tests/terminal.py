"""The program on a terminal, as a person sees it."""

import codecs
import os
import pty
import re
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path

COLUMNS = 200


def run_in_terminal(
    argv: Sequence[str],
    *,
    cwd: Path,
    until: Callable[[str], bool] = lambda text: False,
    then: Callable[[subprocess.Popen[bytes]], None] = lambda process: None,
    seconds: float = 120.0,
) -> tuple[int, str]:
    """Exit code and text, without colors and movements; `then` is called once `until` is true of the text so far."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, COLUMNS))
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "job", *argv], cwd=cwd, env=env, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    text, is_done, give_up_at = "", False, time.monotonic() + seconds
    # A read may end inside a character.
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while time.monotonic() < give_up_at:
            try:
                piece = os.read(ours, 65536)
            except OSError:
                # Linux says so when the last process has closed the other side.
                break
            text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", decoder.decode(piece)).replace("\r", "")
            if not is_done and until(text):
                is_done = True
                then(process)
        return process.wait(timeout=10), text
    finally:
        process.kill()
        os.close(ours)
