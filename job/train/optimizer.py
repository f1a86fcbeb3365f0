"""The optimizers, which are Keras's, on variables that each worker has for itself; and the loss scale of float16.

Weight decay, clipping by the global norm and moving averages of the weights are Keras's own options of all of them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from job.phases import OptimizerName, Phase


class _OfOneWorker:
    """What an optimizer of Keras does with the variables of a strategy, on variables that are no strategy's."""

    weight_decay: float | None
    learning_rate: keras.Variable

    def _apply_weight_decay(self, variables: Any) -> None:
        # As Keras does, decoupled from the gradient (Loshchilov & Hutter 2019, arXiv:1711.05101).
        for variable in variables if self.weight_decay is not None else ():
            if self._use_weight_decay(variable):  # type: ignore[attr-defined]
                value = variable.value
                value.assign_sub(value * tf.cast(self.weight_decay * self.learning_rate.value, value.dtype))

    def _backend_update_step(self, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
        # All workers get the same sum of gradients.
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            self.update_step(gradient, variable.value, learning_rate)  # type: ignore[attr-defined]


class FusedAdam(_OfOneWorker, keras.optimizers.Adam):
    """`keras.optimizers.Adam`, with the same variables and formula (Kingma & Ba 2015, arXiv:1412.6980, section 2, where
    epsilon is their epsilon-hat), in one pass over a variable, with TensorFlow's kernel for it, where Keras makes ten.
    """

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


class Momentum(_OfOneWorker, keras.optimizers.SGD):
    """Nesterov's momentum (Sutskever et al. 2013, On the importance of initialization and momentum, ICML)."""

    def __init__(self, learning_rate: float, **options: Any) -> None:
        super().__init__(learning_rate, momentum=0.9, nesterov=True, **options)


class Lion(_OfOneWorker, keras.optimizers.Lion):
    """The sign of a momentum (Chen et al. 2023, arXiv:2302.06675)."""


KINDS: Mapping[OptimizerName, type[keras.optimizers.Optimizer]] = {"adam": FusedAdam, "sgd": Momentum, "lion": Lion}


def optimizer_of(phase: Phase, variables: Sequence[keras.Variable]) -> keras.optimizers.Optimizer:
    """The optimizer of a phase that trains these variables; of them only kernels decay, no bias and no scale."""
    optimizer = KINDS[phase.optimizer](
        phase.learning_rate,
        weight_decay=phase.weight_decay or None,
        global_clipnorm=phase.clip_norm or None,
        use_ema=phase.ema_decay > 0,
        **({"ema_momentum": phase.ema_decay} if phase.ema_decay > 0 else {}),
    )
    optimizer.exclude_from_weight_decay(var_list=[one for one in variables if not one.name.endswith("kernel")])
    optimizer.build(variables)
    if phase.ema_decay > 0:
        # Keras (3.15) lets them begin at 0, and sets them in the first step, which a loss scale may leave out.
        averages = optimizer._model_variables_moving_average
        for average, variable in zip(averages, variables, strict=True):
            average.assign(variable.value)
    return optimizer


SCALES = 1.0, 2.0**24
"""The smallest and the largest loss scale."""
MOST_HALVINGS = int(math.log2(SCALES[1] / SCALES[0]))
"""From the largest scale to the smallest."""


class LossScaling(keras.optimizers.LossScaleOptimizer):
    """Keras's dynamic loss scale (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2) around an optimizer.

    A step whose gradients are not all finite changes no weight and halves the scale; after 2,000 others in a row it is
    doubled. It counts as a step, as the order of the examples goes on. All workers have the same sum of gradients. The
    scale keeps within bounds, as beyond float32's it would stay infinite, or 0, for ever. Of steps in a row that change
    nothing, Keras's counter has the number, negative: so it is in the checkpoints.
    """

    @property
    def num_overflows(self) -> int:
        """The steps in a row, up to the last one, that changed no weight; waits for the device."""
        return max(0, -int(self.step_counter.numpy()))

    def _tf_apply(self, grads: Any, trainable_variables: Any = None) -> None:
        self._common_apply(grads, trainable_variables)
        self.dynamic_scale.assign(tf.clip_by_value(self.dynamic_scale.value, *SCALES))

    def _stateful_handle_finite_grads(self, grads: Any, trainable_variables: Any) -> None:
        self.step_counter.assign(tf.maximum(self.step_counter.value, 0))
        super()._stateful_handle_finite_grads(grads, trainable_variables)

    def _stateful_handle_non_finite_grads(self) -> None:
        counter = tf.minimum(self.step_counter.value, 0) - 1
        super()._stateful_handle_non_finite_grads()
        self.step_counter.assign(counter)
        self.iterations.assign_add(1)
