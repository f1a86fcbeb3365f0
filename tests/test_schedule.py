"""The learning rate of each step, the end of a phase, its best epoch: as Keras's schedules and callbacks decide."""

from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

from job.phases import Phase
from job.train import schedule

STEPS = 7
"""Of an epoch."""


def phase(**changes: Any) -> Phase:
    return Phase(**{"name": "only", "epochs": 6, "learning_rate": 0.3} | changes)


def epochs(*losses: float) -> list[Any]:
    """The accuracy is the better, the lower the loss, and the balanced accuracy, the farther it is from 0.45."""
    return [
        SimpleNamespace(
            validation_loss=loss, validation_accuracy=1 - loss, validation_balanced_accuracy=abs(loss - 0.45)
        )
        for loss in losses
    ]


def rates(one: Phase, history: list[Any] = []) -> list[float]:  # noqa: B006
    return [schedule.learning_rate(one, step, steps_per_epoch=STEPS, history=history) for step in range(6 * STEPS)]


@pytest.mark.parametrize("end_factor", [0.0, 0.25])
@pytest.mark.parametrize("warmup_epochs", [0.0, 0.5, 2.0])
def test_cosine_and_its_warm_up_are_those_of_keras(end_factor: float, warmup_epochs: float) -> None:
    """Each step of a phase."""
    warmup = round(warmup_epochs * STEPS)
    theirs = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else 0.3, 6 * STEPS - warmup, alpha=end_factor, warmup_target=0.3 if warmup else None,
        warmup_steps=warmup,
    )  # fmt: skip
    expected = [float(theirs(step)) for step in range(6 * STEPS)]
    ours = rates(phase(schedule="cosine", end_factor=end_factor, warmup_epochs=warmup_epochs))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)
    assert max(ours) == 0.3
    assert (ours[0] == 0) == (warmup > 0)


def test_linear_is_the_polynomial_of_degree_one_of_keras() -> None:
    """From the rate to the fraction of it that is asked for."""
    theirs = keras.optimizers.schedules.PolynomialDecay(0.3, 6 * STEPS, end_learning_rate=0.06, power=1)
    ours = rates(phase(schedule="linear", end_factor=0.2))
    np.testing.assert_allclose(ours, [float(theirs(step)) for step in range(6 * STEPS)], rtol=1e-5)


def test_constant_is_the_same_number_in_every_step() -> None:
    """To the last bit, so that the article's recipe stays what it is."""
    assert set(rates(phase())) == {0.3}


LOSSES = [
    [0.9, 0.8, 0.7, 0.6],
    [0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6],
    [0.5, 0.49995, 0.4999, 0.49985, 0.3, 0.31, 0.29, 0.3, 0.3],
    [0.5, 0.6, 0.4, 0.6, 0.6, 0.3, 0.6, 0.6, 0.6],
    [0.4, 0.4, 0.4, 0.2, 0.2, 0.2],
]


class Model:
    """All that Keras's callbacks ask of a model."""

    def __init__(self, rate: float) -> None:
        self.optimizer = SimpleNamespace(learning_rate=keras.Variable(rate))
        self.stop_training = False


@pytest.mark.parametrize("monitor", ["loss", "accuracy", "balanced_accuracy"])
@pytest.mark.parametrize("losses", LOSSES)
@pytest.mark.parametrize("patience", [1, 2, 3])
def test_plateaus_are_those_of_keras(patience: int, losses: list[float], monitor: str) -> None:
    """After each epoch the rate is that of ReduceLROnPlateau."""
    model = Model(0.3)
    theirs = keras.callbacks.ReduceLROnPlateau(
        monitor=f"val_{monitor}", factor=0.5, patience=patience, mode="min" if monitor == "loss" else "max"
    )
    theirs.set_model(model)  # type: ignore[arg-type]
    theirs.on_train_begin()
    one = phase(schedule="plateau", plateau_patience=patience, plateau_factor=0.5, epochs=20, monitor=monitor)
    for index, epoch in enumerate(epochs(*losses)):
        theirs.on_epoch_end(index, {f"val_{monitor}": getattr(epoch, f"validation_{monitor}")})
        history = epochs(*losses[: index + 1])
        ours = schedule.learning_rate(one, STEPS * (index + 1), steps_per_epoch=STEPS, history=history)
        np.testing.assert_allclose(ours, float(model.optimizer.learning_rate), rtol=1e-5)


@pytest.mark.parametrize("losses", LOSSES)
@pytest.mark.parametrize("patience", [1, 2, 3])
def test_it_stops_when_keras_stops_and_the_same_epoch_is_best(patience: int, losses: list[float]) -> None:
    """EarlyStopping, which remembers the best epoch of one process."""
    model = Model(0.3)
    theirs = keras.callbacks.EarlyStopping(patience=patience)
    theirs.set_model(model)  # type: ignore[arg-type]
    theirs.on_train_begin()
    one = phase(patience=patience, epochs=20)
    for index, loss in enumerate(losses):
        theirs.on_epoch_end(index, {"val_loss": loss})
        history = epochs(*losses[: index + 1])
        assert schedule.is_over(one, history) == model.stop_training
        assert schedule.best(one, history) == theirs.best_epoch
        if model.stop_training:
            break


def test_without_patience_a_phase_ends_with_its_last_epoch() -> None:
    """Whatever the losses are."""
    assert [schedule.is_over(phase(), epochs(*[0.5] * count)) for count in (0, 1, 5, 6)] == [False, False, False, True]
