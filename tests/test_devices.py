"""The parent of a process for each device: what it starts, how it stops them, and how it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.cli import devices
from job.errors import ExitCode, Interrupted, InvalidSettings
from job.nvidia import visible_gpus
from job.settings.settings import Settings
from tests.conftest import REPOSITORY, job, process_environment, slowly
from tests.processes import Environment, run_json
from tests.runs import never
from tests.teams import until
from tests.test_device import driver

CHILD = """
import json, os, signal, sys, time
flags = dict(word[2:].split("=") for word in sys.argv[2:] if "=" in word)
worker = flags["worker"]
code = json.loads(os.environ["CODES"])[int(worker)]
if code in (0, None) or code in range(256):
    with open(flags["termination-log"], "w") as file:
        json.dump({"reason": f"of worker {worker}"}, file)
with open(os.path.join(os.environ["SEEN"], worker), "w") as file:
    json.dump({"argv": sys.argv[1:], "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}, file)
if code == "late":
    time.sleep(1)
    code = 0
if code == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if code in ("deaf", "unready"):
    time.sleep(600)
if code in (None, "slow"):
    signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1 if code else 0), sys.exit(42)))
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
        codes: list[Any], *, check_stop: Callable[[], None] = never, **values: Any
    ) -> tuple[int, dict[str, Any], list[dict[str, Any]]]:
        settings = Settings(termination_log=tmp_path / "message", cache_dir=tmp_path / "cache", **values)
        first = (settings.worker or 0) * len(codes)
        exit_code = devices.run_all(
            settings,
            ["--seed", "3"],
            devices.flags_of(settings, len(codes), may_choose_port=True),
            check_stop=check_stop,
            environ={"SEEN": str(tmp_path), "CODES": json.dumps([0] * first + codes)},
            child=(sys.executable, "-c", CHILD),
        )
        seen = [tmp_path / str(first + index) for index in range(len(codes))]
        found = [json.loads(path.read_text()) for path in seen if path.exists()]
        return exit_code, json.loads((tmp_path / "message").read_text()), found

    return answer


def test_each_device_of_each_worker_is_a_worker_of_one_device(run: Any) -> None:
    """The second of two pods with three devices each: the words of the command, and then what is its own."""
    exit_code, _, seen = run([0, 0, 0], workers=2, worker=1, worker_host="thaw-{worker}.thaw", devices="3")
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
        ([45, 4, 45], ExitCode.BAD_INPUT, 1),
        ([45, 45, -9], 137, 2),
        *slowly(
            ([0, 0], ExitCode.COMPLETE, 0),
            ([42, 42], ExitCode.INTERRUPTED, 0),
            ([42, 45], ExitCode.INTERRUPTED, 0),
            ([45, 45], ExitCode.PEER_LOST, 0),
            ([6, 6], ExitCode.QUALITY_GATE, 0),
            ([0, 45], ExitCode.COMPLETE, 0),
            ([0, -9], ExitCode.COMPLETE, 0),
        ),
    ],
)
def test_it_ends_as_the_process_that_was_the_cause(run: Any, codes: list[int], expected: int, cause: int) -> None:
    """With its termination message: the others end only because of it. A killed one ends as in a shell."""
    exit_code, message, _ = run(codes)
    assert exit_code == expected
    by_signal = "the process of device 2 was killed by signal 9; what was committed stands"
    assert message["reason"] == (by_signal if expected > 128 else f"of worker {cause}")


def test_a_message_that_cannot_be_written_is_a_warning_without_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As that of a single process."""
    settings = Settings(termination_log=tmp_path / "log?token=secret" / "message", cache_dir=tmp_path / "cache")
    exit_code = devices.run_all(
        settings,
        [],
        devices.flags_of(settings, 1, may_choose_port=True),
        check_stop=never,
        environ={"SEEN": str(tmp_path), "CODES": "[0]"},
        child=(sys.executable, "-c", CHILD),
    )
    assert exit_code == 0
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: no termination message: {tmp_path}/log?token=*** ")
    assert "secret" not in warning


@pytest.fixture
def stop_two(tmp_path: Path) -> Callable[[], None]:
    """Raises when two processes have begun."""

    def check_stop() -> None:
        if all((tmp_path / str(worker)).exists() for worker in range(2)):
            time.sleep(0.2)
            raise Interrupted("now")

    return check_stop


@pytest.mark.parametrize(
    "codes",
    [[None, "unready"], *slowly([None, None], ["unready", "unready"])],
)
def test_a_stop_is_passed_on(run: Any, stop_two: Callable[[], None], codes: list[Any]) -> None:
    """To every process, and waits for them; one that cannot listen yet was interrupted all the same."""
    exit_code, message, _ = run(codes, check_stop=stop_two)
    assert exit_code == ExitCode.INTERRUPTED
    assert message["reason"]


@pytest.mark.slow
def test_who_does_not_leave_after_a_failure_is_killed(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not who works on after a success: worker 0 has more to do than the others."""
    monkeypatch.setattr(devices, "LEAVING_SECONDS", 0.3)
    assert run([4, "deaf"], grace_seconds=0.1)[0] == ExitCode.BAD_INPUT
    assert run(["late", 0], grace_seconds=0.1)[0] == ExitCode.COMPLETE


