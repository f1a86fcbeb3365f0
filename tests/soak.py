"""Random kills, by the hundred: `make soak`, or `python -m tests.soak --kills 200`.

Small runs on the server of Cloud Storage, each killed several times at random instants of its life by SIGKILL or
SIGTERM, sometimes with a second attempt beside it, of the same Job or of another, and sometimes with a store that
fails; then left to end. A run is lost when it does not end, or when a process ends with 0 and the record does not say
`done`; doubled when an epoch is in its history twice; and different when one bit of outcome or history is not that of
an undisturbed run.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from job.errors import ExitCode
from tests.conftest import REPOSITORY, SMALL_RUN, process_environment
from tests.gcs_server import BUCKET, GcsServer

EPOCHS = 25
"""Of each phase: so many that a run trains for about as long as it prepares."""
KILLS_IN_A_RUN = 5
RIVALS = 0.2
"""The share of processes that have a second one beside them; half of these are of another Job."""
SHORTEST_LIFE_SECONDS, SHARE_OF_A_LIFE = 0.5, 0.7
PATIENCE_SECONDS = 600
ALLOWED = {ExitCode.COMPLETE, ExitCode.SUPERSEDED, ExitCode.STORAGE_UNAVAILABLE}
ALLOWED_WHEN_KILLED = {-signal.SIGKILL, ExitCode.INTERRUPTED}
PASSING_FAULTS = ("503 before", "503 after", "429", "reset before", "reset after", "truncated", "corrupt")


class Soak:
    """The runs of a soak, and what became of them."""

    def __init__(self, server: GcsServer, folder: Path, *, seed: int) -> None:
        self.server = server
        self.folder = folder
        self.seed = seed
        self.lock = threading.Lock()
        self.codes: Counter[int] = Counter()
        self.kills: Counter[str] = Counter()
        self.stages: Counter[str] = Counter()
        self.rivals: Counter[str] = Counter()
        self.seconds_to_exit: list[float] = []
        self.problems: list[str] = []
        self.num_runs = 0
        began = time.monotonic()
        self.expected = self.result(self.run_to_the_end("undisturbed"))
        # On this machine. Most processes are to be alive when they are killed, and the last part of a run is soon done.
        self.longest_life_seconds = SHARE_OF_A_LIFE * (time.monotonic() - began)

    def environment(self, run_id: str, **overrides: Any) -> dict[str, str]:
        values = SMALL_RUN | {
            "head_epochs": EPOCHS, "fine_tune_epochs": EPOCHS, "data_dir": self.folder / "tfds",
            "cache_dir": self.folder / "cache", "run_id": run_id, "job_uid": run_id,
            "storage_uri": f"gs://{BUCKET}/soak", "lease_seconds": 5,
            "termination_log": self.folder / f"{run_id}.json",
        }  # fmt: skip
        return process_environment(values | overrides) | {"STORAGE_EMULATOR_HOST": self.server.url}

    def begin(self, run_id: str, **overrides: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "job"],
            env=self.environment(run_id, **overrides), cwd=REPOSITORY,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def run_to_the_end(self, run_id: str) -> str:
        for _ in range(10):
            code = self.begin(run_id).wait(timeout=PATIENCE_SECONDS)
            self.check_end(run_id, code)
            if code == ExitCode.COMPLETE:
                return run_id
        self.problems.append(f"{run_id} is lost: {self.message(run_id)}")
        return run_id

    def check_end(self, run_id: str, code: int, *, was_killed: bool = False) -> None:
        """Whether a process ended in a way that is documented, and 0 only when the result is committed."""
        state = self.record(run_id).get("state")
        with self.lock:
            self.codes[code] += 1
            if code not in ALLOWED | (ALLOWED_WHEN_KILLED if was_killed else set()):
                self.problems.append(f"{run_id} ended with {code}: {self.message(run_id)}")
            if code == ExitCode.COMPLETE and state != "done":
                self.problems.append(f"{run_id} is lost: a process ended with 0, and the record says {state}")

    def message(self, run_id: str) -> str:
        path = self.folder / f"{run_id}.json"
        return path.read_text() if path.exists() else "no termination message"

    def record(self, run_id: str) -> dict[str, Any]:
        name = f"soak/{run_id}/run.json"
        return dict(json.loads(self.server.objects[name].data)) if name in self.server.objects else {}

    def result(self, run_id: str) -> Any:
        record = self.record(run_id)
        learned = ("phase", "epoch", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
        return record.get("outcome"), [[epoch[key] for key in learned] for epoch in record.get("history", ())]

    def disturb(self, number: int) -> None:
        """One run: killed several times, then left to end, and compared."""
        rng = random.Random(f"{self.seed}/{number}")
        run_id = f"run-{number:04d}"
        interval = rng.choice([0, 0.2, 120])
        for _ in range(KILLS_IN_A_RUN):
            if rng.random() < 0.3:
                self.server.fail(rng.choice(PASSING_FAULTS), at=rng.randrange(40))
            process = self.begin(run_id, checkpoint_every_seconds=interval)
            rival = None
            if rng.random() < RIVALS:
                uid = rng.choice([run_id, "another-job"])
                rival = self.begin(run_id, checkpoint_every_seconds=interval, job_uid=uid)
                with self.lock:
                    self.rivals["of the same Job" if uid == run_id else "of another Job"] += 1
            time.sleep(rng.uniform(SHORTEST_LIFE_SECONDS, self.longest_life_seconds))
            stage = str(self.record(run_id).get("state", "before the claim"))
            kind = rng.choice([signal.SIGKILL, signal.SIGTERM])
            is_alive = process.poll() is None
            process.send_signal(kind)
            began = time.monotonic()
            code = process.wait(timeout=60)
            seconds = time.monotonic() - began
            self.check_end(run_id, code, was_killed=True)
            if is_alive:
                with self.lock:
                    self.kills[kind.name] += 1
                    self.stages[stage] += 1
                    if kind == signal.SIGTERM:
                        self.seconds_to_exit.append(seconds)
            if rival is not None:
                self.check_end(run_id, rival.wait(timeout=PATIENCE_SECONDS))
            if code == ExitCode.COMPLETE:
                break
        self.run_to_the_end(run_id)
        with self.lock:
            self.num_runs += 1
            if self.result(run_id) != self.expected:
                epochs = [(epoch["phase"], epoch["epoch"]) for epoch in self.record(run_id).get("history", ())]
                kind_of_problem = "doubled" if len(set(epochs)) < len(epochs) else "different"
                self.problems.append(f"{run_id} is {kind_of_problem}: {self.result(run_id)}")

    @property
    def num_kills(self) -> int:
        return self.kills.total()


def main() -> int:
    parser = argparse.ArgumentParser(description="kill small runs at random, and see that none is lost")
    parser.add_argument("--kills", type=int, default=200, help="at least so many processes killed [default: 200]")
    parser.add_argument("--workers", type=int, default=2, help="runs at the same time [default: 2]")
    parser.add_argument("--seed", type=int, default=0, help="of the instants and signals [default: 0]")
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as name, GcsServer() as server:
        folder = Path(name)
        from tests import shapes

        shapes.TwoShapes(data_dir=folder / "tfds").download_and_prepare()
        soak = Soak(server, folder, seed=arguments.seed)
        number = 0
        with ThreadPoolExecutor(arguments.workers) as executor:
            while soak.num_kills < arguments.kills and not soak.problems:
                batch = [executor.submit(soak.disturb, number + index) for index in range(arguments.workers)]
                number += len(batch)
                for future in batch:
                    future.result()
                print(f"{soak.num_kills} kills in {soak.num_runs} runs, {len(soak.problems)} problems", flush=True)
    seconds = sorted(soak.seconds_to_exit)
    print(f"kills: {soak.num_kills} ({dict(soak.kills)}) in {soak.num_runs} runs, {time.monotonic() - began:.0f} s")
    print(f"record's state at the kill: {dict(soak.stages)}")
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
