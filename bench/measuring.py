"""The measuring: processes with their peak memory, alternatives in turn, rows of numbers."""

import contextlib
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

REPOSITORY = Path(__file__).parent.parent
JOB = [sys.executable, "-m", "job"]
LOOK_SECONDS = 0.1
REASON_LENGTH = 400
NO_REASONS = ("Graph execution error", "Detected at node", "File ", "<stack", "[[", "[Op:", "Hint:")

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One thing measured several times; `goal` in words, where there is one."""

    what: str
    unit: str
    values: list[float]
    goal: str = ""

    def __post_init__(self) -> None:
        print(f"  {self.what}: {statistics.median(self.values):.4g} {self.unit}", flush=True)

    def as_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "unit": self.unit,
            "median": statistics.median(self.values),
            "lowest": min(self.values),
            "highest": max(self.values),
            "values": self.values,
            "goal": self.goal,
        }


@dataclass(frozen=True)
class Said:
    """What was found in words; or why something could not be measured, in one line."""

    what: str
    text: str
    is_failure: bool = False

    def __post_init__(self) -> None:
        print(f"  {self.what}: {'FAILED: ' if self.is_failure else ''}{self.text}", flush=True)

    def as_json(self) -> dict[str, Any]:
        return {"what": self.what, "failed" if self.is_failure else "said": self.text}


def failure(what: str, error: BaseException) -> Said:
    """The row of a measurement that raised, with the line of the error that says most."""
    lines = [line.strip() for line in str(error).splitlines()]
    # TensorFlow's begin with where in the graph it was, and end with advice; others end with the reason.
    lines = [line for line in lines if line and not line.startswith(NO_REASONS)] or [str(error).strip()]
    line = lines[0 if type(error).__module__.startswith("tensorflow.") else -1]
    return Said(what, f"{type(error).__name__}: {line[:REASON_LENGTH]}", is_failure=True)


def against(
    what: str, unit: str, others: list[float], ours: list[float], *, names: tuple[str, str], goal: str = ""
) -> Iterable[Row]:
    """Both alternatives, and the ratio of the first to the second, pair by pair."""
    yield Row(f"{what}: {names[0]}", unit, others)
    yield Row(f"{what}: {names[1]}", unit, ours)
    ratios = [other / our for other, our in zip(others, ours, strict=True)]
    yield Row(f"{what}: {names[0]} over {names[1]}", "x", ratios, goal)


def interleaved(repetitions: int, *alternatives: Callable[[], T]) -> list[list[T]]:
    """The results of each alternative. They take turns, so that a disturbance of the machine affects all."""
    rounds = [[alternative() for alternative in alternatives] for _ in range(repetitions)]
    return [list(results) for results in zip(*rounds, strict=True)]


@dataclass(frozen=True)
class Finished:
    """A process that has ended: wall seconds, most memory in bytes, what it wrote to standard output, its exit code.

    Anonymous memory is what the system cannot take back; pages of files, such as a cache on disk, are not in it.
    """

    seconds: float
    peak_bytes: int
    peak_anonymous_bytes: int
    output: str
    started: float
    exit_code: int

    def entries(self, event: str, **fields: object) -> list[dict[str, Any]]:
        """The lines of the log that have this event and these fields, at least one."""
        entries = [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]
        named = [entry for entry in entries if entry["event"] == event]
        if found := [entry for entry in named if all(entry.get(name) == value for name, value in fields.items())]:
            return found
        raise LookupError(f"{self.output}\nno {event} with {fields} in this log")

    def seconds_until(self, event: str, **fields: object) -> float:
        """From the start of the process to the first line of the log that has this event and these fields."""
        return datetime.fromisoformat(self.entries(event, **fields)[0]["time"]).timestamp() - self.started


def finished(command: list[str], env: Mapping[str, str], *, kill_at: str = "", may_fail: bool = False) -> Finished:
    """Run to the end, or to SIGKILL when a line of output has `kill_at`. Raises when it fails by itself, but for
    `may_fail`.
    """
    started, began = time.time(), time.monotonic()
    process = subprocess.Popen(
        command, env=env, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    peak = {"VmHWM": 0, "RssAnon": 0}
    watching = threading.Thread(target=_watch, args=(process.pid, peak))
    watching.start()
    lines = []
    for line in process.stdout:
        lines.append(line)
        if kill_at and kill_at in line:
            process.kill()
    code = process.wait()
    if code and not kill_at and not may_fail:
        raise RuntimeError(f"{command} ended with {code}:\n{''.join(lines)}")
    ended = time.monotonic()
    watching.join()
    return Finished(ended - began, peak["VmHWM"], peak["RssAnon"], "".join(lines), started, code)


def memory_of(process: int | str) -> dict[str, int]:
    """The most memory that a process has had (VmHWM) and its anonymous memory now (RssAnon), in bytes.

    Empty when it has ended and is not yet waited for; raises OSError when there is no such process.
    """
    sizes = re.findall(r"(VmHWM|RssAnon):\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return {name: 1024 * int(kilobytes) for name, kilobytes in sizes}


def _watch(process_id: int, peak: dict[str, int]) -> None:
    """Keep in `peak` the most of each that `memory_of` gives of a process, until it ends.

    What the system reports for an ended child begins with the memory of its parent, which may be larger (getrusage(2)).
    """
    with contextlib.suppress(OSError):
        while memory := memory_of(process_id):
            for name, size in memory.items():
                peak[name] = max(peak[name], size)
            time.sleep(LOOK_SECONDS)
