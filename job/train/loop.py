"""The train step and the loop of one phase.

A phase is a generator: it yields a fact after each step and each epoch and writes nothing; its caller decides what to
record, and when to stop. Everything random is a pure function of (seed, phase, step), so a phase that is continued at
step n goes on exactly as if it had never stopped.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from job.data.order import epoch_order, num_batches
from job.data.splits import Split
from job.errors import TrainingDiverged
from job.model.augmentation import Rows
from job.observe.events import EpochDone, StepDone
from job.observe.ledger import Category, Ledger
from job.train import schedule
from job.train.collective import Collective
from job.train.schedule import Validated
from job.train.state import PhaseState, Totals

DIVERGENCE_CHECK_STEPS = 50
STOP_DELAY_STEPS = 1
"""Steps after which the workers look whether one of them was told to stop: a GPU has the next step meanwhile."""

Fact = StepDone | EpochDone
FeaturesOf = Callable[[tf.Tensor], tf.Tensor]


@dataclass(frozen=True)
class Recipe:
    """What the loop needs besides model and data; `xla` compiles the train step.

    The loss of a training example is multiplied by the weight of its class, as `class_weight` of Keras's `fit` does.
    """

    batch_size: int
    seed: int
    xla: bool
    class_weights: tuple[float, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a phase goes on: the epochs of `history` are validated, `step` steps done.

    The first `steps_lost` steps of the phase were done before, by attempts that did not commit all of them.
    """

    history: Sequence[Validated] = ()
    step: int = 0
    steps_lost: int = 0


START = Position()


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

    The end is that of its last epoch, or before that of one after which `schedule.is_over`.
    An epoch that is trained to its last step and not validated is validated first. `ledger` receives the categories of
    the time. Raises TrainingDiverged, DataCorrupt at the next step once an image of any split is known to be damaged,
    and what the splits raise on a stop; between facts, stopping is up to the caller. Several workers agree to stop:
    all of them raise Interrupted after the same step.
    """
    classifier, phase, batch_size = state.classifier, state.phase.name, recipe.batch_size
    team, share = collective.team, collective.share
    features_of = classifier.features_training(state.first)
    validate = _validator(state, features_of, validation, batch_size, collective)
    train_step = _train_step(state, features_of, recipe, collective)
    batches_per_epoch = num_batches(len(train), batch_size)
    key = _phase_key(recipe.seed, phase)
    step, is_first = position.step, True
    stops: list[tf.Tensor] = []
    history = list(position.history)
    while not schedule.is_over(state.phase, history):
        epoch = len(history)
        timer = _EpochTimer()
        skip_batches = step - epoch * batches_per_epoch
        if skip_batches == 0:
            state.totals = Totals()
        order = epoch_order(len(train), batch_size=batch_size, seed=recipe.seed, phase=phase, epoch=epoch)
        loader = iter(train.worker_batches(order, batch_size=batch_size, skip_batches=skip_batches, share=share))
        with team.steps():
            for batch in range(skip_batches + 1, batches_per_epoch + 1):
                began = time.monotonic()
                indices = order[(batch - 1) * batch_size : batch * batch_size]
                rows = share.rows(batch_size, len(indices))
                with ledger.during("data_wait"):
                    if rows.start < rows.stop:
                        train.wait(indices[rows])
                        images, labels = next(loader)
                        place = [rows.start, rows.stop - rows.start, len(indices)]
                    else:
                        images, labels = _stand_in(classifier.image_size)
                        place = [0, 0, len(indices)]
                loaded = time.monotonic()
                rate = schedule.learning_rate(state.phase, step, steps_per_epoch=batches_per_epoch, history=history)
                state.set_learning_rate(rate)
                with ledger.during(_category(step, is_first=is_first, steps_lost=position.steps_lost)):
                    sums, num_stops = train_step(
                        images, labels, tf.constant([key, step], tf.int32), tf.constant(place, tf.int32),
                        tf.constant(float(team.is_stopping)),
                    )  # fmt: skip
                    state.totals.add(sums)
                    step += 1
                    if is_first or step % DIVERGENCE_CHECK_STEPS == 0:
                        check_finite(state.totals.read()[0], f"after step {step} of phase {phase}")
                done = StepDone(
                    phase=phase,
                    epoch=epoch,
                    step=step,
                    num_steps=state.phase.epochs * batches_per_epoch,
                    batch=batch,
                    num_batches=batches_per_epoch,
                    num_examples=len(indices),
                    seconds=time.monotonic() - loaded,
                    data_wait_seconds=loaded - began,
                    is_first=is_first,
                )
                timer.count(done)
                is_first = False
                yield done
                if share.num_workers > 1:
                    stops.append(num_stops)
                    if len(stops) > STOP_DELAY_STEPS and stops.pop(0).numpy() > 0:
                        raise team.interrupted()
        # Here a worker may stop by itself: no other can come to the end of the validation without it.
        finished = _finished_epoch(state, epoch=epoch, step=step, validate=validate, timer=timer, ledger=ledger)
        history.append(finished)
        with team.steps():
            yield finished


def _stand_in(image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """A row that does not count, for a worker that has none: TensorFlow's convolutions fail without any (2.21)."""
    return np.zeros((1, image_size, image_size, 3), np.uint8), np.zeros(1, np.int32)


