"""The recipe's training in this process, a step at a time."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from bench.workload import BATCH_SIZE, Workload
from job.data.decoding import Decoding, Part
from job.data.images import NOT_KEPT, cached
from job.data.on_device import OnDevice
from job.data.order import Portion
from job.data.resizing import Resizing
from job.data.split_spec import SPLIT_NAMES
from job.data.splits import DataRequest, Split, load_splits
from job.model.augmentation_policy import Augmentation
from job.model.classifier import ModelRequest, build_classifier
from job.observe.events import StepDone
from job.observe.ledger import Ledger
from job.phases import Phase
from job.settings.fields import Precision
from job.train import loop, numerics
from job.train.collective import Collective
from job.train.state import PhaseState
from job.train.step import Recipe
from job.workers.team import Alone

HEAD = Phase(name="head", unfreeze="none", learning_rate=1e-3, epochs=10**6)
FINE_TUNE = Phase(name="fine_tune", unfreeze="all", learning_rate=1e-5, epochs=10**6)
PHASES = {"head": HEAD, "fine_tune": FINE_TUNE}
DRAWN_IMAGES = 2048
DRAWN_EXAMPLES = 10**6
"""So many that no epoch ends, and no validation comes between the steps; they share the drawn images."""


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
        dataset=load.dataset, data_dir=str(load.data_dir),
        specs=dict(zip(SPLIT_NAMES, load.splits(num_examples, 32, 32), strict=True)), resizing=Resizing(size),
        cache="memory", cache_dir=scratch,
        portion=Portion(share=collective.share, batch_size=BATCH_SIZE, evaluation_batch_size=BATCH_SIZE, seed=0),
    )  # fmt: skip
    splits = load_splits(request, check_stop=lambda: None)
    weights = "none" if backbone else load.weights
    precision = numerics.choose(precision="auto", xla="auto")["precision"]
    state = new_state(phase, backbone=backbone or "Xception", weights=weights, image_size=size, precision=precision)
    facts = loop.train_phase(
        state, train=splits.train, validation=splits.validation, recipe=Recipe(BATCH_SIZE, 0, xla=False),
        position=loop.Position(), ledger=Ledger(), collective=collective,
    )  # fmt: skip
    return state, facts


def new_state(
    phase: Phase, *, backbone: str, image_size: int, precision: Precision, weights: str = "none"
) -> PhaseState:
    """A model before its first step, with the recipe's augmentation and dropout, for two classes."""
    model = ModelRequest(
        backbone=backbone, weights=weights, image_size=image_size, num_classes=2, dropout=0.2,
        augmentation=Augmentation(flip="horizontal", rotation=0.1), policy=numerics.policy_of(precision), seed=0,
    )  # fmt: skip
    return PhaseState(build_classifier(model), phase)


def drawn_steps(state: PhaseState, recipe: Recipe, *, on_device: bool = False) -> Callable[[int], tuple[int, float]]:
    """The job's own loop on drawn pixels, in memory or on the device.

    The function makes at least so many steps, and waits for the device once, at their end. It gives the steps that were
    made, and their seconds.
    """
    train = drawn_split(state.classifier.image_size, DRAWN_EXAMPLES, on_device=on_device)
    facts = loop.train_phase(
        state, train=train, validation=train, recipe=recipe, position=loop.Position(), ledger=Ledger(),
        collective=Collective(Alone(lambda: None)),
    )  # fmt: skip

    def steps(num_steps: int) -> tuple[int, float]:
        began, done = time.monotonic(), 0
        while done < num_steps:
            fact = next(facts)
            done += fact.num_steps_done if isinstance(fact, StepDone) else 0
        state.running_means()
        return done, time.monotonic() - began

    return steps


def drawn_split(image_size: int, num_examples: int, *, on_device: bool = False) -> Split:
    """Examples of two classes, all decoded: `DRAWN_IMAGES` random images, again and again."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (DRAWN_IMAGES, image_size, image_size, 3), np.uint8)
    places, nothing = np.arange(num_examples) % DRAWN_IMAGES, np.arange(0)
    kept = np.full(num_examples, NOT_KEPT)
    part = Part(name="train", order=nothing, images=tf.data.Dataset.range(0), places=kept, pixels=None)
    decoding = Decoding([part], lambda: None, corrupt=None)
    return Split(
        name="train", labels=generator.integers(0, 2, num_examples, np.int32), indices=np.arange(num_examples),
        images=cached(pixels, places, wait=lambda indices: None, others=_never), decoding=decoding,
        on_device=OnDevice(pixels, places) if on_device else None,
    )  # fmt: skip


def _never(order: np.ndarray, batch_size: int) -> tf.data.Dataset:
    raise AssertionError("every drawn image is kept")


def step_seconds(facts: Iterator[loop.Fact]) -> float:
    """Make the next step; returns its seconds, without those of a validation that comes before it."""
    while True:
        began = time.monotonic()
        if isinstance(next(facts), StepDone):
            return time.monotonic() - began
