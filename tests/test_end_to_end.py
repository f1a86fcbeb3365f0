"""The program as its users know it: a process with an environment, really killed, and its exit code."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.errors import ExitCode
from tests.conftest import REPOSITORY, job

Environment = Callable[..., dict[str, str]]

KILLS_IN_A_RUN = 3


def run_json(env: dict[str, str]) -> dict[str, Any]:
    path = Path(env["THAW_STORAGE_URI"]) / env["THAW_RUN_ID"] / "run.json"
    return dict(json.loads(path.read_text()))


def result(env: dict[str, str]) -> tuple[dict[str, Any], list[list[Any]]]:
    """What must be the same however often a run was killed: the outcome, and what each epoch learned."""
    record = run_json(env)
    learned = ("phase", "epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    return record["outcome"], [[epoch[key] for key in learned] for epoch in record["history"]]


def events(stdout: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stdout.splitlines()]


def start(env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "job"],
        env=env, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], name: str, **facts: Any) -> None:
    """Read the log until an event comes."""
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == name and facts.items() <= event.items():
            return
    raise AssertionError(f"the process ended before {name} {facts}")


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outcome of the small run in one go, and its log."""
    from tests.conftest import SMALL_RUN

    places = {"data_dir": prepared, "storage_uri": tmp_path_factory.mktemp("undisturbed")}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("THAW_")}
    env = clean | {f"THAW_{name.upper()}": str(value) for name, value in (SMALL_RUN | places).items()}
    done = job(env=env)
    assert done.returncode == ExitCode.COMPLETE, done.stderr
    return {"env": env, "stdout": done.stdout, "stderr": done.stderr, "outcome": run_json(env)["outcome"]}


def test_off_a_terminal_each_event_is_one_line_of_json(undisturbed: dict[str, Any]) -> None:
    """With time, level, event and run id; one line an epoch and a commit, none a step."""
    log = events(undisturbed["stdout"])
    assert all({"timestamp", "level", "event", "run_id"} <= event.keys() for event in log)
    names = [event["event"] for event in log]
    assert names.count("epoch_finished") == 4
    assert names.count("committed") == 4
    assert len(log) < 25


def test_tensorflow_is_silent_on_start(undisturbed: dict[str, Any]) -> None:
    """Standard error is for what matters, and nothing did."""
    assert undisturbed["stderr"] == ""


