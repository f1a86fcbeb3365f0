"""Random signals, by the hundred: `make soak`, or `python -m tests.soak --signals 200`.

Small runs, in a bucket or in a folder, each disturbed several times at random instants of its life: killed by SIGKILL
or SIGTERM, or paused by SIGSTOP for longer than its lease while a rival takes the run, and then continued. The bucket
is one of Cloud Storage; with `--store s3` it is in MinIO, with `az` in Azurite. Each process has a clock of its own.
Sometimes a second attempt, of the same Job or of another, runs beside it, and sometimes Cloud Storage fails. Then the
run is left to end. A run is lost when it does not end, or when a process ends with 0 and the record does not say
`done`; doubled when an epoch is in its history twice; different when one bit of outcome or history is not that of an
undisturbed run. A paused holder that has lost its run must end with 43.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from job.errors import ExitCode, ObjectMissing
from job.run.record import RECORD_NAME
from job.storage import open_store
from tests.conftest import REPOSITORY, SMALL_RUN, process_environment
from tests.gcs_server import BUCKET, GcsServer
from tests.servers import Azurite, Minio, StoreServer

EPOCHS = 25
"""Of each phase: so many that a run trains for about as long as it prepares."""
LEASE_SECONDS = 5
SIGNALS_IN_A_RUN = 5
CLOCKS = ("+0", "+90", "-90", "+3600", "-3600")
"""Seconds that the clock of a process is ahead; the time since its start is not changed."""
SIGNED_CLOCKS = ("+0", "+90", "-90")
"""The same where requests are signed with the time: S3 and Azure refuse one that is off by 15 minutes."""
PROGRAM = (
    "import runpy, threading, time; time.sleep = lambda seconds: threading.Event().wait(seconds) and None; "
    "runpy.run_module('job', run_name='__main__')"
)
"""`python -m job`, but for `time.sleep`: the system call behind it fails under libfaketime 0.9.10."""
RIVALS = 0.2
"""The share of processes that have a second one beside them; half of these are of another Job."""
SHORTEST_LIFE_SECONDS, SHARE_OF_A_LIFE = 0.5, 0.7
PATIENCE_SECONDS = 600
ALLOWED = {ExitCode.COMPLETE, ExitCode.SUPERSEDED, ExitCode.STORAGE_UNAVAILABLE}
ALLOWED_WHEN_KILLED = {-signal.SIGKILL, ExitCode.INTERRUPTED}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)
SERVERS: dict[str, Callable[[Path], GcsServer | StoreServer]] = {
    "gs": lambda folder: GcsServer(), "s3": Minio, "az": Azurite,
}  # fmt: skip
PASSING_FAULTS = ("503 before", "503 after", "429", "reset before", "reset after", "truncated", "corrupt")


class Soak:
    """The runs of a soak, and what became of them."""

    def __init__(self, server: GcsServer | StoreServer, folder: Path, *, library: Path, seed: int) -> None:
        self.server = server
        self.bucket = f"gs://{BUCKET}/soak" if isinstance(server, GcsServer) else f"{server.uri}/soak"
        self.variables = (
            {"STORAGE_EMULATOR_HOST": server.url} if isinstance(server, GcsServer) else dict(server.environment)
        )
        os.environ.update(self.variables)
        self.clocks = CLOCKS if isinstance(server, GcsServer) else SIGNED_CLOCKS
        self.folder = folder
        self.library = library
        self.seed = seed
        self.lock = threading.Lock()
        self.codes: Counter[int] = Counter()
        self.numbers = itertools.count()
        self.logs: dict[int, Path] = {}
        self.signals: Counter[str] = Counter()
        self.lost_while_paused = 0
        self.places: Counter[str] = Counter()
        self.stages: Counter[str] = Counter()
        self.rivals: Counter[str] = Counter()
        self.seconds_to_exit: list[float] = []
        self.problems: list[str] = []
        self.num_runs = 0
        began = time.monotonic()
        self.expected = self.result(self.run_to_the_end("undisturbed"))
        # On this machine. Most processes are to be alive when they are killed, and the last part of a run is soon done.
        self.longest_life_seconds = SHARE_OF_A_LIFE * (time.monotonic() - began)

    def environment(self, run_id: str, *, clock: str = "+0", **overrides: Any) -> dict[str, str]:
        in_folder = run_id.endswith("-folder")
        values = SMALL_RUN | {
            "head_epochs": EPOCHS, "fine_tune_epochs": EPOCHS, "data_dir": self.folder / "tfds",
            "cache_dir": self.folder / "cache", "run_id": run_id, "job_uid": run_id,
            "storage_uri": self.folder / "runs" if in_folder else self.bucket, "lease_seconds": LEASE_SECONDS,
        }  # fmt: skip
        faketime = {"LD_PRELOAD": str(self.library), "FAKETIME": f"{clock}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        return process_environment(values | overrides) | self.variables | (faketime if clock != "+0" else {})

    def begin(self, run_id: str, **overrides: Any) -> subprocess.Popen[bytes]:
        with self.lock:
            log = self.folder / f"{next(self.numbers)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM], env=self.environment(run_id, **overrides), cwd=REPOSITORY,
                stdout=file, stderr=file,
            )  # fmt: skip
        self.logs[process.pid] = log
        return process

    def run_to_the_end(self, run_id: str) -> str:
        for _ in range(10):
            if self.end_of(run_id, self.begin(run_id)) == ExitCode.COMPLETE:
                return run_id
        self.problems.append(f"{run_id} is lost")
        return run_id

    def end_of(self, run_id: str, process: subprocess.Popen[bytes], *, was_killed: bool = False) -> int:
        """The exit code, which must be one that is documented, and 0 only when the result is committed."""
        code = process.wait(timeout=PATIENCE_SECONDS)
        log = self.logs.pop(process.pid)
        state = self.record(run_id).get("state")
        with self.lock:
            self.codes[code] += 1
            if code not in ALLOWED | (ALLOWED_WHEN_KILLED if was_killed else set()):
                self.problems.append(f"{run_id} ended with {code}: {log.read_text()[-3000:]}")
            if code == ExitCode.COMPLETE and state != "done":
                self.problems.append(f"{run_id} is lost: a process ended with 0, and the record says {state}")
        log.unlink()
        return code

    def record(self, run_id: str) -> dict[str, Any]:
        place = str(self.folder / "runs") if run_id.endswith("-folder") else self.bucket
        with contextlib.suppress(ObjectMissing):
            return dict(json.loads(open_store(f"{place}/{run_id}").peek(RECORD_NAME)))
        return {}

    def holds(self, run_id: str, process: subprocess.Popen[bytes]) -> bool:
        """Whether the newest attempt is that of a process."""
        attempts = self.record(run_id).get("attempts", [])
        return bool(attempts) and f"{attempts[-1]['holder']} ".startswith(f"{socket.gethostname()}:{process.pid} ")

    def result(self, run_id: str) -> Any:
        record = self.record(run_id)
        learned = ("phase", "epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
        return record.get("outcome"), [[epoch[key] for key in learned] for epoch in record.get("history", ())]

    def disturb(self, number: int) -> None:
        """One run: disturbed several times, then left to end, and compared."""
        rng = random.Random(f"{self.seed}/{number}")
        place = rng.choice(["bucket", "folder"])
        run_id = f"run-{number:04d}-{place}"
        interval = rng.choice([0, 0.2, 120])
        for _ in range(SIGNALS_IN_A_RUN):
            if isinstance(self.server, GcsServer) and rng.random() < 0.3:
                self.server.fail(rng.choice(PASSING_FAULTS), at=rng.randrange(40))
            process = self.begin(run_id, clock=rng.choice(self.clocks), checkpoint_every_seconds=interval)
            rival = None
            if rng.random() < RIVALS:
                uid = rng.choice([run_id, "another-job"])
                rival = self.begin(
                    run_id, clock=rng.choice(self.clocks), checkpoint_every_seconds=interval, job_uid=uid
                )
                with self.lock:
                    self.rivals["of the same Job" if uid == run_id else "of another Job"] += 1
            time.sleep(rng.uniform(SHORTEST_LIFE_SECONDS, self.longest_life_seconds))
            stage = str(self.record(run_id).get("state", "before the claim"))
            kind = rng.choice(SIGNALS)
            if process.poll() is None:
                with self.lock:
                    self.signals[kind.name] += 1
                    self.stages[stage] += 1
            is_pause = kind == signal.SIGSTOP
            code = self.paused(run_id, process, rng) if is_pause else self.killed(run_id, process, kind)
            if rival is not None:
                self.end_of(run_id, rival)
            if code == ExitCode.COMPLETE:
                break
        self.run_to_the_end(run_id)
        with self.lock:
            self.num_runs += 1
            self.places[place] += 1
            if self.result(run_id) != self.expected:
                epochs = [(epoch["phase"], epoch["epoch"]) for epoch in self.record(run_id).get("history", ())]
                kind_of_problem = "doubled" if len(set(epochs)) < len(epochs) else "different"
                self.problems.append(f"{run_id} is {kind_of_problem}: {self.result(run_id)}")

    def killed(self, run_id: str, process: subprocess.Popen[bytes], kind: signal.Signals) -> int:
        """The exit code after SIGKILL or SIGTERM."""
        is_alive = process.poll() is None
        process.send_signal(kind)
        began = time.monotonic()
        code = self.end_of(run_id, process, was_killed=True)
        if is_alive and kind == signal.SIGTERM:
            with self.lock:
                self.seconds_to_exit.append(time.monotonic() - began)
        return code

    def paused(self, run_id: str, process: subprocess.Popen[bytes], rng: random.Random) -> int:
        """The exit code after a pause that is longer than the lease, with a rival of another Job meanwhile."""
        process.send_signal(signal.SIGSTOP)
        was_holder = self.holds(run_id, process)
        rival = self.begin(run_id, clock=rng.choice(self.clocks), job_uid="another-job")
        time.sleep(LEASE_SECONDS * rng.uniform(1.2, 3.0))
        has_lost = was_holder and not self.holds(run_id, process)
        process.send_signal(signal.SIGCONT)
        code = self.end_of(run_id, process)
        self.end_of(run_id, rival)
        with self.lock:
            self.lost_while_paused += has_lost
            if has_lost and code != ExitCode.SUPERSEDED:
                self.problems.append(f"{run_id}: a paused holder lost its run, and ended with {code}")
        return code

    @property
    def num_signals(self) -> int:
        return self.signals.total()


def faketime_library() -> Path:
    """Debian's libfaketime, which gives a process a clock of its own."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        sys.exit("libfaketime is missing, which shifts the clocks of processes: `make setup-services` installs it")
    return found[0]


