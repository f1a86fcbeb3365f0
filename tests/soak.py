"""Random signals, by the hundred: `make soak`, or `python -m tests.soak --signals 200 --store s3`.

Small runs in a store, each disturbed several times at random instants of its life: killed by SIGKILL or SIGTERM, or
paused by SIGSTOP for longer than its lease while a rival takes the run, and then continued. Each process has a clock of
its own. Sometimes a second attempt, of the same Job or of another, runs beside it, and sometimes a request to the store
fails. Then the run is left to end. A run is lost when it does not end, or when a process ends with 0 and the record
does not say `done`; doubled when an epoch is in its history twice; different when one bit of outcome or history is not
that of an undisturbed run. A paused holder that has lost its run must end with 43.
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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from job.errors import ExitCode, ObjectMissing
from job.run.record import RECORD_NAME
from job.storage import open_store
from tests.conftest import REPOSITORY, SMALL_RUN, process_environment
from tests.fault_proxy import FaultProxy
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
FAULTS = 0.3
"""The share of processes that begin with a fault on its way."""
SHORTEST_LIFE_SECONDS, SHARE_OF_A_LIFE = 0.5, 0.7
PATIENCE_SECONDS = 600
ALLOWED = {ExitCode.COMPLETE, ExitCode.SUPERSEDED, ExitCode.STORAGE_UNAVAILABLE}
ALLOWED_WHEN_KILLED = {-signal.SIGKILL, ExitCode.INTERRUPTED}
ALLOWED_BEFORE_IT_BEGAN = {-signal.SIGTERM}
"""Of a process that was killed and has written nothing: Python itself was not yet ready for a signal."""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)
PASSING_FAULTS = ("503 before", "503 after", "429", "reset before", "reset after", "truncated", "corrupt")


@dataclass(frozen=True)
class Place:
    """Where runs are kept."""

    uri: str
    variables: dict[str, str]
    clocks: Sequence[str]
    fail: Callable[[str, random.Random], None]
    """Let a request fail soon, in one of the ways of PASSING_FAULTS."""


@contextlib.contextmanager
def in_folder(folder: Path) -> Iterator[Place]:
    """A folder. None of its requests fails."""
    yield Place(str(folder / "runs"), {}, CLOCKS, lambda kind, rng: None)


@contextlib.contextmanager
def in_cloud_storage(folder: Path) -> Iterator[Place]:
    """A bucket of the tests' own server of Google's protocol."""
    with GcsServer() as server:
        yield Place(
            f"gs://{BUCKET}/soak", {"STORAGE_EMULATOR_HOST": server.url}, CLOCKS,
            lambda kind, rng: server.fail(kind, at=rng.randrange(40)) and None,
        )  # fmt: skip


@contextlib.contextmanager
def behind_a_proxy(kind: type[StoreServer], folder: Path) -> Iterator[Place]:
    """A bucket of a real server, which a proxy lets fail."""
    with kind(folder) as server, FaultProxy(server.url) as proxy:
        variables = {name: value.replace(server.url, proxy.url) for name, value in server.environment.items()}
        yield Place(
            f"{server.uri}/soak", variables, SIGNED_CLOCKS,
            lambda kind, rng: proxy.fail(kind, after=rng.randrange(40)),
        )  # fmt: skip


STORES: dict[str, Callable[[Path], contextlib.AbstractContextManager[Place]]] = {
    "folder": in_folder, "gs": in_cloud_storage,
    "s3": partial(behind_a_proxy, Minio), "az": partial(behind_a_proxy, Azurite),
}  # fmt: skip


class Soak:
    """The runs of a soak in one store, and what became of them."""

    def __init__(self, place: Place, folder: Path, *, library: Path, seed: int) -> None:
        self.place = place
        os.environ.update(place.variables)
        self.folder = folder
        self.library = library
        self.seed = seed
        self.lock = threading.Lock()
        self.codes: Counter[int] = Counter()
        self.numbers = itertools.count()
        self.logs: dict[int, Path] = {}
        self.signals: Counter[str] = Counter()
        self.lost_while_paused = 0
        self.faults: Counter[str] = Counter()
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
        values = SMALL_RUN | {
            "head_epochs": EPOCHS, "fine_tune_epochs": EPOCHS, "data_dir": self.folder / "tfds",
            "cache_dir": self.folder / "cache", "run_id": run_id, "job_uid": run_id,
            "storage_uri": self.place.uri, "lease_seconds": LEASE_SECONDS,
        }  # fmt: skip
        faketime = {"LD_PRELOAD": str(self.library), "FAKETIME": f"{clock}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        return process_environment(values | overrides) | self.place.variables | (faketime if clock != "+0" else {})

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
        written = log.read_text()
        state = self.record(run_id).get("state")
        allowed = ALLOWED | (ALLOWED_WHEN_KILLED if was_killed else set())
        with self.lock:
            self.codes[code] += 1
            if code not in (allowed if written or not was_killed else allowed | ALLOWED_BEFORE_IT_BEGAN):
                self.problems.append(f"{run_id} ended with {code}: {written[-3000:]}")
            if code == ExitCode.COMPLETE and state != "done":
                self.problems.append(f"{run_id} is lost: a process ended with 0, and the record says {state}")
        log.unlink()
        return code

    def record(self, run_id: str) -> dict[str, Any]:
        with contextlib.suppress(ObjectMissing):
            return dict(json.loads(open_store(f"{self.place.uri}/{run_id}").peek(RECORD_NAME)))
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
        run_id = f"run-{number:04d}"
        interval = rng.choice([0, 0.2, 120])
        for _ in range(SIGNALS_IN_A_RUN):
            if rng.random() < FAULTS:
                fault = rng.choice(PASSING_FAULTS)
                self.place.fail(fault, rng)
                with self.lock:
                    self.faults[fault] += 1
            process = self.begin(run_id, clock=rng.choice(self.place.clocks), checkpoint_every_seconds=interval)
            rival = None
            if rng.random() < RIVALS:
                uid = rng.choice([run_id, "another-job"])
                rival = self.begin(
                    run_id, clock=rng.choice(self.place.clocks), checkpoint_every_seconds=interval, job_uid=uid
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
        rival = self.begin(run_id, clock=rng.choice(self.place.clocks), job_uid="another-job")
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


def soaked(store: str, *, signals: int, workers: int, seed: int) -> bool:
    """Whether nothing was lost, doubled or different in one store; prints what was seen."""
    from tests import shapes

    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        place = stack.enter_context(STORES[store](folder))
        shapes.TwoShapes(data_dir=folder / "tfds").download_and_prepare()
        soak = Soak(place, folder, library=faketime_library(), seed=seed)
        number = 0
        with ThreadPoolExecutor(workers) as executor:
            while soak.num_signals < signals and not soak.problems:
                batch = [executor.submit(soak.disturb, number + index) for index in range(workers)]
                number += len(batch)
                for future in batch:
                    future.result()
                print(f"{soak.num_signals} signals in {soak.num_runs} runs, {len(soak.problems)} problems", flush=True)
    seconds = sorted(soak.seconds_to_exit)
    print(f"store: {store}")
    print(f"signals: {soak.num_signals} ({dict(soak.signals)}) in {soak.num_runs} runs, "
          f"{time.monotonic() - began:.0f} s")  # fmt: skip
    print(f"faults of the store: {dict(soak.faults) if store != 'folder' else 'none'}")
    print(f"paused holders that lost their run: {soak.lost_while_paused}")
    print(f"record's state at the signal: {dict(soak.stages)}")
    print(f"second attempts beside them: {dict(soak.rivals)}")
    print(f"exit codes: {dict(sorted(soak.codes.items()))}")
    if seconds:
        print(f"seconds from SIGTERM to exit: median {seconds[len(seconds) // 2]:.1f}, longest {seconds[-1]:.1f}")
    print(f"lost, doubled or different: {len(soak.problems)}")
    for problem in soak.problems:
        print(f"  {problem}")
    return not soak.problems


def main() -> int:
    parser = argparse.ArgumentParser(description="kill and pause small runs at random, and see that none is lost")
    parser.add_argument("--signals", type=int, default=100, help="at least so many signals a store [default: 100]")
    parser.add_argument("--workers", type=int, default=2, help="runs at the same time [default: 2]")
    parser.add_argument("--seed", type=int, default=0, help="of the instants and signals [default: 0]")
    parser.add_argument("--store", nargs="+", choices=STORES, default=list(STORES), help="[default: all]")
    arguments = parser.parse_args()
    kept = []
    for store in arguments.store:
        try:
            kept.append(soaked(store, signals=arguments.signals, workers=arguments.workers, seed=arguments.seed))
        except pytest.skip.Exception as skipped:
            print(f"store: {store}: none: {skipped}")
    return 0 if kept and all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
