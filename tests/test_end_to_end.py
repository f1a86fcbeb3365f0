"""The program as its users know it: a process with an environment, really killed, and its exit code."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from job.errors import ExitCode
from tests.conftest import REPOSITORY, job, slowly
from tests.gcs_server import BUCKET, GcsServer
from tests.ports import free_port
from tests.processes import Environment, begin, place_of, result, run_json, run_without, wait_for
from tests.runs import ONE_PHASE, Whole

KILLS_IN_A_RUN = 2


def events(stdout: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stdout.splitlines()]


@pytest.fixture(scope="module")
def undisturbed(undisturbed_process: dict[str, str]) -> dict[str, Any]:
    """The small run in one go, in a process: its environment, its log, its outcome."""
    folder = Path(undisturbed_process["THAW_STORAGE_URI"])
    return {
        "env": undisturbed_process,
        "stdout": (folder / "stdout").read_text(),
        "stderr": (folder / "stderr").read_text(),
        "outcome": run_json(undisturbed_process)["outcome"],
    }


def test_off_a_terminal_each_event_is_one_line_of_json(undisturbed: dict[str, Any]) -> None:
    """With time, level, event, run id, phase and step; one line an epoch and a commit. TensorFlow is silent."""
    log = events(undisturbed["stdout"])
    assert all({"time", "level", "event", "run_id", "phase", "step"} <= event.keys() for event in log)
    names = [event["event"] for event in log]
    assert names.count("epoch_finished") == 4
    assert names.count("committed") == 4
    assert len(log) < 25
    assert undisturbed["stderr"] == ""


def test_a_finished_run_is_answered_without_tensorflow(undisturbed: dict[str, Any]) -> None:
    """It prints the outcome and ends with 0."""
    done = run_without("tensorflow matplotlib jinja2", env=undisturbed["env"])
    assert done.returncode == ExitCode.COMPLETE
    (answer,) = events(done.stdout)
    assert answer["event"] == "run_already_done"
    assert answer["test_accuracy"] == pytest.approx(undisturbed["outcome"]["test_accuracy"], rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "code", "expected"),
    [
        pytest.param({"data_dir": "/nothing"}, ExitCode.BAD_INPUT, "THAW_DATA_DIR", marks=pytest.mark.slow),
        pytest.param({"data_dir": "BROKEN"}, ExitCode.BAD_INPUT, "/copied", marks=pytest.mark.slow),
        pytest.param(
            {"backbone": "MobileNetV2", "weights": "imagenet", "image_size": 32},
            ExitCode.BAD_INPUT,
            "ImageNet weights of MobileNetV2",
            marks=pytest.mark.slow,
        ),
        pytest.param({"storage_uri": "/proc/thaw"}, ExitCode.STORAGE_UNAVAILABLE, "/proc/thaw", marks=pytest.mark.slow),
        ({"cache_dir": "/proc/thaw"}, ExitCode.INVALID_SETTINGS, "THAW_CACHE_DIR='/proc/thaw'"),
    ],
    ids=["no data", "a broken description", "no network for weights", "no store", "no folder for temporary files"],
)
def test_what_is_missing_is_named_with_an_exit_code_of_its_own(
    environment: Environment, prepared: Path, tmp_path: Path, settings: dict[str, str], code: ExitCode, expected: str
) -> None:
    """The proxy is a closed port of this machine; /proc takes no folder, for root neither."""
    copied = shutil.copytree(prepared / "two_shapes", tmp_path / "copied/two_shapes").parent
    (copied / "two_shapes/1.0.0/features.json").write_text('{"na')
    settings = {name: str(copied) if value == "BROKEN" else value for name, value in settings.items()}
    no_network = {"https_proxy": "http://127.0.0.1:9", "KERAS_HOME": str(tmp_path)}
    done = job(env=environment(**settings) | no_network)
    last = events(done.stdout)[-1]
    assert done.returncode == last["exit_code"] == code, done.stdout
    assert expected in last["reason"] + last["hint"]


def termination_message(env: dict[str, str]) -> dict[str, Any]:
    data = Path(env["THAW_TERMINATION_LOG"]).read_bytes()
    assert len(data) <= 4096
    return dict(json.loads(data))


@pytest.mark.slow
def test_a_log_without_a_reader_changes_nothing(environment: Environment) -> None:
    """A closed pipe, as after Ctrl-C in `thaw | tee log`."""
    env = environment(head_epochs=1000)
    process = begin(env)
    wait_for(process, "step_compiled", phase="head")
    assert process.stdout is not None
    process.stdout.close()
    time.sleep(1)
    process.terminate()
    assert process.wait(timeout=240) == ExitCode.INTERRUPTED
    assert run_json(env)["attempts"][-1]["exit_code"] == ExitCode.INTERRUPTED


@pytest.mark.parametrize("log_format", ["console", *slowly("json")])
@pytest.mark.parametrize("out", ["a closed pipe", "/dev/full"])
def test_a_log_that_cannot_be_written_does_not_decide_the_exit_code(
    undisturbed: dict[str, Any], log_format: str, out: str
) -> None:
    """Neither of a finished run nor of a wrong setting."""
    for changes, expected in (({}, ExitCode.COMPLETE), ({"THAW_DROPOUT": "0.5"}, ExitCode.RUN_MISMATCH)):
        env = undisturbed["env"] | {"THAW_LOG_FORMAT": log_format} | changes
        reader, writer = os.pipe() if out == "a closed pipe" else (None, os.open(out, os.O_WRONLY))
        if reader is not None:
            os.close(reader)
        try:
            command = [sys.executable, "-m", "job"]
            done = subprocess.run(command, cwd=REPOSITORY, env=env, stdout=writer, stderr=subprocess.PIPE, check=False)
        finally:
            os.close(writer)
        assert done.returncode == expected, done.stderr


@pytest.mark.parametrize("err", ["a closed pipe", "/dev/full"])
def test_standard_error_that_cannot_be_written_does_not_decide_the_exit_code(
    undisturbed: dict[str, Any], err: str
) -> None:
    """Of a complete run whose termination message is refused, of a wrong setting, and of a question that fails."""
    cases = (
        ((), {"THAW_TERMINATION_LOG": "/proc/thaw"}, ExitCode.COMPLETE),
        ((), {"THAW_BATCH_SIZE": "0"}, ExitCode.INVALID_SETTINGS),
        (("status", "--run", "/proc/thaw"), {}, ExitCode.BAD_INPUT),
    )
    for words, changes, expected in cases:
        reader, writer = os.pipe() if err == "a closed pipe" else (None, os.open(err, os.O_WRONLY))
        if reader is not None:
            os.close(reader)
        try:
            command = [sys.executable, "-m", "job", *words]
            env = undisturbed["env"] | changes
            done = subprocess.run(command, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=writer, check=False)
        finally:
            os.close(writer)
        assert done.returncode == expected, (words, changes, done.stdout)


@pytest.mark.parametrize(("closed", "num_lines"), [("2>&-", 1), ("<&- >&- 2>&-", 0)])
def test_a_stream_that_is_closed_at_the_start_changes_nothing(
    undisturbed: dict[str, Any], closed: str, num_lines: int
) -> None:
    """As some supervisors start a process."""
    command = ["sh", "-c", f'exec "$0" -m job {closed}', sys.executable]
    done = subprocess.run(command, cwd=REPOSITORY, env=undisturbed["env"], capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (ExitCode.COMPLETE, num_lines, "")


def test_a_wrong_setting_is_in_the_termination_message(environment: Environment, tmp_path: Path) -> None:
    """`kubectl describe pod` shows it, with a hint."""
    env = environment(termination_log=tmp_path / "log", batch_size=0)
    assert job(env=env).returncode == ExitCode.INVALID_SETTINGS
    message = termination_message(env)
    assert (message["exit_code"], message["phase"]) == (2, "start")
    assert "THAW_BATCH_SIZE='0'" in message["reason"]
    assert message["hint"]


def test_a_stop_while_the_run_is_held_by_another_ends_with_42(environment: Environment) -> None:
    """Waiting is no work that could be lost; a probe is answered, and the log has the namespace of the holder."""
    with begin(environment(head_epochs=1000, job_uid="first", namespace="team-a")) as first:
        wait_for(first, "run_claimed")
        port = free_port()
        with begin(environment(head_epochs=1000, job_uid="second", wait_seconds=3600, metrics_port=port)) as second:
            waiting = wait_for(second, "waiting")
            assert " of Job first in namespace team-a" in waiting["held_by"]
            assert waiting["at_most_seconds"] == 3600
            assert urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=60).status == 200
            second.terminate()
            second.communicate(timeout=240)
            assert second.returncode == ExitCode.INTERRUPTED
        first.kill()


@pytest.mark.slow
def test_a_stop_while_data_is_fetched_ends_with_42(gcs: GcsServer, environment: Environment, prepared: Path) -> None:
    """The store hangs; what is complete stays for the next attempt."""
    for path in (path for path in (prepared / "two_shapes").rglob("*") if path.is_file()):
        gcs.put(f"tfds/{path.relative_to(prepared).as_posix()}", path.read_bytes(), None)
    gcs.fail("stall", at=0, times=1000, operation="read")
    process = begin(environment(data_dir=f"gs://{BUCKET}/tfds", job_uid="first"))
    wait_for(process, "run_claimed")
    while not any(operation == "read" for operation, _ in list(gcs.requests)):
        time.sleep(0.05)
    process.terminate()
    stdout, _ = process.communicate(timeout=240)
    assert process.returncode == ExitCode.INTERRUPTED, stdout


@pytest.mark.slow
def test_a_stop_while_the_store_hangs_ends_with_42_in_the_grace_period(
    gcs: GcsServer, environment: Environment, tmp_path: Path
) -> None:
    """The commit cannot be made; the last one stands, and the message says so."""
    env = environment(
        storage_uri=f"gs://{BUCKET}/runs", head_epochs=1000, grace_seconds=2, termination_log=tmp_path / "log"
    )
    process = begin(env)
    wait_for(process, "committed", phase="head")
    gcs.fail("stall", at=0, times=1000)
    process.terminate()
    process.communicate(timeout=240)
    assert process.returncode == ExitCode.INTERRUPTED
    message = termination_message(env)
    assert "1.8 s after SIGTERM, because it had not stopped" in message["reason"]
    assert message["last_commit"] is not None
    gcs.clear()


IMPORTS_SLOWLY = """
import sys, time
from importlib.abc import MetaPathFinder
from job import __main__

