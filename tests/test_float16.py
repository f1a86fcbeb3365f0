"""Training in float16: a loss scale keeps small gradients, and a step that overflows is left out."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf
from keras import Variable

from job.data.splits import Splits
from job.errors import TrainingDiverged
from job.observe.events import EpochFinished
from job.observe.ledger import Ledger
from job.phases import Phase
from job.train.loop import Fact, Position, train_phase
from job.train.optimizer import LossScaling, optimizer_of
from job.train.state import PhaseState
from job.train.step import Recipe
from tests.classifiers import ALONE, build
from tests.one_epoch import FINE_TUNE

FIRST_SCALE = 2.0**15


def scaled_adam(start: float) -> tuple[LossScaling, Variable]:
    variable = Variable(np.array([start], np.float32), name="kernel")
    optimizer = LossScaling(optimizer_of(Phase(name="only", epochs=1, learning_rate=0.1), [variable]))
    optimizer.build([variable])
    return optimizer, variable


def test_a_step_is_that_of_adam_on_the_gradient_without_the_scale() -> None:
    """The loss is multiplied by the scale, and the gradient divided by it."""
    optimizer, variable = scaled_adam(1.0)
    plain = Variable(np.array([1.0], np.float32), name="kernel")
    adam = optimizer_of(Phase(name="only", epochs=1, learning_rate=0.1), [plain])
    assert float(optimizer.scale_loss(tf.constant(3.0))) == 3 * FIRST_SCALE
    for gradient in (0.5, -0.25, 1e-6):
        optimizer.apply([tf.constant([gradient]) * FIRST_SCALE], [variable])
        adam.apply([tf.constant([gradient])], [plain])
    np.testing.assert_array_equal(variable.numpy(), plain.numpy())
    assert int(optimizer.iterations.numpy()) == 3


@pytest.mark.parametrize("gradient", [np.inf, np.nan])
def test_a_step_that_overflows_changes_no_weight_and_halves_the_scale(gradient: float) -> None:
    """It counts as a step of the phase, which goes on with the next examples."""
    optimizer, variable = scaled_adam(1.0)
    optimizer.apply([tf.constant([gradient])], [variable])
    assert variable.numpy().tolist() == [1.0]
    assert (float(optimizer.dynamic_scale.numpy()), int(optimizer.iterations.numpy())) == (FIRST_SCALE / 2, 1)
    moments = [one.numpy() for one in optimizer.inner_optimizer.variables if one.shape == (1,)]
    assert [moment.tolist() for moment in moments] == [[0.0], [0.0]]


def test_an_average_begins_with_the_weights_though_the_first_steps_overflow() -> None:
    """As if the phase had begun with the first step that is done."""
    variable = Variable(np.array([1.0], np.float32), name="kernel")
    phase = Phase(name="only", epochs=1, learning_rate=0.1, ema_decay=0.9)
    optimizer = LossScaling(optimizer_of(phase, [variable]))
    optimizer.build([variable])
    for gradient in (np.inf, np.inf, FIRST_SCALE):
        optimizer.apply([tf.constant([gradient], tf.float32)], [variable])
    raw = variable.numpy().copy()
    optimizer.finalize_variable_values([variable])
    np.testing.assert_allclose(variable.numpy(), 0.9 * 1.0 + 0.1 * raw, rtol=1e-6)
    assert 0.8 < raw[0] < 1


def test_the_scale_stays_a_number() -> None:
    """However many steps in a row overflow, or do not."""
    optimizer, variable = scaled_adam(1.0)
    for _ in range(200):
        optimizer.apply([tf.constant([np.inf])], [variable])
    assert float(optimizer.dynamic_scale.numpy()) == 1.0
    optimizer.apply([tf.constant([1.0])], [variable])
    assert 0 < variable.numpy()[0] < 1
    optimizer.dynamic_scale.assign(2.0**24)
    optimizer.step_counter.assign(optimizer.dynamic_growth_steps - 1)
    optimizer.apply([tf.constant([1.0])], [variable])
    assert float(optimizer.dynamic_scale.numpy()) == 2.0**24


def test_the_steps_in_a_row_that_overflow_are_counted() -> None:
    """A checkpoint has their number; the next step that is done ends it, and counts as the first for the scale."""
    optimizer, variable = scaled_adam(1.0)
    assert optimizer.num_overflows == 0
    for gradient, expected in ((1.0, 0), (np.inf, 1), (np.nan, 2)):
        optimizer.apply([tf.constant([gradient], tf.float32)], [variable])
        assert optimizer.num_overflows == expected
    optimizer.apply([tf.constant([1.0])], [variable])
    assert (optimizer.num_overflows, int(optimizer.step_counter.numpy())) == (0, 1)


def test_a_scale_that_overflowed_grows_after_2000_steps() -> None:
    """As Keras's does."""
    optimizer, variable = scaled_adam(1.0)
    apply = tf.function(lambda gradient: optimizer.apply([gradient], [variable]), autograph=False)
    for gradient in (np.inf, np.inf, *[1.0] * 1999):
        apply(tf.constant([gradient], tf.float32))
    assert float(optimizer.dynamic_scale.numpy()) == FIRST_SCALE / 4
    apply(tf.constant([1.0]))
    assert float(optimizer.dynamic_scale.numpy()) == FIRST_SCALE / 2


