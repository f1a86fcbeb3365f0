"""What the README says of speed, measured: alternatives side by side and interleaved in one run, as ratios.

Timings decide no test. The demo's data set is drawn where THAW_TEST_DATA names no photographs.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from job.ledger import by_stage

REPETITIONS = 5
RECORDED_STEPS = 10_000
RESULTS = Path(__file__).parent / "results.json"

Measure = Callable[[], float]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="thaw-bench-") as folder:
        place = Path(folder)
        rows = [*around_a_run(place), *commits(place), *recording(), *input_pipeline(place)]
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"\n{'measured':58s} {'median':>9s} {'lowest':>9s} {'highest':>9s}")
    for row in rows:
        print(f"{row['what']:58s} {row['median']:9.3f} {row['lowest']:9.3f} {row['highest']:9.3f}  {row['unit']}")
    print(f"\n{REPETITIONS} repetitions; every value is in {RESULTS}")


def interleaved(first: Measure, second: Measure) -> tuple[list[float], list[float]]:
    """Both alternatives in turn, so that what disturbs the machine disturbs both."""
    pairs = [(first(), second()) for _ in range(REPETITIONS)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def row(what: str, values: list[float], unit: str) -> dict[str, object]:
    print(f"  {what}: {statistics.median(values):.3f} {unit}", flush=True)
    return {
        "what": what, "unit": unit, "median": statistics.median(values), "lowest": min(values),
        "highest": max(values), "values": values,
    }  # fmt: skip


def demo_environment(place: Path, **overrides: str) -> dict[str, str]:
    settings = {
        "DATASET": "drawn_cats_vs_dogs", "DATA_DIR": f"{place}/data", "STORAGE_URI": f"{place}/runs",
        "TRAIN_SPLIT": "train[:70%]", "VALIDATION_SPLIT": "train[70%:85%]", "TEST_SPLIT": "train[85%:]",
        "BACKBONE": "Tiny", "WEIGHTS": "none", "IMAGE_SIZE": "64", "HEAD_EPOCHS": "1", "FINE_TUNE_EPOCHS": "1",
        "LOG_FORMAT": "json",
    }  # fmt: skip
    clean = {name: value for name, value in os.environ.items() if not name.startswith("THAW_")}
    return clean | {f"THAW_{name}": value for name, value in (settings | overrides).items()}


def seconds_of(command: list[str], env: dict[str, str]) -> float:
    started = time.monotonic()
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def around_a_run(place: Path) -> list[dict[str, object]]:
    """A finished run against a run, and against Python alone."""
    job = [sys.executable, "-m", "job"]
    seconds_of(job, demo_environment(place, RUN_ID="finished"))
    finished, python = interleaved(
        lambda: seconds_of(job, demo_environment(place, RUN_ID="finished")),
        lambda: seconds_of([sys.executable, "-c", "import numpy, pydantic_settings"], demo_environment(place)),
    )
    return [
        row("a finished run, answered", finished, "s"),
        row("Python with NumPy and pydantic-settings, imported", python, "s"),
    ]


def commits(place: Path) -> list[dict[str, object]]:
    """Fine-tuning with a commit after every step against one with a commit after every epoch."""
    number = iter(range(10**6))

    def fine_tune_seconds(every: str) -> float:
        run_id = f"commits-{next(number)}"
        seconds_of(
            [sys.executable, "-m", "job"], demo_environment(place, RUN_ID=run_id, CHECKPOINT_EVERY_SECONDS=every)
        )
        record = json.loads((place / "runs" / run_id / "run.json").read_text())
        return by_stage(attempt["seconds"] for attempt in record["attempts"])["fine_tune"]

    often, seldom = interleaved(lambda: fine_tune_seconds("0"), lambda: fine_tune_seconds("120"))
    ratios = [a / b for a, b in zip(often, seldom, strict=True)]
    return [row("fine-tuning, a commit every step over one an epoch", ratios, "x")]


def recording() -> list[dict[str, object]]:
    """Processor time of a step that is recorded as metrics, against telling nobody."""
    from job.events import PHASE_STARTED, Readers, StepDone
    from job.metrics import Metrics
    from job.progress import Progress

    metrics = Metrics(Progress(), constants={"run_id": "", "fingerprint": "", "dataset": "", "backbone": ""}, disks=[])
    metrics.event(PHASE_STARTED, phase="head", epoch=0, step=0, learning_rate=1e-3)

    def microseconds_a_step(readers: Readers) -> float:
        started = time.thread_time()
        for step in range(RECORDED_STEPS):
            done = StepDone(
                phase="head", epoch=0, step=step, num_steps=RECORDED_STEPS, batch=step, num_batches=RECORDED_STEPS,
                num_examples=32, seconds=0.1, data_wait_seconds=0.0, is_first=False,
            )  # fmt: skip
            readers.step(done, lambda: (0.0, 0.0))
        return 1e6 * (time.thread_time() - started) / RECORDED_STEPS

    told, untold = interleaved(lambda: microseconds_a_step(Readers(metrics)), lambda: microseconds_a_step(Readers()))
    return [
        row("a step recorded as metrics", told, "us"),
        row("a step told to nobody", untold, "us"),
    ]


def input_pipeline(place: Path) -> list[dict[str, object]]:
    """Images a second: read again from the prepared files each epoch, and from the cache in memory."""
    from job.data import Split, load_splits, train_batches

    photographs = os.environ.get("THAW_TEST_DATA")
    dataset, data_dir, size = (
        ("cats_vs_dogs", f"{photographs}/tfds", 150) if photographs else ("drawn_cats_vs_dogs", f"{place}/data", 64)
    )

    def split(cache: str) -> Split:
        splits = load_splits(
            dataset=dataset, data_dir=data_dir, specs=("train[:960]", "train[960:970]", "train[970:980]"),
            image_size=size, cache=cache, cache_dir=place, check_stop=lambda: None,  # type: ignore[arg-type]
        )  # fmt: skip
        splits.wait(check_stop=lambda: None)
        return splits.train

    def images_per_second(source: Split) -> float:
        started = time.monotonic()
        for _ in train_batches(source, batch_size=32, seed=0, phase="head", epoch=0):
            pass
        return len(source) / (time.monotonic() - started)

    cached, decoded = split("memory"), split("none")
    fast, slow = interleaved(lambda: images_per_second(cached), lambda: images_per_second(decoded))
    return [
        row(f"images a second, cached, {dataset} at {size} px", fast, "1/s"),
        row(f"images a second, decoded each time, {dataset} at {size} px", slow, "1/s"),
    ]


if __name__ == "__main__":
    main()