def main() -> int:
    parser = argparse.ArgumentParser(description="kill and pause small runs at random, and see that none is lost")
    parser.add_argument("--signals", type=int, default=200, help="at least so many signals [default: 200]")
    parser.add_argument("--workers", type=int, default=2, help="runs at the same time [default: 2]")
    parser.add_argument("--seed", type=int, default=0, help="of the instants and signals [default: 0]")
    parser.add_argument("--store", choices=SERVERS, default="gs", help="the kind of bucket [default: gs]")
    arguments = parser.parse_args()
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        server = stack.enter_context(SERVERS[arguments.store](folder))
        from tests import shapes

        shapes.TwoShapes(data_dir=folder / "tfds").download_and_prepare()
        soak = Soak(server, folder, library=faketime_library(), seed=arguments.seed)
        number = 0
        with ThreadPoolExecutor(arguments.workers) as executor:
            while soak.num_signals < arguments.signals and not soak.problems:
                batch = [executor.submit(soak.disturb, number + index) for index in range(arguments.workers)]
                number += len(batch)
                for future in batch:
                    future.result()
                print(f"{soak.num_signals} signals in {soak.num_runs} runs, {len(soak.problems)} problems", flush=True)
    seconds = sorted(soak.seconds_to_exit)
    print(f"signals: {soak.num_signals} ({dict(soak.signals)}) in {soak.num_runs} runs, "
          f"{time.monotonic() - began:.0f} s")  # fmt: skip
    print(f"runs by store: {dict(soak.places)}")
    print(f"paused holders that lost their run: {soak.lost_while_paused}")
    print(f"record's state at the signal: {dict(soak.stages)}")
    print(f"second attempts beside them: {dict(soak.rivals)}")
    print(f"exit codes: {dict(sorted(soak.codes.items()))}")
    if seconds:
        print(f"seconds from SIGTERM to exit: median {seconds[len(seconds) // 2]:.1f}, longest {seconds[-1]:.1f}")
    print(f"lost, doubled or different: {len(soak.problems)}")
    for problem in soak.problems:
        print(f"  {problem}")
    return 1 if soak.problems else 0


if __name__ == "__main__":
    sys.exit(main())
