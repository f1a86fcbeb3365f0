"""The entry point: environment -> Settings -> one command -> exit code; signals; nothing else.

The handler for SIGTERM and SIGINT is installed before anything slow is imported: as process 1 of a container a
signal without a handler is lost. The first signal asks the run to commit and leave, which the log says at once; a
second one, or the end of the grace period, ends the process at once, and the last commit stands. Its exit code is the
same, because the next start does the same; the termination message says that it was ended, and the record that the
attempt never was. Questions about runs have nothing to commit: a signal ends them wherever they are.
"""

import contextlib
import io
import os
import platform
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from job import cli
from job.errors import RESUME, ExitCode, Interrupted, ThawError
from job.observe import termination
from job.observe.events import RunFailed, Stopping
from job.observe.observer import Observer
from job.observe.progress import Progress
from job.redaction import redacted

if TYPE_CHECKING:
    from job.observe.log import Log
    from job.settings.settings import Settings

GRACE_USED = 0.9
"""Of the grace period; the rest is for leaving before the process is killed."""
REPORTING_SECONDS = 0.5
LOOK_SECONDS = 0.1
MIN_SECONDS = 0.01
SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
X86 = "x86_64"


class StopSignal:
    """SIGTERM and SIGINT; the run checks now and then whether one has come.

    `observer` gets an event of the first one, from another thread. `on_leaving` gets exit code and reason right before
    the process is ended from here, because the run did not stop by itself.
    """

    def __init__(self, progress: Progress) -> None:
        self.grace_seconds = 15.0
        self.observer = Observer()
        self.progress = progress
        self.on_leaving: Callable[[int, str], None] = lambda exit_code, reason: None
        self._received: str | None = None
        self._is_leaving = False
        self._reading, self._writing = socket.socketpair()

    def install(self) -> None:
        """Handle both signals from now on.

        Python runs its own handlers between byte codes, so never inside a long native call. The number of the signal
        is therefore also written to a socket at once, and a thread reads it there. For a while TensorFlow has a handler
        of its own, when it connects workers. So the signals are also blocked, in this thread and all that begin later,
        and one thread waits for them: no handler is asked, but for a thread that was there before.
        """
        self._writing.setblocking(False)
        signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        for work in (self._listen, self._watch):
            threading.Thread(target=work, daemon=True, name="signals").start()

    def check(self) -> None:
        """Raise Interrupted once a signal has come."""
        if self._received is not None:
            # Of several workers another thread asks too, which does not lead the run.
            self._is_leaving |= threading.current_thread() is threading.main_thread()
            raise Interrupted(f"stopped by {self._received}; what was committed stands", hint=RESUME)

    def pause(self, seconds: float) -> None:
        """Wait. A signal ends the wait of the main thread, until the run is being left: then there is an end to record.

        Other threads commit what is reached, also after a signal. Raises Interrupted.
        """
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if threading.current_thread() is threading.main_thread() and not self._is_leaving:
                self.check()
            time.sleep(min(LOOK_SECONDS, left))

    def _listen(self) -> NoReturn:
        while True:
            self._writing.send(bytes([signal.sigwait(SIGNALS)]))

    def _watch(self) -> NoReturn:
        name = self._next_name()
        seconds = GRACE_USED * self.grace_seconds
        until = time.monotonic() + seconds
        stopping = Stopping(name, seconds, self.progress.uncommitted_steps())
        self._aside(lambda: self.observer.event(stopping))
        self._received = name
        self._reading.settimeout(max(MIN_SECONDS, until - time.monotonic()))
        try:
            how = f"at once, by a second signal, {self._next_name()}"
        except TimeoutError:
            how = f"{seconds:g} s after {name}, because it had not stopped"
        num_lost = self.progress.uncommitted_steps()
        lost = "" if num_lost is None else f"; steps lost: {num_lost}"
        self.end(ExitCode.INTERRUPTED, f"ended {how}{lost}; what was committed stands")

    def end(self, exit_code: int, reason: str) -> NoReturn:
        """End the process at once: it hangs, or has no time left."""

        def report() -> None:
            self.on_leaving(exit_code, reason)
            os.write(2, f"{reason}\n".encode())

        try:
            self._aside(report)
        finally:
            os._exit(exit_code)

    def _next_name(self) -> str:
        return signal.Signals(self._reading.recv(1)[0]).name

    def _aside(self, report: Callable[[], None]) -> None:
        """On another thread: a full pipe or a hung volume must not keep the process."""
        reporting = threading.Thread(target=report, daemon=True)
        reporting.start()
        reporting.join(REPORTING_SECONDS)


def failure_of(error: Exception) -> RunFailed:
    """What is reported of the error that is being handled; one that is no ThawError has its traceback."""
    if isinstance(error, ThawError):
        return RunFailed(int(error.exit_code), error.message, error.hint)
    reason = redacted(f"{type(error).__name__}: {error}")
    hint = "this is a bug, or something that this program does not know; what was committed stands"
    return RunFailed(int(ExitCode.UNEXPECTED), reason, hint, redacted(traceback.format_exc()))