@pytest.mark.slow
def test_who_is_stopped_has_the_grace_period(
    run: Any, stop_two: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker 0 commits when the others have left."""
    monkeypatch.setattr(devices, "LEAVING_SECONDS", 0.3)
    assert run(["slow", None], check_stop=stop_two, grace_seconds=60)[0] == ExitCode.INTERRUPTED


def test_the_cache_folder_alone_is_written(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pod there is no other folder for temporary files; nothing stays there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nothing"))
    assert run([0, 0])[0] == ExitCode.COMPLETE
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


PARENT = """
import json, os, signal, sys
from job.cli import devices
from job.errors import Interrupted
from job.settings.settings import Settings
stops = []
signal.signal(signal.SIGINT, lambda *_: stops.append(1))
def check_stop():
    if stops:
        raise Interrupted("now")
settings = Settings(cache_dir=sys.argv[1], termination_log=f"{sys.argv[1]}/message")
flags = devices.flags_of(settings, 2, may_choose_port=True)
child = (sys.executable, "-c", sys.argv[2])
sys.exit(devices.run_all(settings, [], flags, check_stop=check_stop, environ=os.environ, child=child))
"""
COUNTING = """
import os, signal, sys, time
signals = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: signals.append(number))
os.write(1, b"ready\\n")
while not signals:
    time.sleep(0.01)
time.sleep(0.5)
sys.exit(42 if signals == [signal.SIGTERM] else 1)
"""


def test_ctrl_c_in_a_terminal_is_one_signal_for_each_process(tmp_path: Path) -> None:
    """A terminal sends it to the whole group; a second one, from the parent, would end a run at once."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), COUNTING],
        cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert parent.stdout is not None
    assert [parent.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    os.killpg(parent.pid, signal.SIGINT)
    assert parent.wait(240) == ExitCode.INTERRUPTED


@pytest.mark.slow
def test_nothing_is_imported_from_the_folder_where_it_is_started(tmp_path: Path) -> None:
    """By no process, if the command does not."""
    (tmp_path / "job").mkdir()
    (tmp_path / "job/__init__.py").write_text("raise SystemExit(99)")
    values = {"devices": 2, "dataset": "/nothing", "cache_dir": tmp_path / "cache", "storage_uri": tmp_path / "runs"}
    env = process_environment(values) | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-P", "-m", "job", "--worker-wait-seconds=1"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode in (ExitCode.BAD_INPUT, ExitCode.PEERS_MISSING), done.stderr


def test_a_port_is_chosen_that_is_free() -> None:
    """So that two runs on one machine do not meet each other."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert devices.free_port(port, 2) > port


def test_runs_that_start_at_the_same_time_choose_other_ports() -> None:
    """They open them only later. A port that was named is taken, and refused in words when there are not enough."""

    def port(may_choose_port: bool = True, **values: Any) -> str:
        (first, *_) = devices.flags_of(Settings(**values), 2, may_choose_port=may_choose_port)
        return next(word for word in first if word.startswith("--worker-port="))

    assert len({port() for _ in range(10)}) > 1
    assert port(False, worker_port=3000) == "--worker-port=3000"
    with pytest.raises(InvalidSettings, match="THAW_WORKER_PORT=65534: ends at port 65536"):
        port(False, worker_port=65534)
    with pytest.raises(InvalidSettings, match="THAW_WORKERS=600 with 2 devices each are 1200 processes"):
        port(False, workers=600, batch_size=2000, worker_host="h{worker}")


@pytest.mark.parametrize(("asked", "expected"), [("auto", 1), ("3", 3)])
def test_without_a_gpu_there_is_one_process_unless_more_are_asked_for(asked: str, expected: int) -> None:
    assert devices.num_devices(Settings(devices=asked), {}) == expected


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, ["0", "1", "2"]), ("2,0", ["2", "0"]), ("MIG-1, MIG-2", ["MIG-1", "MIG-2"]), ("", ["0", "1", "2"])],
)
def test_the_driver_counts_the_gpus(monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: list[str]) -> None:
    """It heeds CUDA_VISIBLE_DEVICES itself, whose names are passed on to the processes."""
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    monkeypatch.setattr("job.nvidia.CUDA", "/no/driver")
    assert visible_gpus(environ) == []
    monkeypatch.setattr("ctypes.CDLL", driver(num_gpus=len(expected)))
    assert visible_gpus(environ) == expected
    assert devices.num_devices(Settings(), environ) == len(expected)
    with pytest.raises(InvalidSettings, match=f"THAW_BATCH_SIZE=1: with {len(expected)} GPUs"):
        devices.num_devices(Settings(batch_size=1), environ)
    with pytest.raises(InvalidSettings, match=f"the number of GPUs that may be used is {len(expected)}$"):
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
    children: list[str] = []
    place = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")

    def are_there() -> bool:
        children[:] = place.read_text().split()
        return len(children) == 2

    until(are_there)
    # They ask the system for it as soon as they run, and end by themselves if it is too late for that.
    time.sleep(2)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until(lambda: not any(_is_alive(child) for child in children))


def _is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
