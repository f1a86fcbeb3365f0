"""Networks as Keras has them: a backbone built by its name, and weights or models that are read from files.

It changes no network, and trains none.
"""

import contextlib
import json
import re
import socket
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from job.errors import InputError, ThawError, WeightsUnusable, proxy_hint
from job.model.backbones import BACKBONES, CUSTOM, IMAGENET_MEAN, IMAGENET_STD, TINY

DOWNLOAD_TIMEOUT_SECONDS = 30.0
"""Without a byte; Keras would wait without end."""


@contextlib.contextmanager
def building_with(policy: str) -> Iterator[None]:
    """Build layers with a Keras dtype policy. Keras's applications take none: it is global meanwhile."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def construct(name: str, image_size: int, weights: str | keras.Model = "none") -> keras.Model:
    """A backbone without its top, float [b, size, size, 3] -> maps.

    `weights` is `imagenet`, `none` for new ones, the path of a file, which for `Custom` is the network itself, or a
    model that `Classifier.export` made. Raises WeightsUnusable when the weights are not here, cannot be downloaded, or
    are not of this network.
    """
    if isinstance(weights, keras.Model):
        return _of_exported(name, image_size, weights)
    if name == CUSTOM:
        return _custom(_checked(Path(weights).expanduser(), name), image_size)
    whole = (
        tiny_backbone(image_size) if name == TINY else _application(name, image_size, imagenet=weights == "imagenet")
    )
    first_layer = BACKBONES[name].first_layer
    network = keras.Model(whole.get_layer(first_layer).input, whole.output, name=whole.name) if first_layer else whole
    if weights not in ("imagenet", "none"):
        _load_weights(whole, network, _checked(Path(weights).expanduser(), name), name)
    return network


def _of_exported(name: str, image_size: int, model: keras.Model) -> keras.Model:
    problem = f"the model of that run has no {name} for THAW_IMAGE_SIZE={image_size}"
    with _explained(WeightsUnusable, problem, "begin with another run, or with a file of weights"):
        parts = [layer for layer in model.layers if isinstance(layer, keras.Model)]
        if len(parts) != 1:
            raise ValueError(f"expected one network in it, found {len(parts)}")
        if name == CUSTOM:
            _check_maps(parts[0])
            return copied(parts[0], image_size)
        network = construct(name, image_size)
        if not _copy_weights(network, parts[0]):
            raise ValueError(f"its network has not the {len(network.weights)} weights of {name}")
        return network


def head_of_exported(model: keras.Model, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Kernel [depth, k] and bias [k] of the head of a model that `Classifier.export` made. Raises WeightsUnusable."""
    head = [layer.get_weights() for layer in model.layers if layer.name == "head"]
    shapes = [[weight.shape for weight in weights] for weights in head]
    num_logits = model.output_shape[-1]
    if shapes != [expected := [(depth, num_logits), (num_logits,)]]:
        raise WeightsUnusable(
            f"the head of that run's model has weights of the shapes {shapes}, expected {[expected]}",
            hint="begin with another run, or with a file of weights",
        )
    kernel, bias = head[0]
    return kernel, bias


