"""The program on a terminal, as a person sees it."""

import codecs
import os
import pty
import re
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

COLUMNS = 200
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def run_in_terminal(
    argv: Sequence[str],
    *,
    cwd: Path,
    until: Callable[[str], bool] = lambda text: False,
    then: Callable[[subprocess.Popen[bytes]], None] = lambda process: None,
    seconds: float = 120.0,
) -> tuple[int, str]:
    """Exit code and text of the program, without colors and movements; `then` is called once `until` is true of it."""
    code, written = written_in_terminal(
        ["-m", "job", *argv], cwd=cwd, until=until, then=lambda process, _: then(process), seconds=seconds
    )
    return code, plain(written)


def written_in_terminal(
    argv: Sequence[str],
    *,
    cwd: Path,
    columns: int = COLUMNS,
    variables: Mapping[str, str] = {},
    until: Callable[[str], bool] = lambda text: False,
    then: Callable[[subprocess.Popen[bytes], int], None] = lambda process, terminal: None,
    seconds: float = 120.0,
) -> tuple[int, str]:
    """Exit code of a Python process, and all that it wrote; `then` also gets the descriptor of the terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, columns))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, *argv], cwd=cwd, env=env | {"TERM": "xterm"} | variables,
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    written, is_done, give_up_at = "", False, time.monotonic() + seconds
    # A read may end inside a character.
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while time.monotonic() < give_up_at:
            try:
                piece = os.read(ours, 65536)
            except OSError:
                # Linux says so when the last process has closed the other side.
                break
            written += decoder.decode(piece)
            if not is_done and until(plain(written)):
                is_done = True
                then(process, ours)
        return process.wait(timeout=60), written
    finally:
        process.kill()
        os.close(ours)


def plain(written: str) -> str:
    """Text without colors and movements."""
    return ESCAPES.sub("", written).replace("\r", "")


def screen(written: str, columns: int) -> list[str]:
    """The lines that a terminal of that width shows in the end; a line that is too long for it is two.

    It knows what is written here: colors, the erasing of a line, one line up, and the break after the last column.
    """
    lines, row, column = [""], 0, 0
    for escape, char in re.findall(r"(\x1b\[[0-9;?]*[A-Za-z])|([^\x1b])", written):
        if escape.endswith("A"):
            row -= int(escape[2:-1] or 1)
        elif escape == "\x1b[2K":
            lines[row] = ""
        elif char == "\r":
            column = 0
        elif char == "\n" or (char and column == columns):
            row, column = row + 1, column if char == "\n" else 0
            lines += [""] * (row + 1 - len(lines))
        if char and char not in "\r\n":
            lines[row] = lines[row][:column].ljust(column) + char + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]
