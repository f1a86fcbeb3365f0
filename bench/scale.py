"""What it costs to be two: fine-tuning by one process, and by two on the same processors, in turn."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from bench.measuring import REPOSITORY, Row, against, interleaved
from bench.workload import Workload
from job.cli.devices import free_port

ROUNDS = 8
STEPS = 2
LOOPBACK = "lo:"
FIRST_PORT = 20_000
SUMS = {"gradient": 5, "head": 50, "carried": 50, "apart": 50}
"""How many in a row of each; the flag would not show beside a whole gradient."""

Answer = dict[str, float]


class _Team:
    """Workers that wait for a word from here: `bench.scale_worker`, a process each."""

    def __init__(self, load: Workload, num_workers: int) -> None:
        port = free_port(FIRST_PORT, num_workers)
        facts = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(load).items()}
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "bench.scale_worker", json.dumps([worker, num_workers, port, facts])],
                cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for worker in range(num_workers)
        ]  # fmt: skip

    def answers(self) -> list[Answer]:
        """The next line of each."""
        lines = [process.stdout.readline() for process in self._processes if process.stdout is not None]
        if not all(lines):
            raise RuntimeError("a worker ended; its error is above")
        return [json.loads(line) for line in lines]

    def do(self, what: str, count: int) -> list[Answer]:
        """What each says when all have done it, for one time; `bytes` is what then went over the loopback."""
        before = _loopback_bytes()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps([what, count]) + "\n")
            process.stdin.flush()
        answers = self.answers()
        sent = (_loopback_bytes() - before) / count
        return [answer | {"bytes": sent} for answer in answers]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def rows(load: Workload) -> Iterable[Row]:
    """Steps of both in turn, what goes over the loopback, the flag that asks all to stop, and memory."""
    with contextlib.closing(_Team(load, 1)) as one:
        # The first has all cores while it starts, as the two have.
        one.answers()
        with contextlib.closing(_Team(load, 2)) as two:
            gradient_bytes = two.answers()[0]["gradient_bytes"]
            yield from _measured(one, two, gradient_bytes)


def _measured(one: _Team, two: _Team, gradient_bytes: float) -> Iterable[Row]:
    alone, together = interleaved(ROUNDS, lambda: one.do("steps", STEPS), lambda: two.do("steps", STEPS))
    for what, fact, combined in (
        ("a fine-tune step of 32", "seconds", max),
        ("processor time of a step, all processes", "processor_seconds", sum),
    ):
        of_two, of_one = (
            [combined(answer[fact] for answer in answers) for answers in measured] for measured in (together, alone)
        )
        yield from against(what, "s", of_two, of_one, names=("2 processes", "1"))
    yield Row("the gradient of a step", "MB", [gradient_bytes / 1e6])
    # A ring of two: each sends its half of the gradient to be added, and the half that it has added.
    sent = [answers[0]["bytes"] / 2 for answers in together]
    yield Row("a step of 2: bytes that each sends", "MB", [each / 1e6 for each in sent])
    yield Row("the same over 2 (W - 1) / W gradients", "x", [each / gradient_bytes for each in sent], "at most 1.05")
    # Before the sums, which need memory of their own.
    peaks = {number: [answer["peak_bytes"] / 1e9 for answer in of[-1]] for number, of in ((1, alone), (2, together))}
    for name in SUMS:
        two.do(name, 1)  # traced
    gradient, head, carried, apart = (
        [1e3 * max(answer["seconds"] for answer in answers) for answers in measured]
        for measured in interleaved(ROUNDS, *(partial(two.do, name, count) for name, count in SUMS.items()))
    )
    yield Row("all-reduce of the gradient", "ms", gradient)
    yield Row("all-reduce of the head's gradient, 8 kB", "ms", head)
    for where, measured in (("in it", carried), ("after it", apart)):
        costs = [a - b for a, b in zip(measured, head, strict=True)]
        yield Row(f"the same with the stop flag {where}, longer by", "ms", costs)
    for number, values in peaks.items():
        yield Row(f"peak memory of a worker of {number}", "GB", values)


def _loopback_bytes() -> int:
    """What this machine has sent to itself since it started."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith(LOOPBACK):
            return int(line.partition(":")[2].split()[8])
    raise LookupError("no loopback in /proc/net/dev")
