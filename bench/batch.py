"""What a larger batch does to the recipe: MobileNetV2 with the same epochs, so with fewer steps, and larger rates."""

from collections.abc import Iterable

from bench.measuring import Row
from bench.workload import Workload
from job.data.order import num_batches

SEEDS = 3
EPOCHS = 3
VARIANTS = ((32, 1), (128, 1), (128, 4), (512, 1), (512, 4), (512, 16))
"""Batch size, and by what both learning rates are multiplied: by nothing, its root, or as the batch is."""
RATES = {"HEAD": 1e-3, "FINE_TUNE": 1e-5}


def rows(load: Workload) -> Iterable[Row]:
    """Accuracy and loss over the test split; the values of a row are those of the seeds in turn."""
    size = 2560 if load.is_real else 1024
    splits = load.splits(size, 320, 1600 if load.is_real else 320)
    found: dict[tuple[int, int], list[tuple[float, float]]] = {variant: [] for variant in VARIANTS}
    for seed in range(SEEDS):
        for (batch_size, factor), outcomes in found.items():
            settings = load.mobilenet_settings() | {"IMAGE_SIZE": 96, "BATCH_SIZE": batch_size, "SEED": seed}
            for phase, rate in RATES.items():
                settings |= {f"{phase}_EPOCHS": EPOCHS, f"{phase}_LEARNING_RATE": factor * rate}
            _, record = load.run(f"batch-{batch_size}-{factor}-{seed}", splits, **settings)
            outcomes.append((record["outcome"]["test_accuracy"], record["outcome"]["test_loss"]))
    for (batch_size, factor), outcomes in found.items():
        of = f"batch {batch_size}, {num_batches(size, batch_size)} steps an epoch, rates x {factor}"
        yield Row(f"{of}: test accuracy", "", [accuracy for accuracy, _ in outcomes])
        yield Row(f"{of}: test loss", "nats", [loss for _, loss in outcomes])
