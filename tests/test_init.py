"""Process 1 of the image: no signal is lost, from the first moment on, and exit codes are the program's."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from job.errors import ExitCode
from tests.conftest import REPOSITORY
from tests.manifests import demo_settings
from tests.services import program

pytestmark = pytest.mark.slow

ENDED_BY_SIGTERM = 128 + signal.SIGTERM
"""What tini says of a program without a handler."""


@pytest.fixture(scope="module")
def init() -> list[str]:
    """The words before the program in the image's entry point, as process 1 of a namespace of their own."""
    (words,) = re.findall(r'^ENTRYPOINT \["(.+)"\]$', (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)
    first, *rest = words.split('", "')
    assert rest[-3:] == ["python", "-m", "job"]
    space = [program("unshare"), "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*space, "true"], capture_output=True).returncode != 0:
        pytest.skip("a namespace of processes is not allowed here: unshare needs root")
    return [*space, program(first), *rest[:-3]]


@pytest.fixture
def started(init: list[str], tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """The demo in that namespace, a moment ago: its process 1 is there, and perhaps nothing more."""
    places = {"THAW_DATA_DIR": str(tmp_path / "data"), "THAW_STORAGE_URI": str(tmp_path / "runs")}
    env = os.environ | demo_settings() | places | {"THAW_METRICS_PORT": "0", "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([*init, sys.executable, "-m", "job"], env=env, stdout=subprocess.DEVNULL)
    yield process
    process.kill()
    process.wait()


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def process_1(outer: int) -> int:
    """The child of `unshare`, once it is tini and has begun the program: before that it has blocked signals."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        for child in children(outer):
            if Path(f"/proc/{child}/comm").read_text() == "tini\n" and children(child):
                return child
    raise AssertionError("tini has not started in 120 s")


@pytest.mark.parametrize("seconds", [0, 0.03, 0.1, 0.2, 3])
def test_a_signal_is_never_lost(seconds: float, started: "subprocess.Popen[bytes]") -> None:
    """Before Python has a handler the program is ended; from then on it stops by itself. It never goes on."""
    first = process_1(started.pid)
    time.sleep(seconds)
    os.kill(first, signal.SIGTERM)
    assert started.wait(240) in (ENDED_BY_SIGTERM, ExitCode.INTERRUPTED)


@pytest.mark.parametrize(
    ("code", "argv"), [(0, ["--version"]), (2, ["--batch-size=-1"]), (42, ["-c", "import sys; sys.exit(42)"])]
)
def test_exit_codes_are_passed_on(code: int, argv: list[str], init: list[str]) -> None:
    """A Job decides by them."""
    words = argv if argv[0] == "-c" else ["-m", "job", *argv]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run([*init, sys.executable, *words], env=env, capture_output=True, timeout=240).returncode == code
