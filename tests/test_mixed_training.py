"""Training with mixed images: loss and gradients of the formulas, partners of an epoch, resumed to the bit."""

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load as load_arrays

from job.data.order import epoch_order
from job.data.splits import load_splits
from job.errors import Interrupted
from job.model.augmentation_policy import OFF
from job.observe.ledger import Ledger
from job.phases import Phase
from job.storage import LocalStore
from job.train.loop import Position, train_phase
from job.train.state import PhaseState
from job.train.step import Recipe, train_steps
from tests import shapes
from tests.classifiers import ALONE, build
from tests.conftest import slowly
from tests.reports import content, render
from tests.runs import ONE_PHASE, Small, StopAtStep, Whole, record_of, result_of, start
from tests.test_augmentation import EVERYTHING

BATCH, ROWS, SIZE = 12, 9, 16
"""Of a batch of 12 examples, the first 9 count."""

ALL_ON: dict[str, Any] = {
    "mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1, "weight_decay": 0.05, "clip_norm": 0.5, "ema_decay": 0.8,
    "class_weights": "balanced", **dataclasses.asdict(EVERYTHING),
}  # fmt: skip
IN_HEAD = ALL_ON | ONE_PHASE | {"dataset": "three_shapes"}


def new_state(num_classes: int) -> PhaseState:
    phase = Phase(name="head", unfreeze="none", learning_rate=1e-3, epochs=1)
    return PhaseState(build(num_classes=num_classes, dropout=0.0), phase)


def targets(labels: np.ndarray, num_classes: int, smoothing: float) -> np.ndarray:
    return np.eye(num_classes)[labels] * (1 - smoothing) + smoothing / num_classes