def trained(splits: Splits, state: PhaseState, position: Position) -> Iterator[Fact]:
    """40 images in 10 steps an epoch, whose gradients float16 does not have: the loss is multiplied by 1e30."""
    recipe = Recipe(4, 0, xla=False, class_weights=(1e30, 1e30))
    return train_phase(
        state, train=splits.train, validation=splits.validation, recipe=recipe,
        position=position, ledger=Ledger(), collective=ALONE,
    )  # fmt: skip


def test_a_phase_of_which_no_step_can_be_done_diverges(splits: Splits) -> None:
    """Once a whole epoch changed nothing, and the smallest scale was tried; also when it was interrupted meanwhile."""
    phase = Phase(name="all", unfreeze="all", learning_rate=1e-3, epochs=4)
    state = PhaseState(build(policy="mixed_float16"), phase)
    before = [variable.numpy() for variable in state.variables]
    facts = trained(splits, state, Position())
    epochs = [fact for fact in itertools.islice(facts, 25 + 2) if isinstance(fact, EpochFinished)]
    again = PhaseState(build(policy="mixed_float16"), phase)
    again.load(state.arrays(), step=25)
    message = "the gradients of 30 steps in a row are not finite in float16 after step 30 of phase all"
    for rest in (facts, trained(splits, again, Position(history=epochs, step=25))):
        with pytest.raises(TrainingDiverged, match=message):
            list(rest)
    for variable, value in zip(state.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def losses(splits: Splits, policy: str) -> list[float]:
    """Of training and validation over three epochs."""
    state = PhaseState(build(policy=policy), Phase(name="all", unfreeze="all", learning_rate=1e-3, epochs=3))
    facts = train_phase(
        state, train=splits.train, validation=splits.validation, recipe=Recipe(16, 0, xla=False),
        position=Position(), ledger=Ledger(), collective=ALONE,
    )  # fmt: skip
    epochs = [fact for fact in facts if isinstance(fact, EpochFinished)]
    return [loss for epoch in epochs for loss in (epoch.train_loss, epoch.validation_loss)]


@pytest.mark.slow
def test_the_losses_are_near_those_of_float32(splits: Splits) -> None:
    np.testing.assert_allclose(losses(splits, "mixed_float16"), losses(splits, "float32"), rtol=0.02)


def test_only_float16_has_a_scale_and_it_is_in_the_state() -> None:
    """With the number of steps since it changed."""
    plain, scaled = (PhaseState(build(policy=policy), FINE_TUNE) for policy in ("mixed_bfloat16", "mixed_float16"))
    plain_names, names = ({one.name for one in state.optimizer.variables} for state in (plain, scaled))
    assert names - plain_names == {"step_counter", "dynamic_scale"}
    scaled.optimizer.dynamic_scale.assign(64.0)
    again = PhaseState(build(policy="mixed_float16"), FINE_TUNE)
    again.load(scaled.arrays(), step=0)
    assert float(again.optimizer.dynamic_scale.numpy()) == 64.0
