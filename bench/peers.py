"""A step of Thaw against one of PyTorch and timm on the same cores: a process each, which take turns step by step."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from bench.measuring import REPOSITORY, Row, interleaved
from bench.workload import BATCH_SIZE, Workload
from job import processor

PYTHON = "PEERS_PYTHON"
"""The variable that names an interpreter with torch, torchvision and timm; they are not among Thaw's packages."""
IMAGE_SIZE = 150
DATA = f"drawn pixels at {IMAGE_SIZE} px, random weights"
ROUNDS = 8
WARM_UP_STEPS = 2
OURS = "Thaw"


def rows(load: Workload) -> Iterable[Row]:
    """Wall and processor time of a step in each phase and precision, and how many times as long PyTorch takes.

    The pixels are drawn and the weights random on any machine. Without an interpreter that has PyTorch, nothing.
    """
    del load
    python = os.environ.get(PYTHON)
    if not python:
        print(f"  left out: make a venv, `pip install torch torchvision timm` there, and name its Python in {PYTHON}")
        return
    torch = [python, "bench/peer_torch.py"]
    peers: dict[str, tuple[list[str], dict[str, Any]]] = {
        OURS: ([sys.executable, "-m", "bench.peer_thaw"], {}),
        "PyTorch": (torch, {"compiled": ""}),
    }
    if shutil.which(os.environ.get("CXX", "g++")):
        peers["PyTorch, compiled"] = (torch, {"compiled": "default"})
    for precision in ("float32", "bfloat16") if processor.has_native_bfloat16() else ("float32",):
        for phase in ("head", "fine_tune"):
            options = {
                "phase": phase, "precision": precision, "image_size": IMAGE_SIZE, "device": "cpu",
                "threads": len(os.sched_getaffinity(0)), "warm_up_steps": WARM_UP_STEPS,
            }  # fmt: skip
            with ExitStack() as stack:
                # One after the other, so that each has all cores while it starts.
                started = {
                    name: stack.enter_context(Peer(words, options | more)) for name, (words, more) in peers.items()
                }
                yield from _measured(f"{phase} step, {precision}", started)


def _measured(what: str, peers: "dict[str, Peer]") -> Iterable[Row]:
    for peer in peers.values():
        # The first steps are its own: each has all cores while it warms up.
        peer.steps(BATCH_SIZE, 1)
    steps = interleaved(ROUNDS, *(partial(peer.steps, BATCH_SIZE, 1) for peer in peers.values()))
    for fact, shown in (("seconds", what), ("processor_seconds", f"{what}, processor time")):
        seconds = {name: [step[fact] for step in of] for name, of in zip(peers, steps, strict=True)}
        for name, values in seconds.items():
            yield Row(f"{shown}: {name}", "s", values)
        for name in seconds:
            if name != OURS:
                ratios = [their / our for their, our in zip(seconds[name], seconds[OURS], strict=True)]
                yield Row(f"{shown}: {name} over {OURS}", "x", ratios, "over 1" if fact == "seconds" else "")


class Peer:
    """A process that makes steps, as many as it is asked for: by default with this process's environment.

    Each call raises RuntimeError when it has ended, with the last line that it wrote to standard error.
    """

    def __init__(self, command: list[str], options: Mapping[str, Any], env: Mapping[str, str] | None = None) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [*command, json.dumps(options)], cwd=REPOSITORY, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._errors, text=True,
        )  # fmt: skip

    def __enter__(self) -> "Peer":
        try:
            self._answer()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def steps(self, batch_size: int, num_steps: int) -> dict[str, float]:
        """Make at least so many; how many they were, their seconds and, where it is known, processor seconds."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"batch_size": batch_size, "num_steps": num_steps}) + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines() or ["it said no more"]
            raise RuntimeError(f"{self._process.args!r} ended with {code}:\n{lines[-1]}")
        found: dict[str, Any] = json.loads(line)
        return found
