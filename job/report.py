"""What a person, or a program, reads of a finished run: `report/report.json`.

Built from values alone; it measures nothing and stores nothing.
"""

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from job import __version__
from job.record import EpochResult

PACKAGES = ("tensorflow", "tensorflow-cpu", "keras", "tensorflow-datasets", "numpy")


def versions() -> dict[str, str]:
    """Versions of this program, Python, and the libraries that decide the result."""
    found = {"thaw": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package.removesuffix("-cpu")] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def compose(
    *,
    run_id: str,
    fingerprint: str,
    outcome: Mapping[str, Any],
    test: Mapping[str, Any],
    predictions: Sequence[Mapping[str, Any]],
    inputs: Mapping[str, Any],
    history: Sequence[EpochResult],
    durations: Mapping[str, float],
    time_seconds: Mapping[str, float],
    goodput: float,
    num_attempts: int,
    settings: Mapping[str, Any],
    device: str,
) -> dict[str, Any]:
    """The content of report.json; every value is JSON."""
    return {
        "run_id": run_id,
        "fingerprint": fingerprint,
        "outcome": dict(outcome),
        "test": dict(test),
        "splits": inputs["data"]["splits"],
        "history": [epoch.model_dump(mode="json") for epoch in history],
        "durations_seconds": dict(durations),
        "time_seconds": dict(time_seconds),
        "goodput_ratio": goodput,
        "num_attempts": num_attempts,
        "predictions": list(predictions),
        "settings": dict(settings),
        "provenance": {"versions": versions(), "device": device, **inputs},
    }


def summary(outcome: Mapping[str, Any], report_at: str, durations: Mapping[str, float]) -> dict[str, str]:
    """The rows of the closing table."""
    low, high = outcome["test_accuracy_interval"]
    rows = {
        "test accuracy": f"{outcome['test_accuracy']:.4f}  (95 % interval {low:.4f} to {high:.4f})",
        "test loss": f"{outcome['test_loss']:.4f}",
        "weights": f"sha256 {outcome['model_sha256'][:16]}...",
    }
    for stage, seconds in durations.items():
        rows[stage.replace("_", " ")] = f"{seconds:,.1f} s"
    return rows | {"results": report_at}
