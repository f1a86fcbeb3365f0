"""The article's plain Keras script against a run of the same sizes and epochs, seed by seed."""

import json
import sys
from collections.abc import Iterable
from typing import Any

from bench.measuring import Finished, Row, against, finished
from bench.workload import Workload
from job.observe.ledger import by_stage

SEEDS = 3
NAMES = ("the article's script", "a run")
BYTES_A_GIGABYTE = 1e9


def rows(load: Workload) -> Iterable[Row]:
    """Wall time, time and rate of each phase, peak memory, and test accuracy, over `SEEDS` seeds."""
    images, others, epochs = (480, 320, 5) if load.is_real else (128, 32, 1)
    splits = load.splits(images, others, others)
    scripts: list[tuple[Finished, dict[str, Any]]] = []
    runs: list[tuple[Finished, dict[str, Any], dict[str, float]]] = []
    for seed in range(SEEDS):
        scripts.append(_script(load, splits, seed=seed, epochs=epochs))
        runs.append(_run(load, splits, seed=seed, epochs=epochs))
    yield from against(
        "whole process", "s", [script.seconds for script, _ in scripts], [run.seconds for run, _, _ in runs],
        names=NAMES, goal="at least 2.5 on two cores",
    )  # fmt: skip
    yield from against(
        "start to test result", "s", [result["wall_seconds"] for _, result in scripts],
        [run.seconds_until("evaluated") for run, _, _ in runs], names=NAMES,
    )  # fmt: skip
    for phase in ("head", "fine_tune"):
        theirs = [result["seconds"][phase] for _, result in scripts]
        ours = [stages[phase] for _, _, stages in runs]
        yield from against(f"{phase}, compiled, trained and validated", "s", theirs, ours, names=NAMES)
        trained = images * epochs
        yield Row(f"{phase}: {NAMES[0]}", "trained images/s", [trained / seconds for seconds in theirs])
        yield Row(f"{phase}: {NAMES[1]}", "trained images/s", [trained / seconds for seconds in ours])
    peaks = [[process.peak_bytes / BYTES_A_GIGABYTE for process, *_ in processes] for processes in (runs, scripts)]
    yield from against("peak memory", "GB", *peaks, names=(NAMES[1], NAMES[0]), goal="at most 0.6")
    yield Row(f"test accuracy: {NAMES[0]}", "", [result["accuracy"] for _, result in scripts])
    yield Row(f"test accuracy: {NAMES[1]}", "", [outcome["test_accuracy"] for _, outcome, _ in runs], "not lower")


def _script(load: Workload, splits: tuple[str, str, str], *, seed: int, epochs: int) -> tuple[Finished, dict[str, Any]]:
    options = {
        "dataset": load.dataset, "data_dir": str(load.data_dir), "splits": splits, "image_size": load.image_size,
        "weights": load.weights if load.is_real else None, "seed": seed,
        "phases": [("head", 1e-3, epochs), ("fine_tune", 1e-5, epochs)],
    }  # fmt: skip
    command = [sys.executable, "-P", "bench/article.py", json.dumps(options)]
    process = finished(command, load.environment("", splits))
    return process, json.loads(process.output.splitlines()[-1])


def _run(
    load: Workload, splits: tuple[str, str, str], *, seed: int, epochs: int
) -> tuple[Finished, dict[str, Any], dict[str, float]]:
    process, record = load.run(f"seed-{seed}", splits, SEED=seed, HEAD_EPOCHS=epochs, FINE_TUNE_EPOCHS=epochs)
    return process, record["outcome"], by_stage(attempt["seconds"] for attempt in record["attempts"])
