"""One process for each device of this machine: a parent starts them, passes a stop on, and ends as they did.

Each process is a worker like any other: the parent turns W workers of N devices each into W * N workers of one. It
imports no TensorFlow, and has no part in the run.
"""

import contextlib
import ctypes
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from job.errors import ExitCode, Interrupted, InvalidSettings
from job.observe import termination
from job.settings import machine
from job.settings.settings import Settings
from job.workers.addresses import Addresses

CHILD = "from job.cli import devices; devices.end_with_parent(); from job.__main__ import program; program()"
LOOK_SECONDS = 0.1
LEAVING_SECONDS = 90.0
"""The others notice by themselves that one is gone; then they are ended."""
KILLED = 128
PR_SET_PDEATHSIG, SIGKILL = 1, 9


def num_devices(settings: Settings, environ: Mapping[str, str]) -> int:
    """How many processes this machine runs. Raises InvalidSettings when it has fewer GPUs than were asked for."""
    gpus = machine.visible_gpus(environ)
    if settings.devices == "auto":
        return max(1, len(gpus))
    count = int(settings.devices)
    if gpus and count > len(gpus):
        raise InvalidSettings(
            f"THAW_DEVICES={settings.devices}: this machine has {len(gpus)} GPUs that may be used",
            hint="set THAW_DEVICES=auto, which takes all of them",
        )
    return count


def flags_of(settings: Settings, count: int, *, may_choose_port: bool) -> list[list[str]]:
    """The settings by which each of `count` processes of this machine differs, as flags.

    A port that nobody has named is chosen where all processes are on this machine.
    """
    hosts = settings.addresses().hosts
    port = settings.worker_port
    if may_choose_port and settings.workers == 1:
        port = free_port(port, count)
    num_workers, first = settings.workers * count, (settings.worker or 0) * count
    every_host = ",".join(host for host in hosts for _ in range(count))
    common = {"workers": num_workers, "worker-host": every_host, "worker-port": port, "devices": 1}
    # Raises what a child would raise.
    Addresses.of(every_host, port, num_workers=num_workers)
    flags = []
    for index in range(count):
        own = common | {"worker": first + index} | ({"metrics-port": 0} if index else {})
        flags.append([f"--{name}={value}" for name, value in own.items()])
    return flags


def free_port(first: int, count: int) -> int:
    """The first of `count` + 1 ports in a row that are free now, from `first` on."""
    for port in range(first, 65535 - count, count + 1):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for offset in range(count + 1):
                listening = stack.enter_context(socket.socket())
                listening.bind(("", port + offset))
            return port
    return first


def answer(
    settings: Settings,
    words: Sequence[str],
    flags: Sequence[Sequence[str]],
    *,
    check_stop: Callable[[], None],
    environ: Mapping[str, str],
    child: Sequence[str] = (sys.executable, "-c", CHILD),
) -> int:
    """Run a process for each of `flags`, with the words of this command too; returns the exit code of them all."""
    gpus = machine.visible_gpus(environ)
    with tempfile.TemporaryDirectory(prefix="thaw-") as folder:
        messages = [Path(folder, str(index)) for index in range(len(flags))]
        processes = []
        for index, (own, message) in enumerate(zip(flags, messages, strict=True)):
            visible = {"CUDA_VISIBLE_DEVICES": gpus[index]} if gpus else {}
            command = [*child, "run", *words, *own, f"--termination-log={message}"]
            processes.append(subprocess.Popen(command, env={**environ, **visible}))
        codes = _wait(processes, check_stop)
        exit_code = summed_up(codes)
        with contextlib.suppress(OSError):
            termination.write(settings.termination_log, messages[codes.index(exit_code)].read_bytes())
    return exit_code


def _wait(processes: Sequence["subprocess.Popen[bytes]"], check_stop: Callable[[], None]) -> list[int]:
    """Until all have ended; returns their exit codes as a shell has them."""
    is_stopping, kill_at = False, float("inf")
    while any(process.poll() is None for process in processes):
        try:
            check_stop()
        except Interrupted:
            if not is_stopping:
                is_stopping = True
                for process in processes:
                    process.terminate()
        if kill_at == float("inf") and any(process.poll() is not None for process in processes):
            kill_at = time.monotonic() + LEAVING_SECONDS
        if time.monotonic() > kill_at:
            for process in processes:
                process.kill()
        time.sleep(LOOK_SECONDS)
    return [code if code >= 0 else KILLED - code for code in (process.wait() for process in processes)]


def summed_up(codes: Sequence[int]) -> int:
    """The exit code of all: that of the cause, if one failed by itself, and not because another did."""
    if not any(codes):
        return ExitCode.COMPLETE
    causes = [code for code in codes if code not in (ExitCode.COMPLETE, ExitCode.INTERRUPTED, ExitCode.PEER_LOST)]
    return next(iter([*causes, *(code for code in (ExitCode.INTERRUPTED, ExitCode.PEER_LOST) if code in codes)]))


def end_with_parent() -> None:
    """Have Linux end this process when its parent is gone, however that ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)
