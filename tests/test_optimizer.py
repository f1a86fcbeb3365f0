"""Adam: Keras's, to rounding, with its variables."""

import keras
import numpy as np
import tensorflow as tf

from job.train.optimizer import FusedAdam


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
