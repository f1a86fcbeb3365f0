"""BatchNorm with fixed statistics, folded into the convolution before it.

With s = gamma / sqrt(variance + epsilon), (conv(x, W) + b - mean) * s + beta is conv(x, W * s) + (b - mean) * s + beta:
the same function of the same variables, and so with the same gradients, up to rounding. It scales the weights once
instead of every activation, forward and backward, keeps one map less of each layer for the gradient, and leaves
TensorFlow a convolution, a bias and an activation, which its kernels do in one pass. Jacob et al. 2018
(arXiv:1712.05877, section 3.2) fold so for training that simulates quantization.
"""

from collections import Counter
from typing import Any

import keras
import tensorflow as tf

CONVOLUTIONS = {
    keras.layers.Conv2D: keras.ops.conv,
    keras.layers.DepthwiseConv2D: keras.ops.depthwise_conv,
    keras.layers.SeparableConv2D: keras.ops.separable_conv,
}
"""The operation of each kind of layer."""


def folded(network: keras.Model, *, num_frozen: int = 0) -> keras.Model:
    """`network` for inference, with every BatchNorm folded that can be; it reads the variables of `network`.

    Those of its first `num_frozen` layers it has read here, once: it neither sees a later change of them nor has a
    gradient.
    """
    frozen = {id(layer) for layer in network.layers[:num_frozen]}
    pairs = _pairs(network)
    batch_norms = {id(batch_norm) for _, batch_norm in pairs.values()}
    summed = {id(tensor) for layer in network.layers if isinstance(layer, keras.layers.Add) for tensor in layer.input}

    def replacement(layer: keras.layers.Layer) -> keras.layers.Layer:
        if id(layer) in pairs:
            return _FoldedConvolution(*pairs[id(layer)], frozen=all(id(one) in frozen for one in pairs[id(layer)]))
        return _Folded(layer, is_summed=id(layer.output) in summed) if id(layer) in batch_norms else layer

    return keras.models.clone_model(network, clone_function=replacement) if pairs else network


def _pairs(network: keras.Model) -> dict[int, tuple[keras.layers.Layer, keras.layers.BatchNormalization]]:
    """Each convolution that only a BatchNorm of its channels reads, and that BatchNorm, by the convolution's id."""
    producers = {id(operation.output): operation for operation in network.operations}
    readers = Counter(id(tensor) for operation in network.operations for tensor in keras.tree.flatten(operation.input))
    readers.update(id(tensor) for tensor in network.outputs)
    pairs = {}
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization) and layer.axis in (-1, 3):
            convolution = producers[id(layer.input)]
            if _is_plain(convolution) and readers[id(layer.input)] == 1:
                pairs[id(convolution)] = (convolution, layer)
    return pairs


def _is_plain(layer: Any) -> bool:
    return (
        type(layer) in CONVOLUTIONS
        and layer.activation is keras.activations.linear
        and layer.data_format == "channels_last"
        and getattr(layer, "groups", 1) == 1
    )


class _FoldedConvolution(keras.layers.Layer):
    """A convolution and the BatchNorm after it, of which it reads the variables in float32."""

    def __init__(self, convolution: Any, batch_norm: keras.layers.BatchNormalization, *, frozen: bool) -> None:
        super().__init__(name=convolution.name, dtype=convolution.dtype_policy, autocast=False)
        # TensorFlow's variables, which no layer tracks, and which are read in float32 whatever layer is reading.
        self._kernels = [weight.value for weight in convolution.weights if "kernel" in weight.name]
        self._bias = convolution.bias.value if convolution.use_bias else None
        self._gamma = batch_norm.gamma.value if batch_norm.scale else None
        self._beta = batch_norm.beta.value if batch_norm.center else None
        self._mean = batch_norm.moving_mean.value
        self._variance = batch_norm.moving_variance.value
        self._epsilon = batch_norm.epsilon
        self._kind = type(convolution)
        self._options = {name: getattr(convolution, name) for name in ("strides", "padding", "dilation_rate")}
        self._output_shape = convolution.output.shape
        self._once = self._weights() if frozen else None
        self.built = True

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        *kernels, offset = self._once or self._weights()
        maps = CONVOLUTIONS[self._kind](tf.cast(inputs, self.compute_dtype), *kernels, **self._options)
        return tf.nn.bias_add(maps, offset)

    def compute_output_spec(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        return keras.KerasTensor(self._output_shape, dtype=self.compute_dtype)

    def _weights(self) -> list[tf.Tensor]:
        """The kernels, the last scaled, and the offset [channels], in the type of the activations."""
        scale = tf.math.rsqrt(self._variance + self._epsilon)
        if self._gamma is not None:
            scale *= self._gamma
        offset = -self._mean * scale
        if self._beta is not None:
            offset += self._beta
        if self._bias is not None:
            offset += self._bias * scale
        *before, kernel = self._kernels
        # Of a depthwise kernel [h, w, in, multiplier] the last two axes together are the channels.
        channels = kernel.shape[2:] if self._kind is keras.layers.DepthwiseConv2D else [-1]
        return [
            tf.cast(weight, self.compute_dtype) for weight in (*before, kernel * tf.reshape(scale, channels), offset)
        ]


class _Folded(keras.layers.Layer):
    """In the place of a BatchNorm that the convolution before it has taken over."""

    def __init__(self, batch_norm: keras.layers.BatchNormalization, *, is_summed: bool) -> None:
        super().__init__(name=batch_norm.name, dtype=batch_norm.dtype_policy)
        self._is_summed = is_summed

    def call(self, inputs: tf.Tensor, mask: Any = None) -> tf.Tensor:
        # Grappler (TensorFlow 2.21) gives up fusing a whole graph when it meets a bias whose sum with another map has
        # several readers, as in every residual block. It does not look past an EnsureShape.
        return tf.ensure_shape(inputs, inputs.shape) if self._is_summed else inputs

    def compute_output_spec(self, inputs: keras.KerasTensor, mask: Any = None) -> keras.KerasTensor:
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)
