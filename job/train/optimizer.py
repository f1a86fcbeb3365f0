"""Adam, updating each variable with TensorFlow's one kernel for it."""

from typing import Any

import keras
import tensorflow as tf


class FusedAdam(keras.optimizers.Adam):
    """`keras.optimizers.Adam`, with the same variables and formula (Kingma & Ba 2015, arXiv:1412.6980, section 2, where
    epsilon is their epsilon-hat), in one pass over a variable where Keras makes ten."""

    def _backend_update_step(self, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
        # Each worker has variables of its own, which are no strategy's: all get the same sum of gradients.
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            self.update_step(gradient, variable.value, learning_rate)

    def update_step(self, gradient: tf.Tensor, variable: Any, learning_rate: Any) -> None:
        index = self._get_variable_index(variable)
        num_steps = tf.cast(self.iterations.value, variable.dtype) + 1
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.pow(self.beta_1, num_steps),
            beta2_power=tf.pow(self.beta_2, num_steps),
            lr=tf.cast(learning_rate, variable.dtype),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=tf.cast(gradient, variable.dtype),
        )