class Slow(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "tensorflow":
            time.sleep(6)

sys.meta_path.insert(0, Slow())
sys.exit(__main__.main([]))
"""


@pytest.mark.slow
def test_a_lease_is_renewed_while_tensorflow_is_imported(environment: Environment) -> None:
    """That takes longer than a short lease, on a slow disk."""
    env = environment(lease_seconds=5, head_epochs=1, fine_tune_epochs=0)
    with subprocess.Popen(
        [sys.executable, "-c", IMPORTS_SLOWLY], env=env, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as process:
        wait_for(process, "run_claimed")
        assert process.stdout is not None
        revisions = [run_json(env)["revision"]]
        next_event = threading.Thread(target=process.stdout.readline)
        next_event.start()
        while next_event.is_alive():
            revisions.append(run_json(env)["revision"])
            time.sleep(0.05)
        process.communicate()
    assert process.returncode == ExitCode.COMPLETE
    assert len(set(revisions)) >= 3


HANGS = """
import sys, time
from job import __main__
from job.run import attempt, lease
from job.run.record import Identity

def hang(settings, *, store, holder, context):
    lease.claim(store, Identity.of(settings), holder, lease_seconds=600, context=context)
    context.progress.stage, context.progress.step = "head", 17
    context.progress.committed("a checkpoint", "head", 10)
    print("hangs", flush=True)
    time.sleep(600)

attempt.run_attempt = hang
sys.exit(__main__.main([]))
"""


@pytest.mark.parametrize(
    ("grace_seconds", "signals", "reason"),
    [
        (600, [signal.SIGINT, signal.SIGTERM], "ended at once, by a second signal, SIGTERM"),
        pytest.param(
            *(1, [signal.SIGTERM], "ended 0.9 s after SIGTERM, because it had not stopped"), marks=pytest.mark.slow
        ),
    ],
)
def test_a_run_that_does_not_stop_is_ended_after_its_grace_period_or_by_a_second_signal(
    environment: Environment, tmp_path: Path, grace_seconds: int, signals: list[signal.Signals], reason: str
) -> None:
    """The first signal is answered at once. What ends the process says so, and what is lost; the attempt has no end."""
    env = environment(grace_seconds=grace_seconds, termination_log=tmp_path / "log")
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS], env=env, cwd=REPOSITORY,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    for number in signals:
        process.send_signal(number)
        if number == signals[0]:
            said = json.loads(process.stdout.readline())
            assert (said["event"], said["signal"], said["uncommitted_steps"]) == ("stopping", number.name, 7)
    _, stderr = process.communicate(timeout=240)
    message = termination_message(env)
    assert process.returncode == message["exit_code"] == ExitCode.INTERRUPTED
    assert stderr.strip() == message["reason"] == f"{reason}; steps lost: 7; what was committed stands"
    assert run_json(env)["attempts"][-1]["exit_code"] is None
    status = json.loads(job("status", "--json", env=env).stdout)
    assert status["condition"] == "killed"


TAKES_THE_HANDLER = """
import ctypes, os, signal, sys, time
from job.__main__ import StopSignal
from job.errors import Interrupted
from job.observe.progress import Progress

stop = StopSignal(Progress())
stop.install()
nothing = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: None)
ctypes.CDLL(None).signal(int(signal.SIGTERM), nothing)
os.kill(os.getpid(), signal.SIGTERM)
end = time.monotonic() + 120
try:
    while time.monotonic() < end:
        stop.check()
        time.sleep(0.01)
