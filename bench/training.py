"""The recipe's training in this process, a step at a time."""

import time
from collections.abc import Iterator
from pathlib import Path

from bench.workload import Workload
from job.data.order import Portion
from job.data.splits import DataRequest, load_splits
from job.model.augmentation_policy import Augmentation
from job.model.classifier import ModelRequest, build_classifier
from job.observe.events import StepDone
from job.observe.ledger import Ledger
from job.phases import Phase
from job.train import loop, numerics
from job.train.collective import Collective
from job.train.state import PhaseState
from job.train.step import Recipe

BATCH_SIZE = 32
HEAD = Phase(name="head", unfreeze="none", learning_rate=1e-3, epochs=10**6)
FINE_TUNE = Phase(name="fine_tune", unfreeze="all", learning_rate=1e-5, epochs=10**6)


def training(
    load: Workload,
    scratch: Path,
    collective: Collective,
    *,
    num_examples: int,
    phase: Phase = FINE_TUNE,
    backbone: str | None = None,
) -> tuple[PhaseState, Iterator[loop.Fact]]:
    """A model before its first step, and its steps and epochs without an end, as one of the workers has them.

    It is Xception with the weights of the workload, or a `backbone` with new ones.
    """
    size = load.image_size
    request = DataRequest(
        dataset=load.dataset, data_dir=str(load.data_dir), specs=load.splits(num_examples, 32, 32), image_size=size,
        cache="memory", cache_dir=scratch,
        portion=Portion(share=collective.share, batch_size=BATCH_SIZE, evaluation_batch_size=BATCH_SIZE, seed=0),
    )  # fmt: skip
    splits = load_splits(request, check_stop=lambda: None)
    model = ModelRequest(
        backbone=backbone or "Xception", weights="none" if backbone else load.weights, image_size=size, num_classes=2,
        dropout=0.2, augmentation=Augmentation(flip="horizontal", rotation=0.1),
        policy=numerics.dtype_policy(numerics.choose(precision="auto", xla="auto")["precision"]), seed=0,
    )  # fmt: skip
    state = PhaseState(build_classifier(model), phase)
    facts = loop.train_phase(
        state, train=splits.train, validation=splits.validation, recipe=Recipe(BATCH_SIZE, 0, xla=False),
        position=loop.Position(), ledger=Ledger(), collective=collective,
    )  # fmt: skip
    return state, facts


def step_seconds(facts: Iterator[loop.Fact]) -> float:
    """Make the next step; returns its seconds, without those of a validation that comes before it."""
    while True:
        began = time.monotonic()
        if isinstance(next(facts), StepDone):
            return time.monotonic() - began
