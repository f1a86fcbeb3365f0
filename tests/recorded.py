"""Parts of run records for the tests, all valid: 100 examples in batches of 10, two epochs of either phase."""

from datetime import UTC, datetime, timedelta
from typing import Any

from job.schema import Attempt, CheckpointEntry, EpochResult, Record

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)

OUTCOME: dict[str, Any] = {
    "test_accuracy": 0.9, "test_accuracy_interval": [0.8, 0.95], "test_loss": 0.25, "model_sha256": "ab" * 32
}  # fmt: skip

INPUTS: dict[str, Any] = {
    "data": {"splits": {"train": 100, "validation": 20, "test": 40}, "sha256": "cd" * 32},
    "backbone_sha256": "ef" * 32,
    "arithmetic": {"precision": "float32", "xla": False},
}


def attempt(**fields: Any) -> Attempt:
    return Attempt(**({"number": 1, "holder": "here:1", "start": NOON} | fields))


def checkpoint(phase: str, step: int) -> CheckpointEntry:
    return CheckpointEntry(
        name="checkpoints/c", phase=phase, step=step, num_epochs=0, size=1, sha256="0" * 64, attempt=1,
        time=NOON + timedelta(hours=1),
    )  # fmt: skip


def epoch(phase: str, index: int, images_per_second: float = 50.0) -> EpochResult:
    return EpochResult(
        phase=phase, epoch=index, step=10 * (index + 1), ended=NOON, train_loss=0.1, train_accuracy=0.9,
        validation_loss=0.1, validation_accuracy=0.9, train_seconds=1.0, validation_seconds=2.0,
        images_per_second=images_per_second, learning_rate=1e-3,
    )  # fmt: skip


def record(**fields: Any) -> Record:
    """A record; one that is done has ended, with an outcome."""
    settings = {"HEAD_EPOCHS": 2, "FINE_TUNE_EPOCHS": 2, "BATCH_SIZE": 10}
    values = {
        "run_id": "r", "fingerprint": "f", "settings": settings, "lineages": ("0123abcd",), "inputs": INPUTS,
        "attempts": (attempt(),),
    }  # fmt: skip
    if fields.get("state") == "done":
        values |= {"outcome": OUTCOME, "attempts": (attempt(end=NOON, exit_code=0),)}
    return Record(**(values | fields))
