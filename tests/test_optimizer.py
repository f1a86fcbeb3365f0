"""Adam: Keras's, to rounding, with its variables."""

import keras
import numpy as np
import tensorflow as tf

from job.optimizer import FusedAdam


def test_it_makes_the_steps_that_adam_of_keras_makes() -> None:
    """Over gradients of every size, zero among them, and the same moments by the same names."""
    random = np.random.default_rng(0)
    start = random.normal(size=(5, 7)).astype(np.float32)
    gradients = [random.normal(size=(5, 7)).astype(np.float32) * 10.0**-power for power in range(8)]
    gradients[3][:] = 0
    finished = []
    for kind in (keras.optimizers.Adam, FusedAdam):
        variable = keras.Variable(start, name="kernel")
        optimizer = kind(1e-2)
        optimizer.build([variable])

        @tf.function(autograph=False)
        def step(gradient: tf.Tensor, optimizer: keras.Optimizer = optimizer, variable: keras.Variable = variable) -> None:
            optimizer.apply([gradient], [variable])

        for gradient in gradients:
            step(tf.constant(gradient))
        assert int(optimizer.iterations) == len(gradients)
        finished.append({value.name: value.numpy() for value in (variable, *optimizer.variables)})
    theirs, ours = finished
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=2e-6, atol=1e-9, err_msg=name)
    assert not np.allclose(ours["kernel"], start)
