"""The classifier: a pre-trained backbone whose statistics never move, and a new head.

Our own train step calls the parts directly, so `training=False` reaches every BatchNorm of the backbone in both
phases, and most are folded into the convolution before them. (A `fit` of a functional Keras 3 model overrides that
argument of an inner call, and the statistics move: tests/test_model.py shows it.) This room builds, loads and exports;
it does not train.
"""

import contextlib
import functools
import hashlib
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from job.errors import InputError, WeightsUnusable
from job.model.augmentation import Flip, augment
from job.model.backbones import BACKBONES, TINY, Rescaling
from job.model.folding import folded


class Classifier:
    """Backbone, pooling, dropout and head, as functions of explicit seeds.

    `num_logits` is 1 for two classes, else the number of classes.
    """

    def __init__(
        self,
        *,
        backbone: keras.Model,
        head: keras.layers.Dense,
        rescaling: Rescaling,
        dropout: float,
        flip: Flip,
        rotation: float,
    ) -> None:
        self.backbone = backbone
        self.head = head
        self._rescaling = rescaling
        self._dropout = dropout
        self._flip = flip
        self._rotation = rotation

    @functools.cached_property
    def _folded(self) -> keras.Model:
        return folded(self.backbone, frozen=False)

    @property
    def num_logits(self) -> int:
        return int(self.head.units)

    @property
    def image_size(self) -> int:
        return int(self.backbone.input_shape[1])

    def augmented(self, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """uint8 [b, s, s, 3] -> float32, flipped and rotated by a seed, int32 [2]."""
        return augment(tf.cast(images, tf.float32), flip=self._flip, rotation=self._rotation, seed=seed)

    def features(self, images: tf.Tensor) -> tf.Tensor:
        """Pixels 0..255 [b, s, s, 3] -> pooled features float32 [b, d]; BatchNorm uses its fixed statistics."""
        return self._pooled(self._folded, images)

    def frozen_features(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """`features` of the backbone as it is now: faster, blind to later changes, and without gradients."""
        return functools.partial(self._pooled, folded(self.backbone, frozen=True))

    def _pooled(self, network: keras.Model, images: tf.Tensor) -> tf.Tensor:
        rescaled = tf.cast(images, tf.float32) * tf.constant(self._rescaling.scale) + tf.constant(
            self._rescaling.offset
        )
        maps = network(rescaled, training=False)
        return tf.reduce_mean(tf.cast(maps, tf.float32), axis=[1, 2])

    def logits(self, features: tf.Tensor, *, dropout_seed: tf.Tensor | None = None) -> tf.Tensor:
        """Features [b, d] -> logits float32 [b, num_logits]; with a seed, int32 [2], features are dropped."""
        if dropout_seed is not None and self._dropout > 0:
            features = tf.nn.experimental.stateless_dropout(
                features, rate=self._dropout, seed=dropout_seed, rng_alg="philox"
            )
        return self.head(features)

    def trainable_variables(self, parts: Sequence[str]) -> list[keras.Variable]:
        """The variables that train when `parts` ("backbone", "head") do; never a BatchNorm statistic."""
        layers = {"backbone": self.backbone, "head": self.head}
        return [variable for part in parts for variable in layers[part].trainable_weights]

    def named_variables(self, parts: Sequence[str]) -> dict[str, keras.Variable]:
        """Every weight of `parts` by a name that does not depend on what else the process has built."""
        named: dict[str, keras.Variable] = {}
        if "backbone" in parts:
            for index, layer in enumerate(self.backbone.layers):
                for variable in layer.weights:
                    name = f"backbone/{index:03d}_{type(layer).__name__}/{variable.name}"
                    if name in named:
                        raise ValueError(f"{name} names two weights of {self.backbone.name}")
                    named[name] = variable
        if "head" in parts:
            named |= {f"head/{variable.name}": variable for variable in self.head.weights}
        return named

    def digest(self, parts: Sequence[str] = ("backbone", "head")) -> str:
        """SHA-256 in hexadecimal over name, type, shape and bytes of every weight, by name."""
        hasher = hashlib.sha256()
        for name, variable in sorted(self.named_variables(parts).items()):
            array = np.asarray(variable.numpy(), order="C")
            hasher.update(f"{name} {array.dtype} {array.shape}\n".encode())
            hasher.update(array.tobytes())
        return hasher.hexdigest()

    def structure(self) -> list[dict[str, Any]]:
        """Each layer from pixels to logits: its part, name, kind, output shape without the batch, and parameters."""
        depth = self.backbone.output_shape[-1]
        return [
            _layer("input", "rescaling", "Rescaling", self.backbone.input_shape[1:]),
            *(
                _layer("backbone", layer.name, type(layer).__name__, layer.output.shape[1:], layer)
                for layer in self.backbone.layers
                if not isinstance(layer, keras.layers.InputLayer)
            ),
            _layer("head", "pooling", "GlobalAveragePooling2D", (depth,)),
            _layer("head", "dropout", "Dropout", (depth,)),
            _layer("head", self.head.name, type(self.head).__name__, (self.num_logits,), self.head),
        ]

    def export(self, backbone_name: str) -> keras.Model:
        """A plain Keras model of the same weights: pixels 0..255 [b, s, s, 3] -> logits, in float32.

        Its layers are Keras's own, so it loads without this package.
        """
        inputs = keras.Input((self.image_size, self.image_size, 3), name="image")
        scale, offset = list(self._rescaling.scale), list(self._rescaling.offset)
        with _policy("float32"):
            backbone = _construct(backbone_name, self.image_size)
            x = keras.layers.Rescaling(scale, offset, name="rescaling")(inputs)
            x = backbone(x, training=False)
            x = keras.layers.GlobalAveragePooling2D(name="pooling")(x)
            x = keras.layers.Dropout(self._dropout, name="dropout")(x)
            head = keras.layers.Dense(self.num_logits, name="head")
            model = keras.Model(inputs, head(x), name="thaw_classifier")
        if [type(layer) for layer in backbone.layers] != [type(layer) for layer in self.backbone.layers]:
            raise ValueError(f"Keras builds another {backbone_name} without its ImageNet weights than with them")
        backbone.set_weights(self.backbone.get_weights())
        head.set_weights(self.head.get_weights())
        return model


def _layer(
    part: str, name: str, kind: str, output_shape: Sequence[int], layer: keras.layers.Layer | None = None
) -> dict[str, Any]:
    """A row of the structure; BatchNorm's statistics count as parameters that never train."""
    trainable = sum(math.prod(weight.shape) for weight in layer.trainable_weights) if layer else 0
    return {
        "part": part,
        "name": name,
        "kind": kind,
        "output_shape": list(output_shape),
        "num_parameters": layer.count_params() if layer else 0,
        "num_trainable": trainable,
    }


def load_exported(path: Path) -> keras.Model:
    """The model of a verified file that `Classifier.export` made. Raises InputError when it cannot be loaded."""
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"the model cannot be loaded: {reason}", hint=f"load it with Keras {keras.__version__}"
        ) from error


def build_classifier(
    *,
    backbone: str,
    weights: str,
    image_size: int,
    num_classes: int,
    dropout: float,
    flip: Flip,
    rotation: float,
    policy: str,
    seed: int,
) -> Classifier:
    """A classifier with the backbone's pre-trained weights and a new head.

    `weights` is `imagenet`, `none`, or a local path; `policy` a Keras dtype policy for the backbone. Raises
    WeightsUnusable.
    """
    num_logits = 1 if num_classes == 2 else num_classes
    # Here and not once a process: preparing data draws from the same global generator that new weights come from.
    keras.utils.set_random_seed(seed)
    with _policy(policy):
        network = _construct(backbone, image_size, imagenet=weights == "imagenet")
    if weights not in ("imagenet", "none"):
        _load_weights(network, Path(weights).expanduser(), backbone)
    head = keras.layers.Dense(
        num_logits, dtype="float32", name="head", kernel_initializer=keras.initializers.GlorotUniform(seed=seed)
    )
    head.build((None, network.output_shape[-1]))
    return Classifier(
        backbone=network,
        head=head,
        rescaling=BACKBONES[backbone].rescaling,
        dropout=dropout,
        flip=flip,
        rotation=rotation,
    )


def save_imagenet_weights(backbone: str, image_size: int, path: Path) -> None:
    """Write the ImageNet weights of a backbone without its top into a file that `build_classifier` reads.

    Raises WeightsUnusable when they cannot be downloaded.
    """
    _construct(backbone, image_size, imagenet=True).save_weights(path)


@contextlib.contextmanager
def _policy(name: str) -> Iterator[None]:
    """Keras's applications take no dtype: the policy is global while one is built."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _construct(name: str, image_size: int, *, imagenet: bool = False) -> keras.Model:
    if name == TINY:
        return tiny_backbone(image_size)
    application = getattr(keras.applications, name)
    try:
        return application(
            include_top=False, weights="imagenet" if imagenet else None, input_shape=(image_size, image_size, 3)
        )
    except Exception as error:
        if not imagenet:
            raise
        # `keras.utils.get_file` raises a bare Exception when the download fails.
        raise WeightsUnusable(
            f"the ImageNet weights of {name} are not in Keras's cache and cannot be downloaded: {error}",
            hint="point THAW_WEIGHTS at a file of them, or start where there is a network, or set THAW_WEIGHTS=none",
        ) from error


def tiny_backbone(image_size: int) -> keras.Model:
    """A small network of five convolutions, for the demo and the tests; it has no pre-trained weights.

    Its BatchNorm layers keep the statistics 0 and 1, as every backbone's do here, so the scale of new weights must be
    right from the start: He's initialization.
    """
    inputs = keras.Input((image_size, image_size, 3))
    x = inputs
    for index, filters in enumerate((16, 32, 64, 96, 128), start=1):
        x = keras.layers.Conv2D(
            filters, 3, strides=2, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"conv{index}"
        )(x)
        x = keras.layers.BatchNormalization(name=f"bn{index}")(x)
        x = keras.layers.Activation("swish", name=f"swish{index}")(x)
    return keras.Model(inputs, x, name="tiny")


def _load_weights(network: keras.Model, path: Path, name: str) -> None:
    """Load a file of weights of this very network, or of a model that contains it."""
    hint = f"THAW_WEIGHTS takes a file of {name} without its top (.h5, .weights.h5, .keras), imagenet, or none"
    if not path.is_file():
        raise WeightsUnusable(f"THAW_WEIGHTS={str(path)!r}: there is no such file", hint=hint)
    try:
        if path.suffix == ".keras":
            _copy_weights(network, keras.saving.load_model(path, compile=False, safe_mode=True), path)
        else:
            network.load_weights(path)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsUnusable(f"THAW_WEIGHTS={str(path)!r} are not weights of {name}: {reason}", hint=hint) from error


def _copy_weights(network: keras.Model, model: Any, path: Path) -> None:
    wanted = [tuple(weight.shape) for weight in network.weights]
    for candidate in (model, *getattr(model, "layers", ())):
        if [tuple(weight.shape) for weight in candidate.weights] == wanted:
            network.set_weights(candidate.get_weights())
            return
    raise ValueError(f"no part of {path.name} has the {len(wanted)} weights of the network")
