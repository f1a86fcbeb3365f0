"""The parent of a process for each device: what it starts, how it stops them, and how it ends."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.cli import devices
from job.errors import ExitCode, Interrupted, InvalidSettings
from job.settings.machine import visible_gpus
from job.settings.settings import Settings
from tests.conftest import REPOSITORY, job, process_environment
from tests.processes import Environment, run_json
from tests.runs import never

CHILD = """
import json, os, signal, sys, time
flags = dict(word[2:].split("=") for word in sys.argv[2:] if "=" in word)
worker = flags["worker"]
with open(flags["termination-log"], "w") as file:
    json.dump({"reason": f"of worker {worker}"}, file)
with open(os.path.join(os.environ["SEEN"], worker), "w") as file:
    json.dump({"argv": sys.argv[1:], "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}, file)
code = json.loads(os.environ["CODES"])[int(worker)]
if code is None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
    print("waits", flush=True)
    time.sleep(600)
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[int, dict[str, Any], list[dict[str, Any]]]]:
    """Runs children that end with these codes; returns the exit code, the termination message, what each child saw."""

    def answer(
        codes: list[int | None], settings: Settings | None = None, check_stop: Callable[[], None] = never
    ) -> tuple[int, dict[str, Any], list[dict[str, Any]]]:
        settings = settings or Settings(termination_log=tmp_path / "message")
        first = (settings.worker or 0) * len(codes)
        exit_code = devices.answer(
            settings,
            ["--seed", "3"],
            devices.flags_of(settings, len(codes), may_choose_port=True),
            check_stop=check_stop,
            environ={"SEEN": str(tmp_path), "CODES": json.dumps([0] * first + codes)},
            child=(sys.executable, "-c", CHILD),
        )
        seen = [json.loads((tmp_path / str(first + index)).read_text()) for index in range(len(codes))]
        return exit_code, json.loads((tmp_path / "message").read_text()), seen

    return answer


def test_each_device_of_each_worker_is_a_worker_of_one_device(tmp_path: Path, run: Any) -> None:
    """The second of two pods with three devices each: the words of the command, and then what is its own."""
    settings = Settings(
        workers=2, worker=1, worker_host="thaw-{worker}.thaw", devices="3", termination_log=tmp_path / "message"
    )
    exit_code, _, seen = run([0, 0, 0], settings)
    assert exit_code == 0
    hosts = "thaw-0.thaw,thaw-0.thaw,thaw-0.thaw,thaw-1.thaw,thaw-1.thaw,thaw-1.thaw"
    common = ["run", "--seed", "3", "--workers=6", f"--worker-host={hosts}", "--worker-port=2222", "--devices=1"]
    for index, child in enumerate(seen):
        own = [f"--worker={3 + index}", *(["--metrics-port=0"] if index else [])]
        assert child["argv"][:-1] == [*common, *own]
        assert child["gpu"] is None


@pytest.mark.parametrize(
    ("codes", "expected", "cause"),
    [
        ([0, 0], ExitCode.COMPLETE, 0),
        ([45, 4, 45], ExitCode.BAD_INPUT, 1),
        ([45, 45, -9], 137, None),
        ([42, 42], ExitCode.INTERRUPTED, 0),
        ([42, 45], ExitCode.INTERRUPTED, 0),
        ([45, 45], ExitCode.PEER_LOST, 0),
        ([6, 6], ExitCode.QUALITY_GATE, 0),
        ([0, 45], ExitCode.PEER_LOST, 1),
    ],
)
def test_it_ends_as_the_process_that_was_the_cause(
    run: Any, codes: list[int], expected: int, cause: int | None
) -> None:
    """With its termination message: the others end only because of it. A killed one ends as in a shell."""
    exit_code, message, _ = run(codes)
    assert exit_code == expected
    assert message["reason"] == f"of worker {codes.index(-9) if cause is None else cause}"


def test_a_stop_is_passed_on(run: Any, tmp_path: Path) -> None:
    """To every process, and waits for them."""

    def check_stop() -> None:
        if all((tmp_path / str(worker)).exists() for worker in range(2)):
            time.sleep(0.2)
            raise Interrupted("now")

    exit_code, _, _ = run([None, None], check_stop=check_stop)
    assert exit_code == ExitCode.INTERRUPTED


def test_a_port_is_chosen_that_is_free() -> None:
    """So that two runs on one machine do not meet each other."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert devices.free_port(port, 2) > port


@pytest.mark.parametrize(("asked", "expected"), [("auto", 1), ("3", 3)])
def test_without_a_gpu_there_is_one_process_unless_more_are_asked_for(asked: str, expected: int) -> None:
    assert devices.num_devices(Settings(devices=asked), {}) == expected


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, ["0", "1", "2"]), ("2,0", ["2", "0"]), ("MIG-1, MIG-2", ["MIG-1", "MIG-2"]), ("", ["0", "1", "2"])],
)
def test_the_driver_counts_the_gpus(monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[str]) -> None:
    """It heeds CUDA_VISIBLE_DEVICES itself, whose names are passed on to the processes."""

    class Driver:
        def __init__(self, name: str) -> None: ...
        def cuInit(self, flags: int) -> int:  # noqa: N802
            return 0

        def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
            count._obj.value = len(expected)
            return 0

    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert visible_gpus(environ, "/no/driver") == []
    monkeypatch.setattr("ctypes.CDLL", Driver)
    assert visible_gpus(environ) == expected
    assert devices.num_devices(Settings(), environ) == len(expected)
    with pytest.raises(InvalidSettings, match=f"THAW_DEVICES=4: this machine has {len(expected)} GPUs"):
        devices.num_devices(Settings(devices="4"), environ)


@pytest.mark.slow
def test_two_devices_of_this_machine_complete_a_run(environment: Environment) -> None:
    """As a user starts it: one command, one exit code, one log."""
    env = environment(devices=2)
    done = subprocess.run(
        [sys.executable, "-m", "job"], env=env, cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["worker"] for line in lines if line["event"] in ("joined", "run_finished")] == [1, 0]
    assert run_json(env)["attempts"][0]["num_workers"] == 2
    (answer,) = job(env=env).stdout.splitlines()
    assert json.loads(answer)["event"] == "run_already_done"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_no_process_outlives_a_killed_parent(tmp_path: Path) -> None:
    """Even one that cannot be told."""
    env = process_environment({"devices": 2, "data_dir": tmp_path, "storage_uri": tmp_path, "run_id": "orphans"})
    parent = subprocess.Popen([sys.executable, "-m", "job"], env=env, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    children: list[int] = []
    end = time.monotonic() + 60
    while len(children) < 2 and time.monotonic() < end:
        children = [int(pid) for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
        time.sleep(0.05)
    # They ask the system for it as soon as they run.
    time.sleep(2)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while any(_is_alive(child) for child in children):
        assert time.monotonic() < end, children
        time.sleep(0.05)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
