"""A step of Thaw against one of PyTorch and timm on the same cores: a process each, which take turns step by step."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

from bench.measuring import REPOSITORY, Row, interleaved
from bench.training import BATCH_SIZE
from bench.workload import Workload
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
        "PyTorch": (torch, {"compiled": False}),
    }
    if shutil.which(os.environ.get("CXX", "g++")):
        peers["PyTorch, compiled"] = (torch, {"compiled": True})
    for precision in ("float32", "bfloat16") if processor.has_native_bfloat16() else ("float32",):
        for phase in ("head", "fine_tune"):
            options = {
                "phase": phase, "precision": precision, "image_size": IMAGE_SIZE, "batch_size": BATCH_SIZE,
                "threads": len(os.sched_getaffinity(0)), "warm_up_steps": WARM_UP_STEPS,
            }  # fmt: skip
            with ExitStack() as stack:
                # One after the other, so that each has all cores while it starts.
                started = {
                    name: stack.enter_context(_Peer(words, options | more)) for name, (words, more) in peers.items()
                }
                yield from _measured(f"{phase} step, {precision}", started)


def _measured(what: str, peers: "dict[str, _Peer]") -> Iterable[Row]:
    steps = interleaved(ROUNDS, *(partial(peer.answer, "step") for peer in peers.values()))
    for fact, shown in (("seconds", what), ("processor_seconds", f"{what}, processor time")):
        seconds = {name: [step[fact] for step in of] for name, of in zip(peers, steps, strict=True)}
        for name, values in seconds.items():
            yield Row(f"{shown}: {name}", "s", values)
        for name in seconds:
            if name != OURS:
                ratios = [their / our for their, our in zip(seconds[name], seconds[OURS], strict=True)]
                yield Row(f"{shown}: {name} over {OURS}", "x", ratios, "over 1" if fact == "seconds" else "")


class _Peer:
    """A process that has done its first steps, and does one more for each line."""

    def __init__(self, command: list[str], options: dict[str, Any]) -> None:
        self._process = subprocess.Popen(
            [*command, json.dumps(options)], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "_Peer":
        self.answer()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def answer(self, word: str = "") -> dict[str, Any]:
        """What it says to a word, or at first by itself."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if word:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended; its error is above")
        found: dict[str, Any] = json.loads(line)
        return found
