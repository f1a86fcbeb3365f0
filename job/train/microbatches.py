"""A batch that is computed in parts, one after the other, whose gradients are added: less memory, and the same step."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

Compute = Callable[..., tuple[list[tf.Tensor], tf.Tensor]]
"""From a seed, the place of some rows in their batch, and tensors of these rows: the gradient of each variable, and the
sums of the rows, float64 [3]. The place, int32 [3], is the first of the rows, how many of them count, and how many the
whole batch has.
"""


def not_inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function for the body of a loop, as fast as outside of it and with the same bits.

    Inlined into a loop TensorFlow fuses less of it (2.21; tests/test_steps_per_execution.py).
    """
    traced: Callable[..., Any] = tf.function(
        function, reduce_retracing=True, autograph=False, experimental_attributes={"_noinline": True}
    )
    return traced


def in_parts(compute: Compute, variables: Sequence[keras.Variable], size: int) -> Compute:
    """`compute` as the sum over parts of `size` rows, in order; the last may be smaller.

    That is the same but for rounding where each row's part in the loss is divided by the rows of the whole batch, and
    nothing else is taken from other rows.
    """
    of_part = not_inlined(compute)

    def of_all(seed: tf.Tensor, place: tf.Tensor, *rows: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        first, num_rows, batch_size = tf.unstack(place)

        def one(start: tf.Tensor, sums: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
            end = start + size
            own = tf.stack([first + start, tf.minimum(num_rows - start, size), batch_size])
            gradients, of_rows = of_part(seed, own, *(tensor[start:end] for tensor in rows))
            return end, [total + value for total, value in zip(sums, [*gradients, of_rows], strict=True)]

        zeros = [*(tf.zeros(variable.shape, variable.dtype) for variable in variables), tf.zeros([3], tf.float64)]
        _, sums = tf.while_loop(lambda start, _: start < num_rows, one, (tf.constant(0), zeros), parallel_iterations=1)
        return sums[:-1], sums[-1]

    return of_all
