"""The content of `report/report.json`, which the page and the model card show.

| key | what it is |
|---|---|
| `run_id`, `fingerprint` | which run |
| `outcome` | as in the record: test accuracy with its 95 % interval, test loss in nats, digest of the weights |
| `gate` | the quality gate when the report was written: `min_test_accuracy`, `passed`; both null without one |
| `test` | metrics over the test split, with `confusion`, `per_class` and `calibration` |
| `predictions` | the first test images: index, label, predicted, probability |
| `most_confident` | the same of the surest predictions that are `right` and `wrong` |
| `training_sample` | the training images that the page shows: index, label |
| `splits` | examples in each |
| `class_counts` | examples of each class, by split and class name |
| `duplicates` | by pair of splits, as `train_test`: examples of the second whose image is in the first too |
| `history` | each epoch: losses, accuracies, seconds, images a second |
| `phases` | what trained in each, how fast, for how many epochs, and how many parameters |
| `layers` | of the model from pixels to logits |
| `durations_seconds` | by stage, over all attempts |
| `time_seconds`, `goodput_ratio` | by what the time was good for, over all attempts; the productive share, 0 to 1 |
| `num_attempts`, `attempts` | starts of the program: number, start, end, exit code |
| `settings`, `provenance` | every setting; versions, device, and what identifies data, weights and arithmetic |
"""

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from job import __version__
from job.phases import Phase
from job.report.gate import missed_gate
from job.schema import EpochResult, Record
from job.settings.settings import Settings

PACKAGES = ("tensorflow", "tensorflow-cpu", "keras", "tensorflow-datasets", "numpy")
ATTEMPT_FIELDS = {"number", "start", "end", "exit_code"}


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
    record: Record,
    settings: Settings,
    *,
    outcome: Mapping[str, Any],
    test: Mapping[str, Any],
    class_counts: Mapping[str, Mapping[str, int]],
    duplicates: Mapping[str, int],
    examples: Mapping[str, Any],
    history: Sequence[EpochResult],
    layers: Sequence[Mapping[str, Any]],
    durations_seconds: Mapping[str, float],
    time_seconds: Mapping[str, float],
    goodput_ratio: float,
    device: str,
) -> dict[str, Any]:
    """The content of report.json; every value is JSON.

    `examples` are `predictions`, `most_confident` and `training_sample`. Of two runs that end with the same weights
    only times, attempts and settings of operation differ.
    """
    gate = settings.min_test_accuracy
    return {
        "run_id": record.run_id,
        "fingerprint": record.fingerprint,
        "outcome": dict(outcome),
        "gate": {
            "min_test_accuracy": gate,
            "passed": None if gate is None else missed_gate(dict(outcome), gate) is None,
        },
        "test": dict(test),
        **examples,
        "splits": record.inputs["data"]["splits"],
        "class_counts": {split: dict(counts) for split, counts in class_counts.items()},
        "duplicates": dict(duplicates),
        "history": [epoch.model_dump(mode="json") for epoch in history],
        "phases": [_phase(phase, layers) for phase in settings.phases()],
        "layers": list(layers),
        "durations_seconds": dict(durations_seconds),
        "time_seconds": dict(time_seconds),
        "goodput_ratio": goodput_ratio,
        "num_attempts": len(record.attempts),
        "attempts": [attempt.model_dump(mode="json", include=ATTEMPT_FIELDS) for attempt in record.attempts],
        "settings": settings.shown(),
        "provenance": {"versions": versions(), "device": device, **record.inputs},
    }


def _phase(phase: Phase, layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "name": phase.name,
        "trainable": list(phase.trainable),
        "learning_rate": phase.learning_rate,
        "epochs": phase.epochs,
        "num_trainable": sum(layer["num_trainable"] for layer in layers if layer["part"] in phase.trainable),
    }
