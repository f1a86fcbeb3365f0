"""The estimate of memory and disk: its table is that of Keras, and it is near what runs take."""

import math
from typing import Any

import pytest

from job.backbones import BACKBONES
from job.need import SIZES, Need, estimate

LARGE = ("Xception", "DenseNet121", "EfficientNetV2B0", "ConvNeXtTiny")


def need(**values: Any) -> Need:
    recipe = {
        "backbone": "Xception", "num_examples": 1000, "image_size": 150, "batch_size": 32, "cache": "memory",
        "value_bytes": 4, "fine_tunes": True, "keep_checkpoints": 2,
    }  # fmt: skip
    return estimate(**(recipe | values))  # type: ignore[arg-type]


def test_every_backbone_has_a_size() -> None:
    """And nothing else has one."""
    assert SIZES.keys() == BACKBONES.keys()


@pytest.mark.parametrize("name", ["Tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_the_sizes_are_those_of_keras(name: str) -> None:
    """Parameters, and at 224 pixels the values of all layers a pixel, without the BatchNorms that are folded."""
    from keras.layers import BatchNormalization

    from job import model
    from job.folding import folded

    network = model._construct(name, 224)
    short = folded(network, frozen=False)
    not_folded = {layer.name for layer in short.layers if isinstance(layer, BatchNormalization)}
    kept = [layer for layer in network.layers if not isinstance(layer, BatchNormalization) or layer.name in not_folded]
    values = sum(math.prod(size for size in layer.output.shape if size) for layer in kept)
    assert network.count_params() == SIZES[name].num_parameters
    assert values / 224**2 == pytest.approx(SIZES[name].values_per_pixel, abs=0.06)


def test_images_count_where_they_are_kept() -> None:
    """In memory, on disk, or nowhere."""
    images = 1000 * 150 * 150 * 3
    assert need().images == images
    assert need().memory - need(cache="disk").memory == images
    assert need(cache="disk").scratch - need().scratch == images
    assert need(cache="none").memory == need(cache="disk").memory


def test_without_fine_tuning_no_state_of_the_backbone_is_kept() -> None:
    """Neither moments nor activations, and checkpoints of kilobytes."""
    head = need(fine_tunes=False)
    assert (head.checkpoint, head.activations) == (0, 0)
    assert head.storage == head.model


def test_the_checkpoint_of_xception_is_as_large_as_measured() -> None:
    """249,979,208 bytes: a run of Xception in fine-tuning wrote it."""
    assert need().checkpoint == pytest.approx(249_979_208, rel=0.01)


@pytest.mark.parametrize(("num_examples", "value_bytes", "measured"), [(256, 4, 2.86e9), (256, 2, 2.25e9)])
def test_the_memory_of_xception_is_near_the_peaks_that_were_measured(
    num_examples: int, value_bytes: int, measured: float
) -> None:
    """At 150 pixels and batches of 32, in float32 and in bfloat16: within a tenth."""
    assert need(num_examples=num_examples, value_bytes=value_bytes).memory == pytest.approx(measured, rel=0.1)