def test_a_finished_run_is_answered_without_tensorflow(undisturbed: dict[str, Any]) -> None:
    """It prints the outcome and ends with 0."""
    program = (
        "import sys; from job.__main__ import main; code = main([]); "
        "sys.exit(99 if 'tensorflow' in sys.modules else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=undisturbed["env"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == ExitCode.COMPLETE
    (answer,) = events(done.stdout)
    assert answer["event"] == "run_already_done"
    assert answer["test_accuracy"] == pytest.approx(undisturbed["outcome"]["test_accuracy"], rel=1e-5)


def test_a_finished_run_with_other_settings_ends_with_3(undisturbed: dict[str, Any]) -> None:
    """The difference is in the answer."""
    done = job(env=undisturbed["env"] | {"THAW_DROPOUT": "0.5"})
    assert done.returncode == ExitCode.RUN_MISMATCH
    (answer,) = events(done.stdout)
    assert "THAW_DROPOUT: the run has 0.2, this start 0.5" in answer["reason"]


def test_data_that_is_not_there_ends_with_4(environment: Environment, tmp_path: Path) -> None:
    """With the ways out."""
    done = job(env=environment(data_dir=tmp_path / "nothing"))
    assert done.returncode == ExitCode.BAD_INPUT
    assert "THAW_DATA_DIR" in events(done.stdout)[-1]["hint"]


def test_data_with_a_broken_description_ends_with_4(environment: Environment, prepared: Path, tmp_path: Path) -> None:
    """A data set that TFDS does not know is described by its files alone."""
    shutil.copytree(prepared, tmp_path / "copied")
    (tmp_path / "copied/two_shapes/1.0.0/features.json").write_text('{"na')
    done = job(env=environment(data_dir=tmp_path / "copied"))
    assert done.returncode == ExitCode.BAD_INPUT, done.stdout
    assert str(tmp_path / "copied") in events(done.stdout)[-1]["reason"]


def test_weights_that_cannot_be_downloaded_end_with_4(environment: Environment, tmp_path: Path) -> None:
    """The real download code runs and finds no network: its proxy is a closed port of this machine."""
    env = environment(backbone="MobileNetV2", weights="imagenet", image_size=32)
    done = job(env=env | {"https_proxy": "http://127.0.0.1:9", "KERAS_HOME": str(tmp_path)})
    assert done.returncode == ExitCode.BAD_INPUT, done.stdout
    assert "ImageNet weights of MobileNetV2" in events(done.stdout)[-1]["reason"]


def test_a_store_that_cannot_be_written_ends_with_44(environment: Environment) -> None:
    """/proc takes no folder, for root neither."""
    done = job(env=environment(storage_uri="/proc/thaw"))
    assert done.returncode == ExitCode.STORAGE_UNAVAILABLE
    assert "/proc/thaw" in events(done.stdout)[-1]["reason"]


def test_a_scratch_folder_that_cannot_be_written_ends_with_2(environment: Environment) -> None:
    """The variable is named."""
    done = job(env=environment(cache_dir="/proc/thaw"))
    assert done.returncode == ExitCode.INVALID_SETTINGS
    assert "THAW_CACHE_DIR='/proc/thaw'" in events(done.stdout)[-1]["reason"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_commits_and_ends_with_42(
    environment: Environment, undisturbed: dict[str, Any], number: signal.Signals
) -> None:
    """And the next start ends with the bits of a run that was left alone."""
    env = environment()
    process = start(env)
    wait_for(process, "step_compiled", phase="head")
    process.send_signal(number)
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    assert events(stdout)[-1]["reason"].startswith(f"told to stop by {number.name}")
    assert run_json(env)["attempts"][-1]["exit_code"] == ExitCode.INTERRUPTED
    assert run_json(env)["checkpoints"]
    assert job(env=env).returncode == ExitCode.COMPLETE
    assert result(env) == result(undisturbed["env"])


def test_a_second_signal_ends_the_process_at_once(environment: Environment) -> None:
    """The last commit stands, and the exit code is still not 0."""
    process = start(environment(head_epochs=1000, grace_seconds=600))
    wait_for(process, "committed", phase="head")
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED


HANGS = """
import sys, time
from job import __main__, attempt
attempt.make = lambda *args, **kwargs: [print("hangs", flush=True), time.sleep(600)]
sys.exit(__main__.main([]))
"""


def test_a_run_that_does_not_stop_in_its_grace_period_is_ended(environment: Environment) -> None:
    """By a thread that does not depend on what the main thread is doing."""
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS],
        env=environment(grace_seconds=1), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    assert "1 s after SIGTERM" in stderr


def disturb(env: dict[str, str], rng: random.Random, kinds: list[signal.Signals]) -> list[int]:
    """Kill a run at random moments, then let it end; returns the exit codes."""
    codes = []
    for _ in range(KILLS_IN_A_RUN):
        process = start(env)
        assert process.stdout is not None
        if json.loads(process.stdout.readline())["event"] == "run_claimed":
            # Between the claim and the end: importing, loading, compiling, training, evaluating, exporting.
            time.sleep(rng.uniform(0, 7))
            process.send_signal(rng.choice(kinds))
        process.communicate(timeout=60)
        codes.append(process.returncode)
    done = job(env=env)
    codes.append(done.returncode)
    assert done.returncode == ExitCode.COMPLETE, done.stdout + done.stderr
    return codes


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 14))])
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


@pytest.mark.parametrize(
    ("phase", "number"),
    [("head", signal.SIGKILL), ("fine_tune", signal.SIGKILL), ("fine_tune", signal.SIGTERM)],
)
def test_a_run_killed_in_a_phase_ends_with_the_same_bits(
    environment: Environment, undisturbed: dict[str, Any], phase: str, number: signal.Signals
) -> None:
    """Right after a commit inside an epoch of the phase."""
    env = environment(checkpoint_every_seconds=0)
    process = start(env)
    wait_for(process, "committed", phase=phase, step=2)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (ExitCode.INTERRUPTED if number == signal.SIGTERM else -number)
    done = job(env=env)
    assert done.returncode == ExitCode.COMPLETE
    restored = [event for event in events(done.stdout) if event["event"] == "restored"]
    assert restored[0]["phase"] == phase
    assert restored[0]["step"] >= 2
    assert result(env) == result(undisturbed["env"])
