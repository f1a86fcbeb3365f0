"""The content of `report/report.json`, which the page and the model card show.

| key | value |
|---|---|
| `run_id`, `fingerprint` | the run |
| `outcome` | as in the record: test accuracy with its 95 % interval, test loss in nats, digest of the weights |
| `gate` | quality gates at that time: `min_test_accuracy`, `min_test_balanced_accuracy`, `passed`; null without one |
| `test` | metrics over the test split, with `confusion`, `per_class`, `macro`, `precision_recall` and `calibration` |
| `temperature_scaling` | temperature from the validation split; loss and calibration over test before and after it |
| `thresholds` | of two classes: threshold in use, best one on validation, and what both and 0.5 give over test |
| `predictions` | the first test images: index, name (null in TFDS data), label, predicted, probability |
| `most_confident` | the same of the most probable predictions that are `right` and `wrong` |
| `training_sample` | the training images that the page shows: index, label |
| `splits` | examples in each |
| `class_counts` | examples of each class, by split and class name |
| `duplicates` | by pair of splits, as `train_test`: examples of the second whose image is also in the first |
| `skipped` | images that cannot be read and were left out: split, name, reason, sha256 |
| `history` | each epoch: losses, accuracies, seconds, images a second |
| `phases` | of each its settings, and how many parameters train, in all and of each part of the model |
| `layers` | of the model, from pixels to logits |
| `durations_seconds` | by stage, over all attempts |
| `time_seconds`, `goodput_ratio` | by category, over all attempts; the productive share, 0 to 1 |
| `num_attempts`, `attempts` | starts of the program: number, start, end, exit code, workers |
| `settings`, `provenance` | every setting; versions, device, and what identifies data, weights and arithmetic |
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from job import __version__
from job.data.composition import Composition
from job.observe.ledger import Seconds, by_category, by_stage, goodput
from job.phases import Phase
from job.report.gallery import Gallery
from job.report.gate import missed_gate
from job.schema import Record
from job.settings.settings import Settings
from job.train.evaluation import Evaluation

PACKAGES = ("tensorflow", "tensorflow-cpu", "keras", "tensorflow-datasets", "numpy")
ATTEMPT_FIELDS = {"number", "start", "end", "exit_code", "num_workers"}


@dataclass(frozen=True, kw_only=True)
class Results:
    """The final evaluation of a trained model. `outcome` is kept in the record; `layers` are those of the model.

    `predictions` is the file of them all, `num_trainable` are the parameters that train, by phase and part. The model
    answers with its logits divided by `temperature`, and of two classes with the second above `threshold`.
    `temperature_scaling` and `thresholds` are those of `job.train.evaluation`.
    """

    outcome: dict[str, Any]
    test: Evaluation
    temperature: float
    threshold: float
    temperature_scaling: dict[str, Any]
    thresholds: dict[str, Any] | None
    gallery: Gallery
    predictions: bytes
    layers: list[dict[str, Any]]
    num_trainable: Mapping[str, Mapping[str, int]]


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
    results: Results,
    *,
    composition: Composition,
    times: Sequence[Seconds],
    device: str,
) -> dict[str, Any]:
    """The content of report.json; every value is JSON. `times` are the seconds of each attempt.

    Of two runs that end with the same weights only times, attempts, names of images and settings of operation differ.
    """
    gates = settings.gates()
    return {
        "run_id": record.run_id,
        "fingerprint": record.fingerprint,
        "outcome": results.outcome,
        "gate": {
            "min_test_accuracy": settings.min_test_accuracy,
            "min_test_balanced_accuracy": settings.min_test_balanced_accuracy,
            "passed": missed_gate(results.outcome, gates) is None if gates else None,
        },
        "test": results.test.as_json(),
        "temperature_scaling": results.temperature_scaling,
        "thresholds": results.thresholds,
        **results.gallery.examples,
        "splits": record.inputs["data"]["splits"],
        "class_counts": composition.as_json(),
        "duplicates": dict(composition.duplicates),
        "skipped": [vars(image) for image in composition.skipped],
        "history": [epoch.model_dump(mode="json") for epoch in record.history],
        "phases": [_phase(phase, results.num_trainable[phase.name]) for phase in settings.training_phases()],
        "layers": results.layers,
        "durations_seconds": by_stage(times),
        "time_seconds": by_category(times),
        "goodput_ratio": goodput(times),
        "num_attempts": len(record.attempts),
        "attempts": [attempt.model_dump(mode="json", include=ATTEMPT_FIELDS) for attempt in record.attempts],
        "settings": settings.shown(),
        "provenance": {"versions": versions(), "device": device, **record.inputs},
    }


def _phase(phase: Phase, num_trainable: Mapping[str, int]) -> dict[str, Any]:
    return vars(phase) | {"num_trainable": sum(num_trainable.values()), "num_trainable_of_parts": dict(num_trainable)}