def one_step(
    state: PhaseState, recipe: Recipe, labels: np.ndarray, partner_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """White images mixed with black ones: the sums of the step, and what it saw of each: features, share of white."""
    seen = tf.Variable(tf.zeros([ROWS, SIZE, SIZE, 3]))

    def features_of(images: tf.Tensor) -> tf.Tensor:
        seen.assign(images)
        return state.classifier.features(images)

    steps = train_steps(state, features_of, recipe, ALONE)
    white = np.full((BATCH, SIZE, SIZE, 3), 255, np.uint8)
    sums, _ = steps(
        tf.constant([[1, 2]]), tf.constant([[0, ROWS, BATCH, 0]]), tf.constant([1e-3]), tf.zeros([3], tf.float64),
        tf.constant(0.0), white, labels, 0 * white, partner_labels,
    )  # fmt: skip
    images = seen.numpy()
    return sums.numpy(), state.classifier.features(images).numpy()[:ROWS], images.mean((1, 2, 3))[:ROWS] / 255


@pytest.mark.parametrize("xla", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("num_classes", [2, *slowly(4)])
@pytest.mark.parametrize(
    "alphas",
    [
        {"mixup": 0.8, "cutmix": 1.0},
        *slowly({"mixup": 0.8}, {"cutmix": 1.0}),
    ],
)
def test_the_loss_is_shared_as_the_pixels_are(alphas: dict[str, float], num_classes: int, xla: bool) -> None:
    """Cross-entropy of both labels by the share of the pixels, each smoothed and with its class weight; its gradient.

    Right is an answer that is the label of the larger share.
    """
    weights, smoothing = (0.5, 2.0, 1.0, 3.0)[:num_classes], 0.2
    random = np.random.default_rng(0)
    labels, partner_labels = random.integers(0, num_classes, (2, BATCH)).astype(np.int32)
    state = new_state(num_classes)
    kernel, bias = state.classifier.head.get_weights()
    recipe = Recipe(BATCH, 0, xla=xla, class_weights=weights, label_smoothing=smoothing, **alphas)
    (loss, correct, count), features, share = one_step(state, recipe, labels, partner_labels)
    assert count == ROWS
    assert np.ptp(share) > 0.3

    logits = (features @ kernel + bias).astype(np.float64)
    if num_classes == 2:
        logits = np.concatenate([0 * logits, logits], axis=1)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    losses, gradients = np.zeros(ROWS), np.zeros((ROWS, num_classes))
    for part, of_part in ((share, labels[:ROWS]), (1 - share, partner_labels[:ROWS])):
        weight, target = part * np.array(weights)[of_part], targets(of_part, num_classes, smoothing)
        losses -= weight * (target * np.log(probabilities)).sum(axis=1)
        gradients += weight[:, None] * (probabilities - target)
    if num_classes == 2:
        gradients = gradients[:, 1:]
    larger = np.where(share < 0.5, partner_labels[:ROWS], labels[:ROWS])
    assert loss == pytest.approx(losses.sum(), rel=1e-4)
    assert correct == (logits.argmax(axis=1) == larger).sum()
    # Adam's first moments after one step are a tenth of the gradients.
    arrays = state.arrays()
    moments = {array.shape: array for name, array in arrays.items() if name in ("optimizer/002", "optimizer/004")}
    expected = features.T @ gradients / BATCH
    np.testing.assert_allclose(moments[kernel.shape] * 10, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(moments[bias.shape] * 10, gradients.sum(axis=0) / BATCH, atol=1e-5)


@pytest.mark.slow
def test_partners_are_the_examples_of_another_order_in_the_same_columns(prepared: Path) -> None:
    """An epoch is what Keras's optimizer makes of the mean of each image and its partner, with half of both labels.

    With an alpha so large that every share is 1/2; the last batch is partial.
    """
    with load_splits(shapes.request(prepared, dataset="three_shapes"), check_stop=lambda: None) as splits:
        classifier = build(num_classes=3, dropout=0.0, augmentation=OFF)
        model = classifier.export()
        state = PhaseState(classifier, Phase(name="head", unfreeze="none", learning_rate=1e-3, epochs=2))
        facts = train_phase(
            state, train=splits.train, validation=splits.validation, recipe=Recipe(16, 0, xla=False, mixup=1e12),
            position=Position(), ledger=Ledger(), collective=ALONE,
        )  # fmt: skip
        losses = [fact.train_loss for fact in facts if hasattr(fact, "train_loss")]
        images = np.concatenate([batch.numpy() for batch, _ in splits.train.batches(16)]).astype(np.float32)
        labels = np.eye(3, dtype=np.float32)[splits.train.labels]
    for layer in model.layers:
        layer.trainable = layer.name == "head"
    model.compile("adam", tf.keras.losses.CategoricalCrossentropy(from_logits=True))
    for epoch, loss in enumerate(losses):
        own, other = (
            epoch_order(40, batch_size=16, seed=0, phase=name, epoch=epoch) for name in ("head", "head/partner")
        )
        assert all(set(own[column::16]) == set(other[column::16]) for column in range(16))
        mixed = [(values[own] + values[other]) / 2 for values in (images, labels)]
        history = model.fit(*mixed, batch_size=16, shuffle=False, verbose=0).history
        assert loss == pytest.approx(history["loss"][0], rel=1e-5)
    for mine, value in zip(classifier.head.get_weights(), model.get_layer("head").get_weights(), strict=True):
        np.testing.assert_allclose(mine, value, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "step"),
    [("head", 4), ("head", 5), ("fine_tune", 0), ("fine_tune", 4)],
)
def test_training_with_everything_on_that_is_stopped_anywhere_ends_the_same(
    small: Small, store: LocalStore, whole: Whole, phase: str, step: int
) -> None:
    """In the middle of an epoch, before its validation, at the end of a phase, and at the beginning of the next one."""
    changes = IN_HEAD if phase == "head" else IN_HEAD | {"fine_tune_epochs": 2}
    settings = small(**changes)
    stop = StopAtStep(phase, step)
    with pytest.raises(Interrupted):
        start(settings, store, observer=stop, check_stop=stop.check_stop)
    start(settings, store)
    assert result_of(store) == result_of(whole(**changes)[0])


@pytest.mark.slow
def test_what_is_shipped_are_the_averages(whole: Whole, tmp_path: Path) -> None:
    """The checkpoint has the weights of the last step beside them."""
    store, _, _ = whole(**IN_HEAD)
    arrays = load_arrays(store.read(record_of(store).checkpoints[-1].name).data)
    path = tmp_path / "model.keras"
    path.write_bytes(store.read("model/model.keras").data)
    kernel = np.asarray(keras.saving.load_model(path).get_layer("head").kernel)
    assert not np.array_equal(kernel, arrays["head/kernel"])
    assert any(np.array_equal(kernel, array) for name, array in arrays.items() if name.startswith("optimizer/"))


@pytest.mark.parametrize(
    ("setting", "remark"),
    [
        ({"mixup": 0.2}, "mixed with another one"),
        ({"class_weights": "balanced"}, "weighted by class"),
        pytest.param({"cutmix": 1.0}, "mixed with another one", marks=pytest.mark.slow),
        pytest.param({"label_smoothing": 0.1}, "labels are smoothed", marks=pytest.mark.slow),
        pytest.param({"ema_decay": 0.99}, "moving average of the weights", marks=pytest.mark.slow),
    ],
)
def test_the_page_says_what_the_curves_are_of(setting: dict[str, Any], remark: str) -> None:
    """Beside them, and in the settings of the run."""
    page = render(content(**setting))
    assert remark in page
    assert f"THAW_{next(iter(setting)).upper()}" in page
    assert remark not in render(content())
