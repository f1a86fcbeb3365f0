"""The loop of one phase: a generator that yields a fact after each call of the train steps and each epoch.

It writes nothing: its caller decides what to record, and when to stop. Everything random is a pure function of (seed,
phase, step), so a phase that is continued at step n goes on exactly as if it had never stopped.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from job.data.order import epoch_order, num_batches
from job.data.splits import Split
from job.errors import TrainingDiverged
from job.model.draws import HOST
from job.observe.events import EpochFinished, StepDone
from job.observe.ledger import Category, Ledger
from job.train import device, schedule
from job.train.collective import Collective
from job.train.feed import Feed
from job.train.optimizer import MOST_HALVINGS, SCALES
from job.train.schedule import Validated
from job.train.state import PhaseState
from job.train.step import Recipe, Validation, train_steps, validator

STOP_DELAY_CALLS = 1
"""Calls after which the workers look whether one of them must stop: a GPU has the next one meanwhile."""

DIVERGED_HINT = "lower the learning rate, or set THAW_PRECISION=float32"

Fact = StepDone | EpochFinished


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a phase goes on: the epochs of `history` are validated, `step` steps done.

    The first `steps_lost` steps of the phase were done before, by attempts that did not commit all of them.
    """

    history: Sequence[Validated] = ()
    step: int = 0
    steps_lost: int = 0


def train_phase(
    state: PhaseState,
    *,
    train: Split,
    validation: Split,
    recipe: Recipe,
    position: Position,
    ledger: Ledger,
    collective: Collective,
) -> Iterator[Fact]:
    """Train a phase from `position` to its end, together with the other workers; yields facts in order.

    The end is that of an epoch after which `schedule.is_over`. An epoch that is trained to its last step and not
    validated is validated first. `ledger` receives the categories of the time. Raises TrainingDiverged, DataCorrupt at
    the next call once an image of any split is known to be damaged, and what the splits raise on a stop; between facts,
    stopping is up to the caller. Several workers agree to stop: all of them raise Interrupted after the same step.

    A call does `steps_per_execution` steps of the recipe, but the first of the phase only one, and none goes beyond the
    end of an epoch or the steps that were lost. The state is the same after a step whatever the calls were.
    """
    classifier, phase, batch_size = state.classifier, state.phase.name, recipe.batch_size
    team, share = collective.team, collective.share
    features_of = classifier.features_training(state.first)
    validate = validator(state, features_of, validation, recipe, collective)
    if train.on_device is not None:
        with ledger.during("data_wait"):
            train.wait()
            train.on_device.load()
    call = train_steps(state, features_of, recipe, collective, on_device=train.on_device)
    batches_per_epoch = num_batches(len(train), batch_size)
    key = _phase_key(recipe.seed, phase)
    # The partner of an example that is mixed has the same place in a second order, which has the same columns: so it is
    # one of the examples of this worker.
    names = [phase, f"{phase}/partner"] if recipe.mixes else [phase]
    step, is_first = position.step, True
    stops: list[tf.Tensor] = []
    history = list(position.history)
    while not schedule.is_over(state.phase, history):
        epoch = len(history)
        timer = _EpochTimer()
        skip_batches = step - epoch * batches_per_epoch
        if skip_batches == 0:
            state.totals = tf.zeros([3], tf.float64)
        orders = [
            epoch_order(len(train), batch_size=batch_size, seed=recipe.seed, phase=name, epoch=epoch) for name in names
        ]
        feed = Feed(train, orders, batch_size=batch_size, skip_batches=skip_batches, share=share)
        epoch_end = (epoch + 1) * batches_per_epoch
        with team.steps():
            while step < epoch_end:
                began = time.monotonic()
                is_lost = step < position.steps_lost
                end = min(epoch_end, position.steps_lost) if is_lost else epoch_end
                num_steps = 1 if is_first else min(recipe.steps_per_execution, end - step)
                steps = range(step, step + num_steps)
                with ledger.during("data_wait"):
                    batches = feed.take(num_steps, image_size=classifier.image_size)
                loaded = time.monotonic()
                rates = [
                    schedule.learning_rate(state.phase, at, steps_per_epoch=batches_per_epoch, history=history)
                    for at in steps
                ]
                with tf.device(HOST):
                    # Made where it is: else a copy to the GPU would wait there for the steps before.
                    learning_rates, is_stopping = tf.constant(rates, tf.float32), tf.constant(float(team.is_stopping))
                category: Category = "recompute" if is_lost else "productive"
                with ledger.during("compile" if is_first else category):
                    before = state.totals
                    state.totals, num_stops = call(
                        tf.constant([[key, at] for at in steps], tf.int32), tf.constant(batches.places),
                        learning_rates, state.totals, is_stopping, *batches.examples,
                    )  # fmt: skip
                    step = steps.stop
                    # A GPU has this call while the one before is waited for, so that it never has more than two.
                    waited = (state.totals, step) if is_first or step == epoch_end else (before, steps.start)
                    loss = waited[0].numpy()[0]
                    if not np.isfinite(loss):
                        collective.confirm()
                    check_finite(loss, f"after step {waited[1]} of phase {phase}")
                done = StepDone(
                    phase=phase,
                    epoch=epoch,
                    step=step,
                    num_steps=state.phase.epochs * batches_per_epoch,
                    batch=step - epoch * batches_per_epoch,
                    num_batches=batches_per_epoch,
                    num_examples=batches.num_examples,
                    seconds=time.monotonic() - loaded,
                    data_wait_seconds=loaded - began,
                    is_first=is_first,
                    num_steps_done=num_steps,
                )
                timer.count(done)
                is_first = False
                yield done
                if share.num_workers > 1:
                    stops.append(num_stops)
                    if len(stops) > STOP_DELAY_CALLS and stops.pop(0).numpy() > 0:
                        collective.confirm()
                        raise team.interrupted()
        # Here a worker may stop by itself: no other can come to the end of the validation without it.
        finished = _finished_epoch(
            state, epoch=epoch, step=step, num_batches=batches_per_epoch, validate=validate, timer=timer, ledger=ledger
        )
        history.append(finished)
        with team.steps():
            yield finished