def _category(step: int, *, is_first: bool, steps_lost: int) -> Category:
    if is_first:
        return "compile"
    return "recompute" if step < steps_lost else "productive"


def _finished_epoch(
    state: PhaseState,
    *,
    epoch: int,
    step: int,
    validate: Callable[[], tuple[float, float]],
    timer: "_EpochTimer",
    ledger: Ledger,
) -> EpochDone:
    where = f"after step {step} of phase {state.phase.name}"
    check_finite(state.totals.read()[0], where)
    train_loss, train_accuracy = state.totals.means()
    train_seconds = timer.seconds()
    with ledger.during("validate"):
        validation_loss, validation_accuracy = validate()
    check_finite(validation_loss, f"in validation {where}")
    return EpochDone(
        phase=state.phase.name,
        epoch=epoch,
        step=step,
        train_loss=train_loss,
        train_accuracy=train_accuracy,
        validation_loss=validation_loss,
        validation_accuracy=validation_accuracy,
        train_seconds=train_seconds,
        validation_seconds=timer.seconds() - train_seconds,
        images_per_second=timer.images_per_second(),
        learning_rate=state.learning_rate,
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
            hint="lower the learning rate, or set THAW_PRECISION=float32",
        )


def loss_of(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Cross-entropy in nats of each example, float32 [b], from logits [b, 1] (two classes) or [b, k]."""
    if logits.shape[-1] == 1:
        targets = tf.cast(labels, logits.dtype)[:, tf.newaxis]
        return tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)[:, 0]
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)


def predicted_classes(logits: tf.Tensor) -> tf.Tensor:
    """The class of each example, int32 [b]; for one logit, class 1 above 0."""
    if logits.shape[-1] == 1:
        return tf.cast(logits[:, 0] > 0, tf.int32)
    return tf.argmax(logits, axis=-1, output_type=tf.int32)


def _sums(
    logits: tf.Tensor, labels: tf.Tensor, class_weights: Sequence[float] | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """The loss of each example, weighted by its class, float32 [b], and the sums that `Totals` keeps, float64 [3]."""
    losses = loss_of(logits, labels)
    if class_weights is not None:
        losses *= tf.gather(tf.constant(class_weights, losses.dtype), labels)
    correct = tf.reduce_sum(tf.cast(predicted_classes(logits) == labels, tf.float64))
    total = tf.reduce_sum(tf.cast(losses, tf.float64))
    return losses, tf.stack([total, correct, tf.cast(tf.shape(labels)[0], tf.float64)])


def _phase_key(seed: int, phase: str) -> int:
    digest = hashlib.sha256(f"step/{seed}/{phase}".encode()).digest()
    return int.from_bytes(digest[:4], "big", signed=True)


def _train_step(
    state: PhaseState, features_of: FeaturesOf, recipe: Recipe, collective: Collective
) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    """A step with this worker's rows of a batch, of which all workers together do one.

    The function takes images uint8 [b, s, s, 3], labels int32 [b], seed int32 [2], place int32 [3] (the first of the
    rows, how many of them count, and how many the whole batch has), is_stopping float32 []. It returns the sums of the
    whole batch, float64 [3], and the sum of `is_stopping`.
    """
    classifier, optimizer, variables = state.classifier, state.optimizer, state.variables

    # Augmentation stays outside: its image transform has no XLA kernel.
    @tf.function(jit_compile=recipe.xla, reduce_retracing=True, autograph=False)
    def gradients(images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor, place: tf.Tensor) -> Any:
        first, num_rows, batch_size = tf.unstack(place)
        rows = Rows(first, batch_size)
        frozen_features = None if state.trains_backbone else features_of(images)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in variables])
            features = features_of(images) if frozen_features is None else frozen_features
            logits = classifier.logits(classifier.dropped(features, seed, rows))
            losses, sums = _sums(logits[:num_rows], labels[:num_rows], recipe.class_weights)
            # Divided by the examples of all workers, not by weights: the gradients of the workers add up.
            loss = tf.reduce_sum(losses) / tf.cast(batch_size, losses.dtype)
        return tape.gradient(loss, [variable.value for variable in variables]), sums

    def step(
        images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor, place: tf.Tensor, is_stopping: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        augment_seed, dropout_seed = tf.unstack(tf.random.split(seed, 2, alg="philox"))
        images = classifier.augmented(images, augment_seed, Rows(place[0], place[2]))
        values, sums = gradients(images, labels, dropout_seed, place)
        if collective.share.num_workers > 1:
            *values, others, is_stopping = collective.summed([*values, tf.cast(sums, tf.float32), is_stopping])
            sums = tf.cast(others, sums.dtype)
        optimizer.apply(values, variables)
        return sums, is_stopping

    size = classifier.image_size
    signature = (
        tf.TensorSpec([None, size, size, 3], tf.uint8),
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([2], tf.int32),
        tf.TensorSpec([3], tf.int32),
        tf.TensorSpec([], tf.float32),
    )
    return collective.step(step, signature)


def _validator(
    state: PhaseState, features_of: FeaturesOf, split: Split, batch_size: int, collective: Collective
) -> Callable[[], tuple[float, float]]:
    """A function that returns mean loss and accuracy over `split` with the model as it is then.

    Workers share the batches, and the sums of each batch are added in the same order for any number of workers. While
    the backbone is frozen its features are computed once, at the first call.
    """
    classifier = state.classifier
    traced_features_of = tf.function(
        features_of,
        autograph=False,
        input_signature=[tf.TensorSpec([None, classifier.image_size, classifier.image_size, 3], tf.uint8)],
    )
    kept: list[tuple[int, tf.Tensor, tf.Tensor]] = []

    def features() -> Iterator[tuple[int, tf.Tensor, tf.Tensor]]:
        for start, images, labels in split.evaluation_batches(batch_size, collective.share):
            yield start, traced_features_of(images), labels

    def validate() -> tuple[float, float]:
        if state.trains_backbone:
            batches: Any = features()
        else:
            kept[:] = kept or list(features())
            batches = kept
        own = [(start // batch_size, _sums(classifier.logits(pooled), labels)[1]) for start, pooled, labels in batches]
        sums = np.zeros((num_batches(len(split), batch_size), 3))
        if own:
            sums[[batch for batch, _ in own]] = tf.stack([of_batch for _, of_batch in own]).numpy()
        return Totals.of(collective.total(sums)).means()

    return validate
