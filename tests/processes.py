"""Runs in processes of their own: begun, watched in their logs, and what they leave."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from job.storage import LocalStore
from tests.conftest import REPOSITORY
from tests.gcs_server import BUCKET, GcsServer

Environment = Callable[..., dict[str, str]]


def run_json(env: dict[str, str], gcs: GcsServer | None = None) -> dict[str, Any]:
    """The record of a run, in a folder or in the bucket of a server."""
    place = f"{env['THAW_STORAGE_URI']}/{env['THAW_RUN_ID']}/run.json"
    in_bucket = gcs and gcs.objects.get(place.removeprefix(f"gs://{BUCKET}/"))
    return dict(json.loads(in_bucket.data if in_bucket else Path(place).read_bytes()))


def report(env: dict[str, str]) -> dict[str, Any]:
    """The report of a finished run in a folder, for programs."""
    return dict(json.loads(Path(env["THAW_STORAGE_URI"], env["THAW_RUN_ID"], "report/report.json").read_bytes()))


def result(env: dict[str, str], gcs: GcsServer | None = None) -> tuple[dict[str, Any], list[list[Any]]]:
    """What must be the same however often a run was killed: the outcome, and what each epoch learned."""
    record = run_json(env, gcs)
    learned = ("phase", "epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    return record["outcome"], [[epoch[key] for key in learned] for epoch in record["history"]]


def place_of(store: LocalStore) -> dict[str, str]:
    """Where the run in a store is, as the environment of a process says it."""
    return {"THAW_STORAGE_URI": str(store.root.parent), "THAW_RUN_ID": store.root.name}


def contents(folder: Path) -> dict[str, bytes]:
    """The content of each file below a folder, by its name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def begin(env: dict[str, str], *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "job", *argv],
        env=env, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run_without(modules: str, *argv: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the program to its end, as a user would; with the exit code 99 if it imports one of these modules."""
    program = (
        "import sys; from job.__main__ import main; code = main(sys.argv[2:]); "
        "sys.exit(99 if set(sys.argv[1].split()) & set(sys.modules) else code)"
    )
    command = [sys.executable, "-c", program, modules, *argv]
    return subprocess.run(command, env=env, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)


def wait_for(process: subprocess.Popen[str], name: str, **facts: Any) -> dict[str, Any]:
    """Read the log until an event comes, and return it."""
    assert process.stdout is not None
    for line in process.stdout:
        event: dict[str, Any] = json.loads(line)
        if event["event"] == name and facts.items() <= event.items():
            return event
    raise AssertionError(f"the process ended before {name} {facts}")
