"""The classifier: a pre-trained backbone whose statistics never move, and a head, which is new unless it is taken over.

Our own train step calls the parts directly, so `training=False` reaches every BatchNorm of the backbone in both
phases, and most are folded into the convolution before them. (A `fit` of a functional Keras 3 model overrides that
argument of an inner call, and the statistics move: tests/test_real_data.py shows it.) This module builds and exports;
it does not train.
"""

import dataclasses
import difflib
import functools
import hashlib
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from job.errors import InvalidSettings
from job.model import networks
from job.model.answers import of_classes
from job.model.augmentation import Rows, augment
from job.model.augmentation_policy import Augmentation
from job.model.backbones import BACKBONES, CUSTOM
from job.model.draws import HOST
from job.model.folding import folded


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """Which model a run wants.

    `weights` is `imagenet`, `none`, a local path, or a model that `Classifier.export` made; `policy` a Keras dtype
    policy for the backbone; `seed` is that of new weights.
    """

    backbone: str
    weights: str | keras.Model
    image_size: int
    num_classes: int
    dropout: float
    augmentation: Augmentation
    policy: str
    seed: int


class Classifier:
    """Backbone, pooling, dropout and head, as functions of explicit seeds.

    `num_logits` is 1 for two classes, else the number of classes; `image_size` the pixels of a side.
    """

    def __init__(self, request: ModelRequest, *, backbone: keras.Model, head: keras.layers.Dense) -> None:
        self.backbone = backbone
        self.head = head
        self.image_size = request.image_size
        self.num_logits = int(head.units)
        # Without the model that it may begin with, which would stay in memory.
        self._request = dataclasses.replace(request, weights="")
        self._rescaling = BACKBONES[request.backbone].rescaling
        self._is_bgr = BACKBONES[request.backbone].bgr

    @functools.cached_property
    def _folded(self) -> keras.Model:
        return folded(self.backbone)

    @property
    def is_float16(self) -> bool:
        """Whether small gradients would be lost without a loss scale."""
        return self._request.policy == "mixed_float16"

    @property
    def num_layers(self) -> int:
        """The number of layers of the backbone."""
        return len(self.backbone.layers)

    def first_trained(self, unfreeze: str) -> int:
        """The index of the first layer of the backbone that trains, `num_layers` if none does; the rest follow it.

        `unfreeze` is that of a phase. Raises InvalidSettings when the backbone has no such layer.
        """
        kind, _, which = unfreeze.partition(":")
        if kind == "top" and int(which) <= self.num_layers:
            return self.num_layers - int(which)
        if kind in ("all", "none"):
            return {"all": 0, "none": self.num_layers}[kind]
        names = [layer.name for layer in self.backbone.layers]
        found = [index for index, name in enumerate(names) if kind == "block" and name.startswith(which)]
        if found:
            return found[0]
        near = difflib.get_close_matches(which, {name.split("_")[0] for name in names} | set(names), n=3, cutoff=0.5)
        raise InvalidSettings(
            f"{unfreeze!r} names no layer of {self._request.backbone}, which has {self.num_layers}",
            hint=f"its layers are {names[0]} to {names[-1]}{': did you mean ' if near else ''}{' or '.join(near)}",
        )

    def augmented(self, images: tf.Tensor, seed: tf.Tensor, rows: Rows) -> tf.Tensor:
        """uint8 [b, s, s, 3] -> float32, changed at random by a seed, int32 [2], as these rows of a batch."""
        return augment(tf.cast(images, tf.float32), self._request.augmentation, seed=seed, rows=rows)

    def features(self, images: tf.Tensor) -> tf.Tensor:
        """Pixels 0..255 [b, s, s, 3] -> pooled features float32 [b, d]; BatchNorm uses its fixed statistics."""
        return self._pooled(self._folded, images)

    def features_training(self, first: int) -> Callable[[tf.Tensor], tf.Tensor]:
        """`features` while the layers of the backbone from `first` on train, and those before keep their weights.

        Layers before `first` are faster, blind to later changes, and without gradients.
        """
        if first == 0:
            return self.features
        return functools.partial(self._pooled, folded(self.backbone, num_frozen=first))

    def _pooled(self, network: keras.Model, images: tf.Tensor) -> tf.Tensor:
        scale, offset = tf.constant(self._rescaling.scale), tf.constant(self._rescaling.offset)
        pixels = tf.cast(images, tf.float32) * scale + offset
        maps = network(tf.reverse(pixels, [-1]) if self._is_bgr else pixels, training=False)
        return _mean_of_pixels(tf.cast(maps, tf.float32))

    def logits(self, features: tf.Tensor) -> tf.Tensor:
        """Features [b, d] -> logits float32 [b, num_logits]."""
        return self.head(features)

    def take_head(self, model: keras.Model, classes: np.ndarray) -> None:
        """Take over the head of a model that `export` made: for each class, int64 [k], the class of that model, or -1
        for one that stays new. Raises WeightsUnusable when it has no such head.
        """
        earlier = _of_each_class(networks.head_of_exported(model, self.backbone.output_shape[-1]))
        weights = _of_each_class(self.head.get_weights())
        weights[:, classes >= 0] = earlier[:, classes[classes >= 0]]
        if self.num_logits == 1:
            weights = weights[:, 1:] - weights[:, :1]
        self.head.set_weights([weights[:-1], weights[-1]])

    def dropout_mask(self, seed: tf.Tensor, rows: Rows, images: tf.Tensor) -> tf.Tensor:
        """What the features [b, d] of these rows of a batch are multiplied with in training, by a seed, int32 [2].

        float32 [b, d]; without dropout ones [b, 1].
        """
        rate = self._request.dropout
        if rate == 0:
            return tf.ones([tf.shape(images)[0], 1])
        ones = tf.ones([rows.batch_size, self.backbone.output_shape[-1]])
        return rows.of(tf.nn.experimental.stateless_dropout(ones, rate=rate, seed=seed, rng_alg="philox"), images)

    def trainable_variables(self, first: int = 0) -> list[keras.Variable]:
        """The variables that train with the layers of the backbone from `first` on and the head; never a statistic."""
        layers = (*self.backbone.layers[first:], self.head)
        return [variable for layer in layers for variable in layer.trainable_weights]

    def named_variables(self, first: int = 0, *, with_head: bool = True) -> dict[str, keras.Variable]:
        """Every weight from that layer on by a name that does not depend on what else the process has built."""
        named: dict[str, keras.Variable] = {}
        numbers = itertools.count()
        for index, layer in enumerate(self.backbone.layers):
            # A layer with layers inside, such as attention, has several kernels.
            has_several = len({variable.name for variable in layer.weights}) < len(layer.weights)
            for variable in layer.weights:
                inside = variable.path if has_several else variable.name
                # Keras numbers those of a process that have no name, such as the scales of ConvNeXt.
                if re.fullmatch(r"variable(_\d+)?", inside):
                    inside = f"variable_{number}" if (number := next(numbers)) else "variable"
                if index < first:
                    continue
                name = f"backbone/{index:03d}_{type(layer).__name__}/{inside}"
                if name in named:
                    raise ValueError(f"{name} names two weights of {self.backbone.name}")
                named[name] = variable
        if with_head:
            named |= {f"head/{variable.name}": variable for variable in self.head.weights}
        return named

    def digest(self, *, with_head: bool = True) -> str:
        """SHA-256 in hexadecimal over name, type, shape and bytes of every weight, by name.

        For the network of a file also over what its layers do: nothing else says which network it is.
        """
        hasher = hashlib.sha256()
        if self._request.backbone == CUSTOM:
            hasher.update(networks.description(self.backbone).encode())
        for name, variable in sorted(self.named_variables(with_head=with_head).items()):
            array = np.asarray(variable.value.numpy(), order="C")
            hasher.update(f"{name} {array.dtype} {array.shape}\n".encode())
            hasher.update(array.tobytes())
        return hasher.hexdigest()

    def num_trainable(self, unfreeze: str) -> dict[str, int]:
        """The parameters that train in a phase, by part of the model."""
        parts = {"backbone": self.backbone.layers[self.first_trained(unfreeze) :], "head": [self.head]}
        return {
            part: sum(math.prod(weight.shape) for layer in layers for weight in layer.trainable_weights)
            for part, layers in parts.items()
        }

    def structure(self) -> list[dict[str, Any]]:
        """Each layer from pixels to logits: its part, name, kind, output shape without the batch, and parameters."""
        depth = self.backbone.output_shape[-1]
        return [
            layer_row("input", "rescaling", "Rescaling", self.backbone.input_shape[1:]),
            *([layer_row("input", "bgr", "Flip", self.backbone.input_shape[1:])] if self._is_bgr else []),
            *(
                layer_row("backbone", layer.name, type(layer).__name__, layer.output.shape[1:], layer)
                for layer in self.backbone.layers
                if not isinstance(layer, keras.layers.InputLayer)
            ),
            layer_row("head", "pooling", "GlobalAveragePooling2D", (depth,)),
            layer_row("head", "dropout", "Dropout", (depth,)),
            layer_row("head", self.head.name, type(self.head).__name__, (self.num_logits,), self.head),
        ]

    def export(self) -> keras.Model:
        """A plain Keras model of the same weights: pixels 0..255 [b, s, s, 3] -> logits, in float32.

        Its layers are Keras's own, so it loads without this package.
        """
        name, size = self._request.backbone, self.image_size
        inputs = keras.Input((size, size, 3), name="image")
        with networks.building_with("float32"):
            backbone = networks.copied(self.backbone, size) if name == CUSTOM else networks.construct(name, size)
            scale, offset = list(self._rescaling.scale), list(self._rescaling.offset)
            x = keras.layers.Rescaling(scale, offset, name="rescaling")(inputs)
            x = backbone(keras.ops.flip(x, axis=-1) if self._is_bgr else x, training=False)
            x = keras.layers.GlobalAveragePooling2D(name="pooling")(x)
            x = keras.layers.Dropout(self._request.dropout, name="dropout")(x)
            head = keras.layers.Dense(self.num_logits, name="head")
            model = keras.Model(inputs, head(x), name="thaw_classifier")
        if [type(layer) for layer in backbone.layers] != [type(layer) for layer in self.backbone.layers]:
            raise ValueError(f"Keras builds another {name} without its ImageNet weights than with them")
        backbone.set_weights(self.backbone.get_weights())
        head.set_weights(self.head.get_weights())
        return model


