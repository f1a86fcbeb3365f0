"""Adam, AdamW, clipping and moving averages: Keras's, to rounding, with its variables."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from job.phases import OptimizerName, Phase
from job.settings.resources import MOMENTS
from job.train.loss import loss_of
from job.train.optimizer import KINDS, FusedAdam, optimizer_of
from tests.classifiers import build


def steps(optimizer: keras.Optimizer, start: np.ndarray, gradients: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The variable and those of the optimizer, by name, after one step for each gradient."""
    variable = keras.Variable(start, name="kernel")
    optimizer.build([variable])
    step = tf.function(lambda gradient: optimizer.apply([gradient], [variable]), autograph=False)
    for gradient in gradients:
        step(tf.constant(gradient))
    return {value.name: value.numpy() for value in (variable, *optimizer.variables)}


def test_it_makes_the_steps_that_adam_of_keras_makes() -> None:
    """Over gradients of every size, zero among them; the moments have the same names."""
    random = np.random.default_rng(0)
    start = random.normal(size=(5, 7)).astype(np.float32)
    gradients = [random.normal(size=(5, 7)).astype(np.float32) * np.float32(10.0**-power) for power in range(8)]
    gradients[3][:] = 0
    theirs = steps(keras.optimizers.Adam(1e-2), start, gradients)
    ours = steps(FusedAdam(1e-2), start, gradients)
    assert ours.keys() == theirs.keys()
    assert ours["iteration"] == len(gradients)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert not np.allclose(ours["kernel"], start)


def of(variables: list[keras.Variable], **options: Any) -> keras.Optimizer:
    return optimizer_of(Phase(name="only", epochs=1, learning_rate=1e-2, **options), variables)


def applying(optimizer: keras.Optimizer, variables: list[keras.Variable]) -> Any:
    return lambda gradients: optimizer.apply(gradients, variables)


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({"weight_decay": 0.3}, keras.optimizers.AdamW(1e-2, weight_decay=0.3)),
        ({"clip_norm": 0.5}, keras.optimizers.Adam(1e-2, global_clipnorm=0.5)),
        ({"ema_decay": 0.9}, keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.9)),
        ({"optimizer": "sgd"}, keras.optimizers.SGD(1e-2, momentum=0.9, nesterov=True)),
        ({"optimizer": "lion", "weight_decay": 0.3}, keras.optimizers.Lion(1e-2, weight_decay=0.3)),
        (
            {"weight_decay": 0.3, "clip_norm": 0.5, "ema_decay": 0.9},
            keras.optimizers.AdamW(1e-2, weight_decay=0.3, global_clipnorm=0.5, use_ema=True, ema_momentum=0.9),
        ),
    ],
    ids=["AdamW", "clipping", "average", "SGD", "Lion", "all"],
)
def test_its_options_are_those_of_keras(options: dict[str, Any], theirs: keras.Optimizer) -> None:
    """Two kernels and a bias over several steps: variables, moments, averages; the bias does not decay."""
    random = np.random.default_rng(0)
    starts = {"kernel": (5, 7), "bias": (7,), "depthwise_kernel": (3, 3, 2, 1)}
    values = {name: random.normal(size=shape).astype(np.float32) for name, shape in starts.items()}
    gradients = [[random.normal(size=shape).astype(np.float32) for shape in starts.values()] for _ in range(6)]
    found = []
    for given in (None, theirs):
        variables = [keras.Variable(value, name=name) for name, value in values.items()]
        if given is None:
            optimizer: keras.Optimizer = of(variables, **options)
        else:
            optimizer = given
            optimizer.exclude_from_weight_decay(var_names=["bias"])
            optimizer.build(variables)
        step = tf.function(applying(optimizer, variables), autograph=False)
        for gradient in gradients:
            step([tf.constant(value) for value in gradient])
        raw = [variable.numpy() for variable in variables]
        optimizer.finalize_variable_values(variables)
        found.append([*raw, *(variable.numpy() for variable in (*optimizer.variables, *variables))])
    assert len(found[0]) == len(found[1])
    for ours, expected in zip(*found, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_the_estimate_counts_the_moments_of_each(name: OptimizerName) -> None:
    """Arrays of the size of the variable, which are in each checkpoint."""
    variable = keras.Variable(np.zeros((3, 5), np.float32), name="kernel")
    optimizer = of([variable], optimizer=name)
    assert sum(one.shape == variable.shape for one in optimizer.variables) == MOMENTS[name]


def test_only_kernels_decay() -> None:
    """With gradients of zero nothing else moves: no bias, no scale or offset of a BatchNorm."""
    classifier = build()
    variables = classifier.trainable_variables()
    optimizer = of(variables, weight_decay=0.5)
    before = [variable.numpy() for variable in variables]
    optimizer.apply([tf.zeros_like(variable.value) for variable in variables], variables)
    for variable, value in zip(variables, before, strict=True):
        expected = value * (1 - 0.5 * 1e-2) if variable.name == "kernel" else value
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-6, err_msg=variable.path)
    assert {variable.name for variable in variables} == {"kernel", "bias", "gamma", "beta"}


@pytest.mark.parametrize("num_logits", [1, 3, 10])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_is_that_of_keras(num_logits: int, smoothing: float) -> None:
    """Of two classes and of more."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(20, num_logits)).astype(np.float32) * 3
    labels = random.integers(0, max(2, num_logits), 20).astype(np.int32)
    options = {"from_logits": True, "label_smoothing": smoothing, "reduction": None}
    if num_logits == 1:
        expected = keras.losses.BinaryCrossentropy(**options)(labels[:, np.newaxis], logits)
    else:
        expected = keras.losses.CategoricalCrossentropy(**options)(np.eye(num_logits)[labels], logits)
    ours = loss_of(tf.constant(logits), tf.constant(labels), label_smoothing=smoothing)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
