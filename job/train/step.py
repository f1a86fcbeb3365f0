"""A step of training, several of them in one call, and the validation: what all workers compute together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from job.data.on_device import OnDevice
from job.data.order import num_batches
from job.data.splits import Split
from job.model import draws
from job.model.augmentation import Rows
from job.model.mixing import mix
from job.train.collective import Collective
from job.train.fixed_shapes import of_size, padded
from job.train.loss import loss_of, means_of, most_probable, sums_of
from job.train.metrics import balanced_accuracy
from job.train.microbatches import Compute, in_parts, not_inlined
from job.train.state import PhaseState

FeaturesOf = Callable[[tf.Tensor], tf.Tensor]


@dataclass(frozen=True)
class Recipe:
    """What a step needs besides model and data; `xla` compiles it.

    The loss of a training example is multiplied by the weight of its class, as `class_weight` of Keras's `fit` does;
    `label_smoothing` is that of `job.train.loss`, `mixup` and `cutmix` are the alphas of `job.model.mixing.mix`.
    `steps_per_execution` are done in one call, and change no result. No more than `microbatch_size` images are computed
    at once, if it is given; with `fixed_shapes` always as many, of which some may not count.
    """

    batch_size: int
    seed: int
    xla: bool
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    steps_per_execution: int = 1
    microbatch_size: int | None = None
    fixed_shapes: bool = False

    @property
    def at_once(self) -> int:
        """The most images that the network is given at once."""
        return min(self.batch_size, self.microbatch_size or self.batch_size)

    @property
    def mixes(self) -> bool:
        """Whether each example is mixed with another one, its partner."""
        return self.mixup > 0 or self.cutmix > 0


class Validation(NamedTuple):
    """Of a model over a split: mean loss in nats, and accuracies in 0..1."""

    loss: float
    accuracy: float
    balanced_accuracy: float


def train_steps(
    state: PhaseState,
    features_of: FeaturesOf,
    recipe: Recipe,
    collective: Collective,
    *,
    on_device: OnDevice | None = None,
) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    """Any number of steps in one call, each with this worker's rows of a batch, of which all workers together do one.

    The function takes for n steps
        seeds        int32 [n, 2]
        places       int32 [n, 4]: the first of the rows, how many of them count, how many the whole batch has, and
                     where they begin in what follows; of a batch without any there is one that does not count
        rates        float32 [n], the learning rates
        totals       float64 [3], the sums so far
        is_stopping  float32 []
        images uint8 [r, s, s, 3] and labels int32 [r] of all n batches, and if the recipe mixes those of the partners;
                     for images `on_device` their places there, int64 [r]
    and returns the sums with these steps, and the sum of `is_stopping` over the workers. The steps are done one after
    the other, by the same operations however many there are. An answer to a mixed example is right if it is the label
    of the larger share.
    """
    optimizer, variables = state.optimizer, state.variables
    own_rows = collective.share.of(recipe.batch_size)
    num_own_rows = own_rows.stop - own_rows.start

    compute = _gradients(state, features_of, recipe, size=min(recipe.at_once, num_own_rows))
    if recipe.at_once < num_own_rows:
        compute = in_parts(compute, variables, recipe.at_once)

    def step(
        seed: tf.Tensor, place: tf.Tensor, rate: tf.Tensor, is_stopping: tf.Tensor, *examples: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        optimizer.learning_rate.assign(rate)
        values, sums = compute(seed, place[:3], *examples)
        if collective.share.num_workers > 1:
            *values, all_sums, is_stopping = collective.summed([*values, tf.cast(sums, tf.float32), is_stopping])
            sums = tf.cast(all_sums, sums.dtype)
        optimizer.apply(values, variables)
        return sums, is_stopping

    is_loop = recipe.steps_per_execution > 1
    step_together = collective.together(step)
    if is_loop:
        # For the reason that this has, a step has no function inside.
        step_together = not_inlined(step_together)

    def steps(
        seeds: tf.Tensor, places: tf.Tensor, rates: tf.Tensor, totals: tf.Tensor, is_stopping: tf.Tensor,
        *examples: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:  # fmt: skip
        def one(index: tf.Tensor, totals: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            start = places[index, 3]
            end = start + tf.maximum(places[index, 1], 1)
            own = [tensor[start:end] for tensor in examples]
            if on_device is not None:
                own[::2] = [on_device.gathered(places_there) for places_there in own[::2]]
            sums, num_stops = step_together(seeds[index], places[index], rates[index], is_stopping, *own)
            return index + 1, totals + sums, num_stops

        first = (tf.constant(0), totals, tf.constant(0.0))
        # One at a time: each step reads the variables that the one before it writes.
        _, totals, num_stops = (
            tf.while_loop(lambda index, *_: index < tf.shape(seeds)[0], one, first, parallel_iterations=1)
            if is_loop
            else one(*first)
        )
        return totals, num_stops

    size = state.classifier.image_size
    images = tf.TensorSpec([None, size, size, 3], tf.uint8) if on_device is None else tf.TensorSpec([None], tf.int64)
    signature = [
        tf.TensorSpec([None, 2], tf.int32), tf.TensorSpec([None, 4], tf.int32), tf.TensorSpec([None], tf.float32),
        tf.TensorSpec([3], tf.float64), tf.TensorSpec([], tf.float32),
        *(images, tf.TensorSpec([None], tf.int32)) * (2 if recipe.mixes else 1),
    ]  # fmt: skip
    return tf.function(steps, input_signature=signature, autograph=False)


def _gradients(state: PhaseState, features_of: FeaturesOf, recipe: Recipe, *, size: int) -> Compute:
    """The gradients of at most `size` rows of a batch."""
    classifier, optimizer, variables = state.classifier, state.optimizer, state.variables

    def losses_of(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        losses = loss_of(logits, labels, label_smoothing=recipe.label_smoothing)
        if recipe.class_weights is not None:
            losses *= tf.gather(tf.constant(recipe.class_weights, losses.dtype), labels)
        return losses

    def gradients(
        num_rows: tf.Tensor, batch_size: tf.Tensor, images: tf.Tensor, labels: tf.Tensor, mask: tf.Tensor,
        *mixed: tf.Tensor,
    ) -> tuple[list[tf.Tensor], tf.Tensor]:  # fmt: skip
        frozen_features = None if state.trains_backbone else features_of(images)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in variables])
            features = features_of(images) if frozen_features is None else frozen_features
            logits = classifier.logits(features * mask)
            losses = losses_of(logits, labels)
            if mixed:
                partner_labels, shares = mixed
                losses = shares * losses + (1 - shares) * losses_of(logits, partner_labels)
                labels = tf.where(shares < 0.5, partner_labels, labels)
            # Divided by the examples of all workers, not by weights: the gradients of the workers add up.
            counts = tf.cast(tf.range(tf.shape(labels)[0]) < num_rows, losses.dtype)
            losses *= counts
            loss = optimizer.scale_loss(tf.reduce_sum(losses) / tf.cast(batch_size, losses.dtype))
        return tape.gradient(loss, [variable.value for variable in variables]), sums_of(logits, labels, losses, counts)

    if recipe.xla:
        # Augmentation and mixing stay outside: the image transform has no XLA kernel.
        gradients = tf.function(gradients, jit_compile=True, reduce_retracing=True, autograph=False)

    def compute(
        seed: tf.Tensor, place: tf.Tensor, images: tf.Tensor, labels: tf.Tensor, *partners: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        first, num_rows, batch_size = tf.unstack(place)
        rows = Rows(first, batch_size)
        augment_seed, dropout_seed, *more = draws.split(seed, 4 if partners else 2)
        images = classifier.augmented(images, augment_seed, rows)
        mixed: tuple[tf.Tensor, ...] = ()
        if partners:
            partner_seed, mix_seed = more
            others = classifier.augmented(partners[0], partner_seed, rows)
            images, shares = mix(
                images, others, mixup_alpha=recipe.mixup, cutmix_alpha=recipe.cutmix, seed=mix_seed, rows=rows
            )
            mixed = (partners[1], shares)
        examples = [images, labels, classifier.dropout_mask(dropout_seed, rows, images), *mixed]
        if recipe.fixed_shapes:
            examples = [padded(tensor, size) for tensor in examples]
        return gradients(num_rows, batch_size, *examples)

    return compute


def validator(
    state: PhaseState, features_of: FeaturesOf, split: Split, recipe: Recipe, collective: Collective
) -> Callable[[], Validation]:
    """A function that measures the model as it is then over `split`.

    Workers share the batches; the sums of the batches are added in order, whatever the number of workers. While the
    backbone is frozen its features are computed once, at the first call.
    """
    classifier, batch_size, at_once = state.classifier, recipe.batch_size, recipe.at_once
    traced_features_of = tf.function(
        of_size(features_of, at_once) if recipe.fixed_shapes else features_of,
        autograph=False,
        input_signature=[tf.TensorSpec([None, classifier.image_size, classifier.image_size, 3], tf.uint8)],
    )
    kept: list[tuple[int, tf.Tensor, tf.Tensor]] = []

    def features() -> Iterator[tuple[int, tf.Tensor, tf.Tensor]]:
        for start, images, labels in split.evaluation_batches(batch_size, collective.share):
            parts = [traced_features_of(images[first : first + at_once]) for first in range(0, len(images), at_once)]
            yield start, parts[0] if len(parts) == 1 else tf.concat(parts, 0), labels

    num_examples = np.bincount(split.labels, minlength=max(2, classifier.num_logits))

    def of_batch(pooled: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        logits = classifier.logits(pooled)
        losses = loss_of(logits, labels)
        return sums_of(logits, labels, losses, tf.ones_like(losses)), most_probable(logits)

    def validate() -> Validation:
        if not state.trains_backbone:
            kept[:] = kept or features()
        batches = features() if state.trains_backbone else kept
        own = [(start, *of_batch(pooled, labels)) for start, pooled, labels in batches]
        sums = np.zeros((num_batches(len(split), batch_size), 3))
        num_correct = np.zeros(len(num_examples))
        # Read at the end, so that a GPU has the next images while it computes.
        for start, own_sums, predicted in own:
            sums[start // batch_size] = own_sums.numpy()
            labels = split.labels[start : start + len(predicted)]
            num_correct += np.bincount(labels[predicted.numpy() == labels], minlength=len(num_correct))
        totals = collective.total(np.concatenate([sums.ravel(), num_correct]))
        sums, num_correct = totals[: sums.size].reshape(sums.shape), totals[sums.size :]
        loss, accuracy = means_of(sum(sums, np.zeros(3)))
        return Validation(loss, accuracy, balanced_accuracy(num_correct, num_examples))

    return validate
