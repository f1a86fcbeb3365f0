"""Runs of several workers: processes on this machine, begun together, disturbed, and how each of them ends."""

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.ports import free_ports
from tests.processes import begin

WAIT_SECONDS = 300


class TeamRun:
    """The workers of one run, each a process; their logs are read as they come."""

    def __init__(self, env: dict[str, str], num_workers: int) -> None:
        common = env | {
            "THAW_WORKERS": str(num_workers),
            "THAW_WORKER_PORT": str(free_ports(num_workers + 1)),
            "THAW_DEVICES": "1",
        }
        self.logs: list[list[dict[str, Any]]] = [[] for _ in range(num_workers)]
        self.errors = [""] * num_workers
        self._environments = [common | {"THAW_WORKER": str(worker)} for worker in range(num_workers)]
        self._readers: list[threading.Thread] = []
        self.processes: list[subprocess.Popen[str]] = []
        for worker in range(num_workers):
            self.processes.append(self._begin(worker))

    def _begin(self, worker: int) -> "subprocess.Popen[str]":
        process = begin(self._environments[worker])
        for read in (self._read_log, self._read_errors):
            thread = threading.Thread(target=read, args=(process, worker), daemon=True)
            thread.start()
            self._readers.append(thread)
        return process

    def begin_again(self, worker: int) -> None:
        """Start a worker once more, as a Job does with a pod that failed."""
        self.processes[worker] = self._begin(worker)

    def _read_log(self, process: "subprocess.Popen[str]", worker: int) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.logs[worker].append(json.loads(line))

    def _read_errors(self, process: "subprocess.Popen[str]", worker: int) -> None:
        assert process.stderr is not None
        for line in process.stderr:
            self.errors[worker] += line

    def wait_for(self, name: str, *, worker: int = 0, **facts: Any) -> None:
        """Return when the log of a worker has an event."""
        until(
            lambda: any(
                line["event"] == name and facts.items() <= line.items() for line in list(self.logs[worker])
            ) or self.processes[worker].poll() is not None,
            lambda: self.told(),
        )  # fmt: skip
        assert self.processes[worker].poll() is None, self.told()

    def as_a_job(self, kills: Sequence[tuple[float, int]]) -> tuple[int, list[int]]:
        """Begin each worker again when it has failed, until all have succeeded.

        `kills` are seconds after the one before, and whom. Returns how many were killed, and the other exit codes.
        """
        left, victims, others = list(kills), list[int](), list[int]()
        num_killed, killed_at, began = 0, time.monotonic(), time.monotonic()
        while any(process.poll() != 0 for process in self.processes):
            assert time.monotonic() - began < WAIT_SECONDS, self.told()
            if left and time.monotonic() - killed_at > left[0][0]:
                (_, victim), killed_at = left.pop(0), time.monotonic()
                if self.processes[victim].poll() is None:
                    self.processes[victim].kill()
                    num_killed += 1
                    victims.append(victim)
            for worker, process in enumerate(self.processes):
                code = process.poll()
                if code:
                    if code == -signal.SIGKILL and worker in victims:
                        victims.remove(worker)
                    else:
                        others.append(code)
                    self.begin_again(worker)
            time.sleep(0.05)
        return num_killed, others

    def codes(self) -> list[int]:
        """The exit code of each worker, once all have ended."""
        try:
            codes = [process.wait(timeout=WAIT_SECONDS) for process in self.processes]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"a worker did not end\n{self.told()}") from None
        finally:
            self.kill()
        for thread in self._readers:
            thread.join(timeout=10)
        return codes

    def reasons(self) -> list[str]:
        """Why each worker failed, or nothing."""
        return [log[-1].get("reason", "") if log else "" for log in self.logs]

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()

    def told(self) -> str:
        """All that the workers have said."""
        return "\n".join(
            f"--- worker {worker}, exit code {self.processes[worker].poll()}\n"
            + "\n".join(map(str, self.logs[worker]))
            + f"\n{self.errors[worker]}"
            for worker in range(len(self.processes))
        )

    def __enter__(self) -> "TeamRun":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def until(is_so: Callable[[], bool], told: Callable[[], str] = str) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not is_so():
        assert time.monotonic() < end, told()
        time.sleep(0.05)