def _of_each_class(head: Sequence[np.ndarray]) -> np.ndarray:
    """Kernel [d, 1 or k] and bias as one array, float32 [d + 1, k]; one logit stands for (0, logit)."""
    kernel, bias = head
    return of_classes(np.concatenate([kernel, bias[np.newaxis]]))


@tf.custom_gradient
def _mean_of_pixels(maps: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """[b, h, w, c] -> [b, c].

    With TensorFlow's own gradient of a mean (2.21) the backward pass begins with a shape that comes from the GPU.
    """

    def gradient(of_means: tf.Tensor) -> tf.Tensor:
        shape = tf.shape(maps)
        with tf.device(HOST):
            num_pixels = tf.cast(tf.reduce_prod(tf.gather(shape, [1, 2])), of_means.dtype)
        return tf.broadcast_to((of_means / num_pixels)[:, tf.newaxis, tf.newaxis], shape)

    return tf.reduce_mean(maps, axis=[1, 2]), gradient


def layer_row(
    part: str, name: str, kind: str, output_shape: Sequence[int], layer: keras.layers.Layer | None = None
) -> dict[str, Any]:
    """A row of the structure; BatchNorm's statistics count as parameters that never train."""
    return {
        "part": part,
        "name": name,
        "kind": kind,
        "output_shape": list(output_shape),
        "num_parameters": layer.count_params() if layer else 0,
        "num_trainable": sum(math.prod(weight.shape) for weight in layer.trainable_weights) if layer else 0,
    }


def build_classifier(request: ModelRequest) -> Classifier:
    """A classifier with the backbone's pre-trained weights and a new head. Raises WeightsUnusable."""
    # Here and not once a process: preparing data draws from the same global generator that new weights come from.
    keras.utils.set_random_seed(request.seed)
    with networks.building_with(request.policy):
        backbone = networks.construct(request.backbone, request.image_size, request.weights)
    head = keras.layers.Dense(
        1 if request.num_classes == 2 else request.num_classes,
        dtype="float32",
        name="head",
        kernel_initializer=keras.initializers.GlorotUniform(seed=request.seed),
    )
    head.build((None, backbone.output_shape[-1]))
    return Classifier(request, backbone=backbone, head=head)
