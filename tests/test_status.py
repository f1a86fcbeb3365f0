"""How runs are doing, for a person and for a program, while they run and when they have ended."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from job.cli import list as list_command
from job.cli import status as status_command
from job.cli.tables import plain
from job.errors import ExitCode, RunUnavailable
from job.run.record import RECORD_NAME
from job.storage import MISSING, LocalStore
from tests.conftest import REPOSITORY, job, slowly
from tests.gcs_server import BUCKET, GcsServer
from tests.processes import Environment, begin, wait_for
from tests.recorded import NOON, OUTCOME, attempt, record
from tests.runs import Undisturbed
from tests.terminal import run_in_terminal

Said = Callable[[], str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    return lambda: capsys.readouterr().out


def status_of(run: str, said: Said) -> dict[str, Any]:
    assert status_command.answer(status_command.Options(run=run, as_json=True)) == ExitCode.COMPLETE
    return dict(json.loads(said()))


def rows_of(place: str, said: Said) -> list[dict[str, Any]]:
    assert list_command.answer(list_command.Options(storage_uri=place, as_json=True)) == ExitCode.COMPLETE
    return [json.loads(line) for line in said().splitlines()]


def keep(store: LocalStore, folder: str, **fields: Any) -> None:
    """A record of a run that never was."""
    content = record(**({"run_id": folder} | fields))
    store.write(f"{folder}/{RECORD_NAME}", content.model_dump_json().encode(), if_version=MISSING)


def test_a_finished_run_says_all_that_is_known(undisturbed_run: Undisturbed, said: Said) -> None:
    """Outcome, attempts, phases, and no time left."""
    store, _, settings = undisturbed_run
    found = status_of(store.uri, said)
    assert (found["run_id"], found["condition"], found["state"]) == ("small", "done", "done")
    assert found["fingerprint"] == settings.fingerprint()
    assert [(phase["name"], phase["step"], phase["num_steps"]) for phase in found["phases"]] == [
        ("head", 6, 6), ("fine_tune", 6, 6)
    ]  # fmt: skip
    assert (found["progress_ratio"], found["seconds_left"], found["held_by"]) == (1.0, 0.0, None)
    assert [entry["exit_code"] for entry in found["attempts"]] == [0]
    assert found["last_commit"]["phase"] == "fine_tune"
    assert 0 <= found["outcome"]["test_accuracy"] <= 1
    status_command.answer(status_command.Options(run=store.uri))
    table = said()
    for expected in ("small", "done", "step 6 of 6, 2 of 2 epochs done", "test accuracy", "exit code 0"):
        assert expected in table


@pytest.mark.slow
def test_a_run_is_followed_from_its_start_to_its_kill(environment: Environment, tmp_path: Path) -> None:
    """A living holder is named; after a kill the attempt has no end, and the next start carries on."""
    env = environment(head_epochs=1000)
    process = begin(env)
    wait_for(process, "committed", phase="head")
    running = job("status", "--json", env=env)
    process.kill()
    process.wait()
    found = json.loads(running.stdout)
    assert (running.returncode, found["condition"], found["state"]) == (0, "running", "head")
    assert f":{process.pid}" in found["held_by"]
    assert found["held_seconds"] > 0
    assert found["seconds_left"] > 0
    assert 0 < found["progress_ratio"] < 1
    killed = job("status", env=env)
    assert "killed in head; the same start carries it on" in killed.stdout
    assert "held by" not in killed.stdout
    listed = json.loads(job("list", "--json", str(tmp_path / "runs"), env=env).stdout)
    assert (listed["run_id"], listed["condition"], listed["state"]) == ("small", "killed", "head")


@pytest.mark.slow
def test_attempts_that_are_killed_at_one_place_are_told_of_by_the_next(environment: Environment) -> None:
    """In its log and in the status: from the second on memory is the likely cause."""
    env = environment(cache="memory")

    def killed_after(event: str) -> dict[str, Any]:
        process = begin(env)
        found = wait_for(process, event)
        process.kill()
        process.wait()
        return found

    killed_after("run_claimed")
    told = [killed_after("previous_attempt_killed") for _ in range(2)]
    assert [(event["attempt"], event["in_a_row"]) for event in told] == [(1, 1), (2, 2)]
    assert "the run carries on" in told[0]["hint"]
    assert "THAW_CACHE=disk" in told[1]["hint"]
    found = json.loads(job("status", "--json", env=env).stdout)
    assert found["killed_in_a_row"] == 3
    assert "as did 3 in a row since the last commit: memory is the likely cause" in job("status", env=env).stdout


def watch(run: str, until: str, then: Callable[[subprocess.Popen[bytes]], None]) -> tuple[int, str]:
    words = ["status", "--run", run, "--watch"]
    code, text = run_in_terminal(words, cwd=REPOSITORY, until=lambda text: until in text, then=then)
    assert "Traceback" not in text
    return code, text


@pytest.mark.slow
def test_watching_ends_when_the_run_is_done(undisturbed_run: Undisturbed, tmp_path: Path) -> None:
    """What is on the terminal changes with the record."""
    store = LocalStore(tmp_path / "small")
    done = undisturbed_run[0].read(RECORD_NAME).data
    before = json.loads(done) | {"state": "evaluate", "outcome": None}
    version = store.write(RECORD_NAME, json.dumps(before).encode(), if_version=MISSING)
    code, text = watch(
        store.uri, "in evaluate", lambda process: store.write(RECORD_NAME, done, if_version=version) and None
    )
    assert (code, "test accuracy" in text) == (ExitCode.COMPLETE, True)


def test_watching_ends_on_a_signal(tmp_path: Path) -> None:
    """Ctrl-C is no error to explain."""
    keep(LocalStore(tmp_path), "a")
    code, _ = watch(f"{tmp_path}/a", "killed in prepare", lambda process: process.send_signal(2))
    assert code == ExitCode.INTERRUPTED


def test_runs_are_listed_with_their_condition(tmp_path: Path, said: Said) -> None:
    """The newest first; a damaged record is a row that says so, and what is no run is none."""
    store = LocalStore(tmp_path)
    end = NOON + timedelta(minutes=5)
    keep(store, "old", state="done", attempts=(attempt(end=end, exit_code=0),))
    keep(store, "new", state="head", attempts=(attempt(), attempt(number=2, start=NOON + timedelta(days=1))))
    keep(store, "diverged", state="fine_tune", attempts=(attempt(end=NOON + timedelta(hours=1), exit_code=5),))
    store.write(f"broken/{RECORD_NAME}", b'{"run_id"', if_version=MISSING)
    store.write("no run/file", b"", if_version=MISSING)
    rows = rows_of(store.uri, said)
    assert [(row["run_id"], row["condition"]) for row in rows] == [
        ("new", "killed"), ("diverged", "failed"), ("old", "done"), ("broken", "damaged")
    ]  # fmt: skip
    assert (rows[2]["test_accuracy"], rows[0]["num_attempts"]) == (0.9, 2)
    assert rows[2]["age_seconds"] == pytest.approx((datetime.now(UTC) - end).total_seconds(), abs=60)
    assert f"broken/{RECORD_NAME} is not a record of this run" in rows[3]["problem"]
    list_command.answer(list_command.Options(storage_uri=store.uri))
    table = said()
    for expected in ("killed in head", "failed in fine_tune", "0.9000", "damaged: "):
        assert expected in table


def test_runs_are_listed_in_the_order_that_is_asked_for(tmp_path: Path, said: Said) -> None:
    """The newest, the most accurate, or by name; those without age or result come last."""
    store = LocalStore(tmp_path)
    for hours, (name, accuracy) in enumerate({"b": 0.7, "c": 0.9, "a": 0.8}.items()):
        ended = attempt(start=NOON + timedelta(hours=hours), end=NOON + timedelta(hours=hours), exit_code=0)
        keep(store, name, state="done", attempts=(ended,), outcome=OUTCOME | {"test_accuracy": accuracy})
    keep(store, "running", state="head")
    store.write(f"broken/{RECORD_NAME}", b"", if_version=MISSING)
    orders = {"age": ["a", "c", "b"], "accuracy": ["c", "a", "b"], "name": ["a", "b"]}
    for order, first in orders.items():
        list_command.answer(list_command.Options(storage_uri=store.uri, sort=order, as_json=True))
        assert [json.loads(line)["run_id"] for line in said().splitlines()][: len(first)] == first


def test_the_first_of_many_runs_are_listed_and_the_others_counted(tmp_path: Path, said: Said) -> None:
    """In the order that is asked for; a program gets the rows alone."""
    store = LocalStore(tmp_path)
    for name in ("b", "c", "a"):
        keep(store, name)
    list_command.answer(list_command.Options(storage_uri=store.uri, sort="name", limit=2))
    assert [line.split()[0] for line in said().splitlines()] == ["run", "a", "b", "..."]
    list_command.answer(list_command.Options(storage_uri=store.uri, sort="name", limit=2, as_json=True))
    assert [json.loads(line)["run_id"] for line in said().splitlines()] == ["a", "b"]
    list_command.answer(list_command.Options(storage_uri=store.uri, limit=3))
    assert "more" not in said()
    with pytest.raises(ValidationError, match="limit"):
        list_command.Options(storage_uri=store.uri, limit=0)


def test_what_runs_differ_in_is_listed_when_it_is_asked_for(tmp_path: Path, said: Said) -> None:
    """A column for each setting that is not the same in all; a damaged record has none."""
    store, settings = LocalStore(tmp_path), {"HEAD_EPOCHS": 2, "FINE_TUNE_EPOCHS": 2, "BATCH_SIZE": 10, "SEED": 3}
    keep(store, "a", settings=settings)
    keep(store, "b", settings=settings | {"DROPOUT": 0.5, "DETERMINISTIC": True})
    store.write(f"broken/{RECORD_NAME}", b"", if_version=MISSING)
    assert all("settings" not in row for row in rows_of(store.uri, said))
    list_command.answer(list_command.Options(storage_uri=store.uri, sort="name", differing=True, as_json=True))
    rows = [json.loads(line) for line in said().splitlines()]
    differing = {"DROPOUT": 0.2, "DETERMINISTIC": False}, {"DROPOUT": 0.5, "DETERMINISTIC": True}, None
    assert [row.get("settings") for row in rows] == [*differing]
    list_command.answer(list_command.Options(storage_uri=store.uri, differing=True))
    header, *lines = said().splitlines()
    assert header.split()[-2:] == ["DROPOUT", "DETERMINISTIC"]
    assert any(line.split()[-2:] == ["0.5", "true"] for line in lines)


def test_a_place_without_runs_is_distinguished_from_a_run_and_from_nothing(tmp_path: Path, said: Said) -> None:
    """Where no run has begun yet there is nothing wrong, not even without a folder."""
    for place, expected in {tmp_path: ".", tmp_path / "nothing": ": there is no such folder yet."}.items():
        assert list_command.answer(list_command.Options(storage_uri=str(place))) == ExitCode.COMPLETE
        assert said() == f"There is no run in {place}{expected}\n"
        assert rows_of(str(place), said) == []
    keep(LocalStore(tmp_path), "a")
    with pytest.raises(RunUnavailable, match="is a run itself"):
        list_command.answer(list_command.Options(storage_uri=str(tmp_path / "a")))


def test_a_run_in_a_bucket_costs_one_read_however_much_it_holds(gcs: GcsServer, said: Said) -> None:
    """One request; one more while it is held; the names of its objects are never listed."""
    for run in range(3):
        content = record(run_id=f"{run}", state="done")
        gcs.put(f"runs/{run}/{RECORD_NAME}", content.model_dump_json().encode(), None)
        for number in range(50):
            gcs.put(f"runs/{run}/checkpoints/{number}", b"", None)
    rows = rows_of(f"gs://{BUCKET}/runs", said)
    assert [row["run_id"] for row in rows] == ["0", "1", "2"]
    assert sorted(operation for operation, _ in gcs.requests) == ["list", *["read"] * 3]
    assert status_of(f"gs://{BUCKET}/runs/1", said)["run_id"] == "1"


def test_a_closed_standard_output_is_no_error(tmp_path: Path) -> None:
    """As `| head` does."""
    store = LocalStore(tmp_path)
    keep(store, "a")
    reading, writing = os.pipe()
    os.close(reading)
    for words in (["list", "--json", store.uri], ["status", "--run", f"{store.uri}/a"]):
        done = subprocess.run(
            [sys.executable, "-m", "job", *words], cwd=REPOSITORY, stdout=writing, stderr=subprocess.PIPE, text=True
        )
        assert (done.returncode, done.stderr) == (ExitCode.INTERRUPTED, "")
    os.close(writing)


@pytest.mark.parametrize("options", [[], *slowly(["--json"])])
def test_a_full_disk_behind_standard_output_is_one_error(tmp_path: Path, options: list[str]) -> None:
    """It is no bug, and its exit code is that of an output that is closed."""
    keep(LocalStore(tmp_path), "a")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "job", "status", "--run", str(tmp_path / "a"), *options],
            cwd=REPOSITORY, stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode == ExitCode.INTERRUPTED
    assert done.stderr.splitlines()[0] == "error: standard output cannot be written: No space left on device"


def test_names_from_outside_do_not_reach_the_terminal_as_they_are() -> None:
    """Neither as markup nor as what moves the cursor."""
    assert plain("[red]a\x1b[2J\n").plain == r"[red]a\x1b[2J\n"
