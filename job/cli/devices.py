"""One process for each device of this machine: a parent starts them, passes a stop on, and ends as they did.

Each process is a worker like any other: the parent turns W workers of N devices each into W * N workers of one. It
imports no TensorFlow, and has no part in the run.
"""

import contextlib
import ctypes
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from job import nvidia
from job.errors import ExitCode, Interrupted, InvalidSettings
from job.observe import termination
from job.observe.progress import Progress
from job.settings.settings import Settings
from job.storage import scratch
from job.workers.addresses import Addresses

CHILD = """\
import sys
if {root!r} not in sys.path:
    sys.path.insert(0, {root!r})
from job.cli.devices import end_with_parent
end_with_parent({parent})
from job.__main__ import program
program()
"""
MAX_WORKERS = 1024
"""As many as THAW_WORKERS may be, which each process is given."""
LOOK_SECONDS = 0.1
LEAVING_SECONDS = 90.0
"""The others notice by themselves that one has failed; after so long, or the grace period, they are ended."""
KILLED = 128
PR_SET_PDEATHSIG, SIGKILL, SIGTERM = 1, 9, 15
LAST_PORT = 32_767
"""Systems give connections ports from above it."""


def num_devices(settings: Settings, environ: Mapping[str, str]) -> int:
    """How many processes this machine runs.

    Raises InvalidSettings when it has fewer GPUs than were asked for, or more than there is work for.
    """
    if settings.devices == "1" or (settings.devices == "auto" and settings.device == "cpu"):
        # As each of several processes is started: the driver takes a while to count.
        return 1
    gpus = _gpus(settings, environ)
    if settings.devices == "auto":
        count = max(1, len(gpus))
        if count * settings.workers > settings.batch_size:
            raise InvalidSettings(
                f"THAW_BATCH_SIZE={settings.batch_size}: with {count} GPUs and THAW_WORKERS={settings.workers} there "
                f"are {count * settings.workers} processes, and one would have no examples",
                hint="set a smaller THAW_DEVICES",
            )
        return count
    count = int(settings.devices)
    if gpus and count > len(gpus):
        raise InvalidSettings(
            f"THAW_DEVICES={settings.devices}: the number of GPUs that may be used is {len(gpus)}",
            hint="set THAW_DEVICES=auto, which takes all of them",
        )
    return count


def _gpus(settings: Settings, environ: Mapping[str, str]) -> list[str]:
    """Those that this machine's processes take."""
    return [] if settings.device == "cpu" else nvidia.visible_gpus(environ)


def flags_of(settings: Settings, count: int, *, may_choose_port: bool) -> list[list[str]]:
    """The settings by which each of `count` processes of this machine differs, as flags.

    With `may_choose_port` a free port is chosen where all processes are on this machine: at random, because another run
    that starts at the same time opens its ports only later. Raises InvalidSettings when there are more processes than
    workers or ports can be.
    """
    hosts = settings.addresses().hosts
    port = settings.worker_port
    if may_choose_port and settings.workers == 1:
        port = free_port(random.randrange(port, LAST_PORT - count), count)
    num_workers, first = settings.workers * count, (settings.worker or 0) * count
    every_host = ",".join(host for host in hosts for _ in range(count))
    common = {"workers": num_workers, "worker-host": every_host, "worker-port": port, "devices": 1}
    if num_workers > MAX_WORKERS:
        raise InvalidSettings(
            f"THAW_WORKERS={settings.workers} with {count} devices each are {num_workers} processes, expected at most "
            f"{MAX_WORKERS}"
        )
    try:
        Addresses.of(every_host, port, num_workers=num_workers)
    except ValueError as error:
        raise InvalidSettings(f"THAW_WORKER_PORT={port}: {error}", hint="set a lower one") from error
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