class Ending:
    """Reports how an attempt ends: in the log, and in the termination message at `path`."""

    def __init__(self, progress: Progress, path: str | None) -> None:
        self.progress = progress
        self.path = path
        self.console: Log | None = None

    def failed(self, error: Exception) -> int:
        """Report an error; returns its exit code."""
        failure = failure_of(error)
        self.note(failure.exit_code, failure.reason, failure.hint)
        if self.console is None:
            print(failure, file=sys.stderr)
        else:
            self.console.event(failure)
        return failure.exit_code

    def left(self, exit_code: int, reason: str) -> None:
        """The process is ended right after this, wherever it is."""
        self.note(exit_code, reason, RESUME)
        if self.console is not None:
            self.console.stop()

    def note(self, exit_code: int, reason: str, hint: str = "") -> None:
        """Write the termination message; a failure is only a warning."""
        data = termination.message(exit_code=exit_code, reason=reason, hint=hint, progress=self.progress)
        termination.leave(self.path, data)


class _StandardError(io.FileIO):
    """What it cannot write is lost: a closed pipe or a full disk under a warning decides no exit code."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            return super().write(data) or len(data)
        return len(data)


def set_up_streams() -> None:
    """Open /dev/null as each standard stream that was closed at the start, as `>&-` does; none fails on standard error.

    Otherwise the next file that is opened gets its number, and native libraries write into that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Of the free numbers the system takes the lowest: the one that is missing.
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As standard error does: the name of a class that the terminal cannot show is no reason to fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    raw = _StandardError(sys.stderr.fileno(), "w", closefd=False)
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=sys.stderr.encoding, errors=sys.stderr.errors, line_buffering=True
    )


def set_up_tensorflow(*, log_level: str) -> None:
    """Set what TensorFlow reads from the environment when it is imported, unless it is set."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", log_level)
    # By itself it takes all memory of a GPU, and `predict` beside a run would get none.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    if platform.machine() == X86:
        # By itself it uses oneDNN only on processors with VNNI or AVX512-BF16 (2.21), else its own slower kernels.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def main(argv: Sequence[str]) -> int:
    """Carry out the command of flags and environment; returns the exit code."""
    name, words = cli.split(argv)
    return _answer(name, words) if name in cli.QUESTIONS else _carry_out(name, words)


def _answer(name: str, words: Sequence[str]) -> int:
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)
    # TensorFlow's C++ code has an error for every image that it cannot decode, which the answer says.
    set_up_tensorflow(log_level="3")
    try:
        return cli.answer(name, words, os.environ)
    except (KeyboardInterrupt, BrokenPipeError):
        # Stopped by a signal, or standard output was closed, as `| head` does.
        return ExitCode.INTERRUPTED
    except Exception as error:
        failure = failure_of(error)
        print(failure, file=sys.stderr)
        return failure.exit_code


def _carry_out(name: str, words: Sequence[str]) -> int:
    progress = Progress()
    stop = StopSignal(progress)
    stop.install()
    ending = Ending(progress, os.environ.get("THAW_TERMINATION_LOG"))
    stop.on_leaving = ending.left
    # TensorFlow's C++ notes on start-up; its warnings and errors are kept.
    set_up_tensorflow(log_level="1")

    from job.observe.terminal import open_log
    from job.storage import cache_folder

    try:
        options = cli.read(name, words, os.environ)
        settings: Settings = options.settings
        stop.grace_seconds = settings.grace_seconds
        ending.path = str(settings.termination_log) if settings.termination_log else None
        if name == "run":
            from job import nvidia
            from job.cli import devices, run

            run.check_worker(settings)
            if settings.device != "cpu":
                if settings.cache_dir:
                    # Where a GPU's driver keeps what it compiles; it reads this when it starts.
                    os.environ.setdefault("CUDA_CACHE_PATH", str(cache_folder.place(settings.cache_dir) / "cuda"))
                nvidia.wait_until_ready(stop.pause, lambda reason: print(reason, file=sys.stderr, flush=True))
            count = devices.num_devices(settings, os.environ)
            if count > 1 and not run.is_complete(settings, pause=stop.pause):
                # Each process has the whole grace period for itself; this one only waits for them.
                stop.grace_seconds = settings.grace_seconds / GRACE_USED
                flags = devices.flags_of(settings, count, may_choose_port="worker_port" not in options.origins)
                return devices.run_all(settings, words, flags, check_stop=stop.check, environ=os.environ)
        ending.console = stop.observer = open_log(
            settings.log_format, progress, is_verbose=options.verbose, is_quiet=options.quiet
        )
        # Keras imports Matplotlib, which reads this then, and by default writes to a home that may not be writable.
        os.environ.setdefault("MPLCONFIGDIR", str(cache_folder.place(settings.cache_dir) / "matplotlib"))
        stop.check()
        if name == "mirror":
            from job.cli import mirror

            mirror.answer(options, observer=ending.console, check_stop=stop.check)
            done = f"complete: the mirror at {options.to} is filled"
        else:
            run.answer(options, log=ending.console, progress=progress, stop=stop, environ=os.environ)
            done = "complete: the result is committed"
    except Exception as error:
        return ending.failed(error)
    ending.note(ExitCode.COMPLETE, done)
    return ExitCode.COMPLETE


def leave(exit_code: int) -> NoReturn:
    """End the process without the interpreter's own ending.

    While that takes its time, Python gives SIGTERM back its default handler: the signal and not the run would then
    decide how the process ends.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code)


def program() -> NoReturn:
    """The whole process: the console script `thaw`, and `python -m job`."""
    set_up_streams()
    leave(main(sys.argv[1:]))


if __name__ == "__main__":
    program()