def _finished_epoch(
    state: PhaseState,
    *,
    epoch: int,
    step: int,
    num_batches: int,
    validate: Callable[[], Validation],
    timer: "_EpochTimer",
    ledger: Ledger,
) -> EpochFinished:
    where = f"after step {step} of phase {state.phase.name}"
    check_finite(state.totals.numpy()[0], where)
    check_trained(state, num_batches, where)
    train_loss, train_accuracy = state.running_means()
    train_seconds = timer.seconds()
    with ledger.during("validate"), state.averaged():
        validation = validate()
    check_finite(validation.loss, f"in validation {where}")
    return EpochFinished(
        phase=state.phase.name,
        epoch=epoch,
        step=step,
        train_loss=train_loss,
        train_accuracy=train_accuracy,
        validation_loss=validation.loss,
        validation_accuracy=validation.accuracy,
        validation_balanced_accuracy=validation.balanced_accuracy,
        train_seconds=train_seconds,
        validation_seconds=timer.seconds() - train_seconds,
        images_per_second=timer.images_per_second(),
        learning_rate=state.learning_rate,
        gpu_memory=device.gpu_memory(),
    )


class _EpochTimer:
    """Seconds since the start of an epoch, and its images a second without the compiled step."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._num_examples = 0
        self._seconds = 0.0

    def count(self, done: StepDone) -> None:
        if not done.is_first:
            self._num_examples += done.num_examples
            self._seconds += done.seconds + done.data_wait_seconds

    def seconds(self) -> float:
        return time.monotonic() - self._started

    def images_per_second(self) -> float:
        return self._num_examples / self._seconds if self._seconds else 0.0


def check_finite(loss: float, where: str) -> None:
    """Raise TrainingDiverged when a loss in nats is not a finite number."""
    if not np.isfinite(loss):
        raise TrainingDiverged(
            f"the loss is {loss} {where}; the last commit stands",
            hint=DIVERGED_HINT,
        )


def check_trained(state: PhaseState, num_batches: int, where: str) -> None:
    """Raise TrainingDiverged when float16 left out all steps of an epoch, and tried the smallest loss scale."""
    num_overflows = state.num_overflows
    if num_overflows >= max(num_batches, MOST_HALVINGS + 1):
        raise TrainingDiverged(
            f"the gradients of {num_overflows} steps in a row are not finite in float16 {where}, so that they changed "
            f"no weight, and the loss scale is {SCALES[0]:g}, the smallest; the last commit stands",
            hint=DIVERGED_HINT,
        )


def _phase_key(seed: int, phase: str) -> int:
    digest = hashlib.sha256(f"step/{seed}/{phase}".encode()).digest()
    return int.from_bytes(digest[:4], "big", signed=True)
