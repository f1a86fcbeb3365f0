"""Class weights: their values, and a training that is, number by number, that of Keras with `class_weight`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from job.data.order import epoch_order
from job.data.splits import load_splits
from job.model.augmentation_policy import OFF
from job.observe import events
from job.observe.ledger import Ledger
from job.phases import Phase
from job.settings.settings import Settings
from job.storage import LocalStore
from job.train.loop import Position, train_phase
from job.train.loss import class_weights, weights_summary
from job.train.state import PhaseState
from job.train.step import Recipe
from tests import shapes
from tests.classifiers import ALONE, build
from tests.runs import CrashOn, start
from tests.stores import Crash


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([8, 2], (0.625, 2.5)), ([5, 5], (1.0, 1.0)), ([6, 0, 2], (2 / 3, 1.0, 2.0)), ([1, 1, 10], (4.0, 4.0, 0.4))],
    ids=["unbalanced", "balanced", "missing class", "two rare classes"],
)
def test_balanced_weights_are_those_of_scikit_learn(counts: list[int], expected: tuple[float, ...]) -> None:
    """n / (k * n_c), where a class without examples is none of the k."""
    assert class_weights("balanced", np.array(counts)) == pytest.approx(expected)
    assert class_weights("none", np.array(counts)) is None


def test_the_log_has_each_weight_of_few_classes_and_the_extremes_of_many() -> None:
    """In four digits."""
    assert weights_summary((2 / 3, 1.0, 2.0), ("a", "b", "c")) == {"a": 0.6667, "b": 1.0, "c": 2.0}
    assert weights_summary((0.5, *[1.0] * 19, 123.456), tuple("abcdefghijklmnopqrstu")) == {
        "smallest": 0.5,
        "largest": 123.5,
    }
    assert weights_summary(None, ("a", "b")) is None


@pytest.mark.slow
@pytest.mark.parametrize("xla", [False, True])
@pytest.mark.parametrize(
    ("dataset", "labels", "weights"),
    [
        ("two_shapes", [0] * 36 + [1] * 4, (40 / 72, 5.0)),
        ("three_shapes", [0] * 30 + [2] * 10, (2 / 3, 1.0, 2.0)),
    ],
)
def test_a_head_is_trained_as_keras_trains_it_with_the_same_class_weights(
    prepared: Path, dataset: str, labels: list[int], weights: tuple[float, ...], xla: bool
) -> None:
    """Two epochs with a partial batch: weights and both losses. Validation is not weighted."""
    with load_splits(shapes.request(prepared, dataset=dataset), check_stop=lambda: None) as splits:
        train = dataclasses.replace(splits.train, labels=np.array(labels, np.int32))
        classifier = build(num_classes=len(weights), dropout=0.0, augmentation=OFF)
        theirs = classifier.export()
        state = PhaseState(classifier, Phase(name="head", unfreeze="none", learning_rate=1e-3, epochs=2))
        recipe = Recipe(16, 0, xla=xla, class_weights=weights)
        facts = train_phase(
            state, train=train, validation=splits.validation, recipe=recipe, position=Position(), ledger=Ledger(),
            collective=ALONE,
        )  # fmt: skip
        epochs = [fact for fact in facts if isinstance(fact, events.EpochFinished)]
        images, validation = (
            np.concatenate([batch.numpy() for batch, _ in split.batches(16)]) for split in (train, splits.validation)
        )

    for layer in theirs.layers:
        layer.trainable = layer.name == "head"
    kind = keras.losses.BinaryCrossentropy if len(weights) == 2 else keras.losses.SparseCategoricalCrossentropy
    theirs.compile(keras.optimizers.Adam(1e-3), kind(from_logits=True))
    for epoch, ours in enumerate(epochs):
        order = epoch_order(40, batch_size=16, seed=0, phase="head", epoch=epoch)
        history = theirs.fit(
            images[order], train.labels[order], batch_size=16, shuffle=False, verbose=0,
            class_weight=dict(enumerate(weights)), validation_data=(validation, splits.validation.labels),
        ).history  # fmt: skip
        assert ours.train_loss == pytest.approx(history["loss"][0], rel=1e-6)
        assert ours.validation_loss == pytest.approx(history["val_loss"][0], rel=1e-6)
    for mine, value in zip(classifier.head.get_weights(), theirs.get_layer("head").get_weights(), strict=True):
        np.testing.assert_allclose(mine, value, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_setting_reaches_the_log_and_the_loss(small: Callable[..., Settings], tmp_path: Path) -> None:
    """The training split has 14, 13 and 13 examples."""
    settings: dict[str, Any] = {"dataset": "three_shapes", "head_epochs": 1, "fine_tune_epochs": 0}
    losses = {}
    for kind, expected in {"none": None, "balanced": {"disc": 0.9524, "across": 1.026, "down": 1.026}}.items():
        trained = CrashOn(events.EpochFinished)
        with pytest.raises(Crash):
            start(small(class_weights=kind, **settings), LocalStore(tmp_path / kind), observer=trained)
        assert trained.of(events.DataLoaded)[0].class_weights == expected
        losses[kind] = trained.of(events.EpochFinished)[0].train_loss
    assert losses["balanced"] != losses["none"]
