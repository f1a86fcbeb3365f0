"""Contents of reports as a run would compose them, from logits and epochs that a test chooses."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from job.data.composition import Composition, Skipped
from job.report.content import Results, compose
from job.report.gallery import Gallery, predictions, training_sample
from job.report.page import page
from job.schema import Attempt, EpochResult, Record
from job.settings.settings import Settings
from job.train.evaluation import evaluate, temperature_scaling, thresholds

SIDE = 24


def epoch(phase: str, number: int, **changes: float) -> EpochResult:
    values = {
        "train_loss": 0.5, "train_accuracy": 0.8, "validation_loss": 0.4, "validation_accuracy": 0.9,
        "train_seconds": 3.0, "validation_seconds": 1.0, "images_per_second": 40.0, "learning_rate": 1e-3,
    }  # fmt: skip
    ended = datetime(2026, 1, 2, 3, 5, tzinfo=UTC)
    return EpochResult(phase=phase, epoch=number, step=3, ended=ended, **(values | changes))


def content(
    class_names: tuple[str, ...] = ("cat", "dog"),
    *,
    wrong: int = 3,
    num_examples: int = 60,
    history: tuple[EpochResult, ...] = (epoch("head", 0), epoch("fine_tune", 0)),
    run_id: str = "run",
    duplicates: dict[str, int] | None = None,
    names: tuple[str, ...] | None = None,
    skipped: tuple[Skipped, ...] = (),
    **settings: Any,
) -> dict[str, Any]:
    """A report over `num_examples` test images, of which the first `wrong` are taken for the next class."""
    num_classes = len(class_names)
    labels = np.arange(num_examples) % num_classes
    predicted = np.where(np.arange(num_examples) < wrong, (labels + 1) % num_classes, labels)
    sureness = 0.5 + np.random.default_rng(0).uniform(0, 6, (num_examples, 1))
    logits = np.eye(num_classes)[predicted] * sureness
    chosen = Settings(
        **(
            {"head_epochs": 1, "fine_tune_epochs": 1, "backbone": "Tiny", "weights": "none", "image_size": SIDE}
            | settings
        )
    )
    sizes = {"train": 40, "validation": 16, "test": 60}
    record = Record(
        run_id="run", fingerprint="0123456789ab", settings=chosen.result_settings(), lineages=("0123abcd",),
        attempts=(Attempt(number=1, holder="host", start=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),),
        inputs={
            "data": {
                "dataset": "shapes/1.0.0", "splits": sizes, "sha256": "ab" * 32,
            },
            "backbone_sha256": "cd" * 32,
            "arithmetic": {"precision": "float32", "xla": False},
        },
    )  # fmt: skip
    scaling = temperature_scaling(logits, labels, fitted=2.0 if wrong else None, is_used=chosen.calibrate)
    temperature = scaling["temperature"] if chosen.calibrate else 1.0
    threshold = 0.5 if chosen.threshold == "auto" else float(chosen.threshold)
    test = evaluate(logits / temperature, labels, class_names, threshold=threshold)
    results = Results(
        test=test,
        temperature=temperature,
        threshold=threshold,
        temperature_scaling=scaling,
        thresholds=thresholds(logits, labels, used=threshold, best=0.4) if num_classes == 2 else None,
        predictions=b"",
        outcome={
            "test_accuracy": test.accuracy, "test_accuracy_interval": test.accuracy_interval, "test_loss": test.loss,
            "test_balanced_accuracy": test.balanced_accuracy, "model_sha256": "ef" * 32,
        },
        gallery=gallery(
            {
                "training_sample": training_sample(np.arange(40) % num_classes, class_names, seed=0),
                **predictions(logits, labels, class_names, names=names),
            }
        ),
        layers=[
            {"part": "input", "name": "rescaling", "kind": "Rescaling", "output_shape": [24, 24, 3],
             "num_parameters": 0, "num_trainable": 0},
            {"part": "backbone", "name": "bn", "kind": "BatchNormalization", "output_shape": [12, 12, 8],
             "num_parameters": 32, "num_trainable": 16},
            {"part": "head", "name": "head", "kind": "Dense", "output_shape": [1],
             "num_parameters": 9, "num_trainable": 9},
        ],
        num_trainable={
            phase.name: {"backbone": 0 if phase.unfreeze == "none" else 16, "head": 9}
            for phase in chosen.training_phases()
        },
    )  # fmt: skip
    counts = {split: np.full(num_classes, size // num_classes) for split, size in sizes.items()}
    composed = compose(
        record, chosen, results, history=history,
        composition=Composition(class_names, counts, duplicates or {}, skipped),
        times=[{"head": {"productive": 3.0, "compile": 1.0}, "fine_tune": {"productive": 3.0, "compile": 1.0}}],
        device="a processor",
    )  # fmt: skip
    # A record refuses a run id that is no name; the card is tried with any.
    return composed | {"run_id": run_id}


def gallery(examples: Mapping[str, Any]) -> Gallery:
    """Noise for pictures of examples."""
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, (*shape, SIDE, SIDE, 3), dtype=np.uint8)

    surest, training = examples["most_confident"], noise(len(examples["training_sample"]))

    def maps(examples: list[Any]) -> np.ndarray:
        return rng.uniform(0, 1, (len(examples), 5, 5)).astype(np.float32)

    return Gallery(
        examples=dict(examples), training=training, augmented=noise(min(4, len(training)), 5),
        right=noise(len(surest["right"])), wrong=noise(len(surest["wrong"])),
        right_maps=maps(surest["right"][:6]), wrong_maps=maps(surest["wrong"]),
    )  # fmt: skip


def draw(report: Mapping[str, Any]) -> str:
    """The page of a report, with noise for pictures."""
    return page(report, gallery(report))


pages: dict[str, str] = {}
"""Of the reports that this process has drawn: most tests look at the same few."""


def render(report: Mapping[str, Any]) -> str:
    """The same, drawn once for equal reports."""
    key = json.dumps(report)
    if key not in pages:
        pages[key] = draw(report)
    return pages[key]
