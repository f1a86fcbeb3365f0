"""The door: environment -> Settings -> one attempt -> exit code; signals; nothing else.

The handler for SIGTERM and SIGINT is installed before anything slow is imported: as process 1 of a container a
signal without a handler is lost. The first signal asks the run to commit and leave; a second one, or the end of the
grace period, ends the process at once, and the last commit stands.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from job.errors import ExitCode, Interrupted, ThawError

if TYPE_CHECKING:
    from job.console import Console
    from job.settings import Settings


class StopSignal:
    """SIGTERM and SIGINT, as a question that the run asks now and then."""

    def __init__(self) -> None:
        self.grace_seconds = 15.0
        self._received: str | None = None
        self._reading, self._writing = socket.socketpair()

    def install(self) -> None:
        """Handle both signals from now on.

        Python runs its own handlers between byte codes, so never inside a long native call. The number of the signal
        is therefore also written to a socket at once, and a thread reads it there.
        """
        self._writing.setblocking(False)
        signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._watch, daemon=True, name="signals").start()

    def check(self) -> None:
        """Raise Interrupted once a signal has come."""
        if self._received is not None:
            raise Interrupted(
                f"told to stop by {self._received}; what was committed stands",
                hint="start the same run again to carry on",
            )

    def _watch(self) -> NoReturn:
        self._received = signal.Signals(self._reading.recv(1)[0]).name
        self._reading.settimeout(self.grace_seconds)
        try:
            self._reading.recv(1)
            reason = "a second signal"
        except TimeoutError:
            reason = f"{self.grace_seconds:g} s after {self._received}"
        os.write(2, f"leaving at once, on {reason}; the last commit stands\n".encode())
        os._exit(ExitCode.INTERRUPTED)


def main(argv: Sequence[str]) -> int:
    """Make one attempt at the run that flags and environment describe; returns the exit code."""
    stop = StopSignal()
    stop.install()
    # TensorFlow's C++ notes on start-up; its warnings and errors are kept.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")

    from job.command_line import read_settings
    from job.console import Console

    try:
        settings = read_settings(argv, os.environ)
    except ThawError as error:
        print(_told(error), file=sys.stderr)
        return error.exit_code
    stop.grace_seconds = settings.grace_seconds
    console = Console(settings.log_format)
    return _attempt(settings, stop, console)


def _attempt(settings: "Settings", stop: StopSignal, console: "Console") -> int:
    from job import attempt
    from job.storage import open_store

    run_id = settings.resolved_run_id()
    console.bind(run_id=run_id)
    try:
        stop.check()
        attempt.make(
            settings,
            store=open_store(f"{settings.storage_uri}/{run_id}"),
            holder=f"{socket.gethostname()}:{os.getpid()}",
            reader=console,
            check_stop=stop.check,
        )
    except ThawError as error:
        console.failure(exit_code=int(error.exit_code), reason=error.message, hint=error.hint)
        return error.exit_code
    except Exception as error:
        console.failure(
            exit_code=int(ExitCode.UNEXPECTED),
            reason=f"{type(error).__name__}: {error}",
            hint="this is a bug, or something that this program does not know; what was committed stands",
            traceback=traceback.format_exc(),
        )
        return ExitCode.UNEXPECTED
    return ExitCode.COMPLETE


def _told(error: ThawError) -> str:
    return f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else "")


def leave(exit_code: int) -> NoReturn:
    """End the process without the interpreter's own ending.

    While that takes its time, Python gives SIGTERM back its default handler: the signal and not the run would then
    decide how the process ends.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
