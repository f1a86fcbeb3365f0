"""Networks as Keras has them: a backbone built by its name, and weights or models that are read from files.

It changes no network, and trains none.
"""

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from job.errors import InputError, ThawError, WeightsUnusable
from job.model.backbones import TINY


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Build layers with a Keras dtype policy. Keras's applications take none: it is global meanwhile."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def construct(name: str, image_size: int, *, imagenet: bool = False) -> keras.Model:
    """A backbone without its top, float [b, size, size, 3] -> maps, with ImageNet weights or new ones.

    Raises WeightsUnusable when the weights are not here and cannot be downloaded.
    """
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
    """Write the ImageNet weights of a backbone into a file that `load_weights` reads. Raises as `construct` does."""
    construct(backbone, image_size, imagenet=True).save_weights(path)


def load_weights(network: keras.Model, path: Path, name: str) -> None:
    """Load a file of weights of the backbone `name`, or of a model that contains it. Raises WeightsUnusable."""
    hint = f"THAW_WEIGHTS takes a file of {name} without its top (.h5, .weights.h5, .keras), imagenet, or none"
    if not path.is_file():
        raise WeightsUnusable(f"THAW_WEIGHTS={str(path)!r}: there is no such file", hint=hint)
    with _explained(WeightsUnusable, f"THAW_WEIGHTS={str(path)!r} are not weights of {name}", hint):
        if path.suffix == ".keras":
            _copy_weights(network, keras.saving.load_model(path, compile=False, safe_mode=True), path)
        else:
            network.load_weights(path)


def _copy_weights(network: keras.Model, model: Any, path: Path) -> None:
    wanted = [tuple(weight.shape) for weight in network.weights]
    for candidate in (model, *getattr(model, "layers", ())):
        if [tuple(weight.shape) for weight in candidate.weights] == wanted:
            network.set_weights(candidate.get_weights())
            return
    raise ValueError(f"no part of {path.name} has the {len(wanted)} weights of the network")


def load_exported(path: Path) -> keras.Model:
    """The model of a verified file that `Classifier.export` made. Raises InputError when it cannot be loaded."""
    with _explained(InputError, "the model cannot be loaded", f"load it with Keras {keras.__version__}"):
        return keras.saving.load_model(path, compile=False, safe_mode=True)


@contextlib.contextmanager
def _explained(kind: type[ThawError], problem: str, hint: str) -> Iterator[None]:
    """Turn what Keras raises for a file that it cannot load into an error of ours."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise kind(f"{problem}: {reason}", hint=hint) from error