def run_all(
    settings: Settings,
    words: Sequence[str],
    flags: Sequence[Sequence[str]],
    *,
    check_stop: Callable[[], None],
    environ: Mapping[str, str],
    child: Sequence[str] | None = None,
) -> int:
    """Run a process for each of `flags`, with the words of this command too; returns the exit code of them all."""
    gpus = _gpus(settings, environ)
    with scratch.folder(settings.cache_dir) as folder:
        messages = [folder / str(index) for index in range(len(flags))]
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for index, (own, message) in enumerate(zip(flags, messages, strict=True)):
                visible = {"CUDA_VISIBLE_DEVICES": gpus[index]} if gpus else {}
                command = [*(child or _this_program()), "run", *words, *own, f"--termination-log={message}"]
                # In a group of its own: Ctrl-C in a terminal would be a second signal, which ends it at once.
                processes.append(subprocess.Popen(command, env={**environ, **visible}, process_group=0))
            # Worker 0 may commit or export for as long as that takes, and leaves by itself when it must.
            num_spared = 0 if settings.worker else 1
            codes = _wait(processes, check_stop, max(LEAVING_SECONDS, settings.grace_seconds), num_spared)
        finally:
            for process in processes:
                process.kill()
        # Worker 0 has committed the result: that another was lost meanwhile is of no account.
        exit_code = 0 if not settings.worker and codes[0] == 0 else summed_up(codes)
        index = codes.index(exit_code)
        termination.leave(settings.termination_log, _last_words(messages[index], index, exit_code))
    return exit_code


def _this_program() -> Sequence[str]:
    """Nothing is imported from where it is started; a repository that is not installed is found all the same."""
    root = str(Path(__file__).parent.parent.parent)
    return sys.executable, "-P", "-c", CHILD.format(root=root, parent=os.getpid())


def _last_words(message: Path, index: int, exit_code: int) -> bytes:
    """The termination message of a process, or one about it where it could not write any; the log has that too."""
    with contextlib.suppress(OSError):
        if data := message.read_bytes():
            return data
    how = f"was killed by signal {exit_code - KILLED}" if exit_code > KILLED else f"ended with exit code {exit_code}"
    reason = f"the process of device {index} {how}; what was committed stands"
    print(reason, file=sys.stderr)
    return termination.message(exit_code=exit_code, reason=reason, hint="", progress=Progress())


def _wait(
    processes: Sequence["subprocess.Popen[bytes]"],
    check_stop: Callable[[], None],
    leaving_seconds: float,
    num_spared: int,
) -> list[int]:
    """Until all have ended; returns their exit codes as a shell has them. The first `num_spared` are never killed."""
    is_stopping, kill_at = False, float("inf")
    while any(process.poll() is None for process in processes):
        try:
            check_stop()
        except Interrupted:
            if not is_stopping:
                is_stopping = True
                for process in processes:
                    process.terminate()
        # None that has ended well means that others must leave: worker 0 may have work left.
        if kill_at == float("inf") and any(process.poll() for process in processes):
            kill_at = time.monotonic() + leaving_seconds
        if time.monotonic() > kill_at:
            for process in processes[num_spared:]:
                process.kill()
        time.sleep(LOOK_SECONDS)
    codes = [process.wait() for process in processes]
    if is_stopping:
        # The signal came before the process had a handler for it.
        codes = [int(ExitCode.INTERRUPTED) if code == -SIGTERM else code for code in codes]
    return [code if code >= 0 else KILLED - code for code in codes]


def summed_up(codes: Sequence[int]) -> int:
    """The exit code of all: that of the cause, if one failed by itself, and not because another did."""
    no_causes = (ExitCode.INTERRUPTED, ExitCode.PEER_LOST, ExitCode.COMPLETE)
    causes = [code for code in codes if code not in no_causes]
    return next(code for code in (*causes, *no_causes) if code in codes)


def end_with_parent(parent: int) -> None:
    """Have Linux end this process when its parent is gone, however that ended, also before this was called."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)
        if os.getppid() != parent:
            raise SystemExit(int(ExitCode.PEER_LOST))