except Interrupted:
    os._exit(42)
os._exit(1)
"""


def test_a_stop_is_heard_while_a_library_has_the_handler() -> None:
    """As TensorFlow does while it connects workers."""
    done = subprocess.run([sys.executable, "-c", TAKES_THE_HANDLER], cwd=REPOSITORY, timeout=240)
    assert done.returncode == ExitCode.INTERRUPTED


def disturb(env: dict[str, str], rng: random.Random, kinds: list[signal.Signals]) -> list[int]:
    """Kill a run at random moments, then let it end; returns the exit codes."""
    codes = []
    for _ in range(KILLS_IN_A_RUN):
        process = begin(env)
        assert process.stdout is not None
        if json.loads(process.stdout.readline())["event"] == "run_claimed":
            # Between the claim and the end: importing, loading, compiling, training, evaluating, exporting.
            time.sleep(rng.uniform(0, 5))
            process.send_signal(rng.choice(kinds))
        process.communicate(timeout=240)
        codes.append(process.returncode)
    done = job(env=env)
    codes.append(done.returncode)
    assert done.returncode == ExitCode.COMPLETE, done.stdout + done.stderr
    return codes


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_run_killed_at_random_ends_with_the_same_bits(
    environment: Environment, undisturbed: dict[str, Any], seed: int
) -> None:
    """SIGKILL and SIGTERM, several times in one run, at moments that the seed chooses."""
    rng = random.Random(seed)
    env = environment(checkpoint_every_seconds=rng.choice([0, 0.2, 120]))
    codes = disturb(env, rng, [signal.SIGKILL, signal.SIGTERM])
    assert set(codes) <= {-signal.SIGKILL, ExitCode.INTERRUPTED, ExitCode.COMPLETE}, codes
    # Once complete, it stays complete: whatever came after has only asked.
    assert ExitCode.INTERRUPTED not in codes[codes.index(ExitCode.COMPLETE) :], codes
    assert result(env) == result(undisturbed["env"])


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_and_then_killed_ends_with_the_same_bits(
    environment: Environment, whole: Whole, tmp_path: Path, number: signal.Signals
) -> None:
    """The stop commits, ends with 42, and its message has phase, step and last commit.

    The kill comes right after a commit inside an epoch. Nothing stays in the system's folder for temporary files. Kills
    in any phase are above.
    """
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    env = environment(**ONE_PHASE, termination_log=tmp_path / "log", checkpoint_every_seconds=0)
    env |= {"TMPDIR": str(temporary)}
    process = begin(env)
    wait_for(process, "step_compiled", phase="head")
    process.send_signal(number)
    stdout, _ = process.communicate(timeout=240)
    assert process.returncode == ExitCode.INTERRUPTED
    assert number.name in events(stdout)[-1]["reason"]
    record, message = run_json(env), termination_message(env)
    assert record["attempts"][-1]["exit_code"] == message["exit_code"] == ExitCode.INTERRUPTED
    assert message["phase"] == record["checkpoints"][-1]["phase"]
    assert message["step"] == message["last_commit"]["step"] == record["checkpoints"][-1]["step"]
    process = begin(env)
    wait_for(process, "committed", reason="interval")
    process.kill()
    process.communicate(timeout=240)
    assert process.returncode == -signal.SIGKILL
    assert list(temporary.iterdir()) == []
    done = job(env=env)
    assert done.returncode == termination_message(env)["exit_code"] == ExitCode.COMPLETE
    (restored,) = [event for event in events(done.stdout) if event["event"] == "restored"]
    assert restored["step"] > message["step"]
    assert result(env) == result(place_of(whole(**ONE_PHASE)[0]))