def _application(name: str, image_size: int, *, imagenet: bool) -> keras.Model:
    """A backbone exactly as `keras.applications` has it. Raises WeightsUnusable."""
    # Keras announces downloads on standard output, which belongs to the log.
    keras.config.disable_interactive_logging()
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS if imagenet else timeout)
    try:
        with warnings.catch_warnings():
            # MobileNet has weights for several sizes of images, and warns where it takes those for 224 pixels.
            warnings.filterwarnings("ignore", message="`input_shape` is undefined or non-square")
            return getattr(keras.applications, name)(
                include_top=False, weights="imagenet" if imagenet else None, input_shape=(image_size, image_size, 3)
            )
    except Exception as error:
        if not imagenet:
            raise
        # `keras.utils.get_file` raises a bare Exception when the download fails, with the status of HTTP or None.
        reason = str(error).replace(": None -- ", ": ")
        raise WeightsUnusable(
            f"the ImageNet weights of {name} are not in Keras's cache and cannot be downloaded: {reason}",
            hint="point THAW_WEIGHTS at a file of them (`thaw mirror` makes one), or start where there is a network"
            f"{proxy_hint()}",
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def tiny_backbone(image_size: int) -> keras.Model:
    """A small network of five convolutions, for the demo and the tests; it has no pre-trained weights.

    Its BatchNorm layers keep the statistics 0 and 1, as those of every backbone are kept, so the scale of new weights
    must be right from the start: He's initialization.
    """
    inputs = x = keras.Input((image_size, image_size, 3))
    for index, filters in enumerate((16, 32, 64, 96, 128), start=1):
        x = keras.layers.Conv2D(
            filters, 3, strides=2, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"conv{index}"
        )(x)
        x = keras.layers.BatchNormalization(name=f"bn{index}")(x)
        x = keras.layers.Activation("swish", name=f"swish{index}")(x)
    return keras.Model(inputs, x, name="tiny")


def save_imagenet_weights(backbone: str, image_size: int, path: Path) -> None:
    """Write the ImageNet weights of a backbone, as Keras has them, into a file that `construct` reads.

    Raises WeightsUnusable when they cannot be had.
    """
    _application(backbone, image_size, imagenet=True).save_weights(path)


def copied(network: keras.Model, image_size: int) -> keras.Model:
    """The same layers with the same weights, for square images of this size, of the dtype policy that is set."""

    def copy(layer: Any) -> Any:
        # An operation, such as a sum, has neither weights nor a type.
        if not isinstance(layer, keras.layers.Layer):
            return layer
        # What trains is decided by the phases.
        return type(layer).from_config(layer.get_config() | {"dtype": keras.config.dtype_policy(), "trainable": True})

    inputs = keras.Input((image_size, image_size, 3), name=network.layers[0].name)
    copy_of_network = keras.models.clone_model(network, input_tensors=inputs, clone_function=copy)
    copy_of_network.set_weights(network.get_weights())
    for layer in copy_of_network.layers:
        # Keras 3.15: `set_weights` does not reach the statistics with which Normalization computes.
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
    return copy_of_network


def description(network: keras.Model) -> str:
    """The layers of a network, what each does, and what it reads, as JSON; the same at every precision."""
    config = json.loads(
        network.to_json(), object_hook=lambda entry: {key: entry[key] for key in entry if key != "dtype"}
    )
    return json.dumps(config["config"]["layers"], sort_keys=True)


def _hint(name: str) -> str:
    kinds = (
        "for Custom a .keras file of a network of Keras's own layers"
        if name == CUSTOM
        else f"a file of {name} without its top (.h5, .weights.h5, .keras), imagenet, none, or a finished run's place"
    )
    return f"THAW_WEIGHTS takes {kinds}"


def _checked(path: Path, name: str) -> Path:
    if not path.is_file():
        raise WeightsUnusable(f"THAW_WEIGHTS={str(path)!r}: there is no such file", hint=_hint(name))
    return path


def _custom(path: Path, image_size: int) -> keras.Model:
    """A network that somebody else built, for images of this size. Raises WeightsUnusable."""
    problem = f"THAW_WEIGHTS={str(path)!r} is no network for THAW_BACKBONE={CUSTOM}"
    with _explained(WeightsUnusable, problem, _hint(CUSTOM)):
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        if not getattr(model, "inputs", None):
            raise ValueError("it is neither a functional nor a sequential model of Keras")
        if any(isinstance(layer, keras.Model) for layer in model.layers):
            raise ValueError("it has a model inside: save that model, or one of all its layers")
        shape = _check_maps(model)
        wanted = (image_size, image_size, 3)
        if any(size not in (None, there) for size, there in zip(shape[1:], wanted, strict=True)):
            raise ValueError(f"it takes images of {shape[1:]}, which THAW_IMAGE_SIZE={image_size} does not give")
        network = keras.Model(model.inputs[0], model.outputs[0])
        if shared := [layer["name"] for layer in network.get_config()["layers"] if len(layer["inbound_nodes"]) > 1]:
            raise ValueError(f"its layer {shared[0]} is called more than once")
        return copied(network, image_size)


def _check_maps(model: keras.Model) -> tuple[int | None, ...]:
    """The shape of the images of a network. Raises ValueError unless they become maps."""
    shapes = [tuple(tensor.shape) for tensor in (*model.inputs, *model.outputs)]
    if [len(shape) for shape in shapes] != [4, 4]:
        raise ValueError(f"expected images [batch, size, size, 3] in, maps of four axes out, not {shapes}")
    return shapes[0]


def _load_weights(whole: keras.Model, network: keras.Model, path: Path, name: str) -> None:
    """Load a file of weights of the backbone `name`, or of a model that contains it. Raises WeightsUnusable.

    `whole` is the backbone as Keras has it, and `network`, which may be the same, has all of its layers that train.
    """
    with _explained(WeightsUnusable, f"THAW_WEIGHTS={str(path)!r} are not weights of {name}", _hint(name)):
        if path.suffix != ".keras":
            whole.load_weights(path)
        else:
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
            if _copy_weights(network, model):
                return
            if not _copy_weights(whole, model):
                raise ValueError(f"no part of {path.name} has the {len(network.weights)} weights of the network")
        if network is not whole:
            _check_normalization(whole)


def _copy_weights(network: keras.Model, model: Any) -> bool:
    """Whether `model` is this network or has it as a part, of which the weights are now those of `network`."""
    wanted = [tuple(weight.shape) for weight in network.weights]
    for candidate in (model, *getattr(model, "layers", ())):
        if [tuple(weight.shape) for weight in candidate.weights] == wanted:
            network.set_weights(candidate.get_weights())
            return True
    return False


def _check_normalization(whole: keras.Model) -> None:
    """Raise ValueError unless the first EfficientNet's weights have ImageNet's statistics.

    The variance that was published is the standard deviation (tensorflow/tensorflow issue 49930). Keras 3.15 makes up
    for it by one more Rescaling, but only where it loads the ImageNet weights itself. Here `Backbone.rescaling` is what
    these layers should compute, so the network does without them.
    """
    (normalization,) = (layer for layer in whole.layers if isinstance(layer, keras.layers.Normalization))
    mean, variance, _ = normalization.get_weights()
    if not np.allclose([mean, variance], [IMAGENET_MEAN, IMAGENET_STD], atol=1e-3):
        raise ValueError(f"its images were normalized with mean {mean} and variance {variance}, not as ImageNet's were")


def load_exported(path: Path) -> keras.Model:
    """The model of a verified file that `Classifier.export` made. Raises InputError when it cannot be loaded, and when
    it does not give logits of square images.
    """
    with _explained(InputError, "the model cannot be loaded", f"load it with Keras {keras.__version__}"):
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
        tensors = (*(getattr(model, "inputs", None) or ()), *(getattr(model, "outputs", None) or ()))
        match shapes := [tuple(tensor.shape) for tensor in tensors]:
            case [(_, int(height), int(width), 3), (_, int())] if height == width:
                return model
        raise ValueError(f"expected square images in and logits out, not {shapes}")


@contextlib.contextmanager
def _explained(kind: type[ThawError], problem: str, hint: str) -> Iterator[None]:
    """Turn what Keras raises for a file that it cannot load into an error of ours."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, zipfile.BadZipFile) as error:
        # Of a model that cannot be built, Keras (3.15) has the reason at the end,
        text = str(error).rpartition("Exception encountered: ")[2].partition(" Full object config")[0].strip()
        # and of a layer that cannot be called in bold.
        if found := re.search(r"\x1b\[1m(.+?)\x1b\[0m", text):
            text = found[1]
        reason = (text or type(error).__name__).splitlines()[0]
        raise kind(f"{problem}: {reason}", hint=hint) from error
