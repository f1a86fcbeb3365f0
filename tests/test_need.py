"""The estimate of memory and disk: its table is that of Keras, and it is near what runs take."""

import json
import math
import re
from typing import Any

import pytest

from job.model.backbones import BACKBONES, CUSTOM
from job.settings.fields import Precision
from job.settings.resources import Need, estimate, evaluation_batch_size, with_smaller_parts
from job.settings.settings import Settings

LARGE = (
    "Xception", "DenseNet121", "EfficientNetV2B0", "ConvNeXtTiny", "VGG16", "VGG19", "ResNet50", "ResNet101",
    "ResNet152", *(f"EfficientNetB{number}" for number in range(8)),
)  # fmt: skip


def need(*, num_examples: int = 1000, precision: Precision = "float32", **values: Any) -> Need:
    """Of the recipe, but for `values`."""
    return estimate(small_settings(values), num_examples=num_examples, precision=precision)


def small_settings(values: dict[str, Any]) -> Settings:
    """Of Xception on images of 150 pixels, but for `values`."""
    return Settings(storage_uri="/runs", **values)


@pytest.mark.parametrize("name", ["Tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_the_sizes_are_those_of_keras(name: str) -> None:
    """Parameters, and at 224 pixels the values of all layers a pixel, without the BatchNorms that are folded."""
    from keras.layers import BatchNormalization

    from job.model import networks
    from job.model.folding import folded

    network = networks.construct(name, 224)
    short = folded(network)
    not_folded = {layer.name for layer in short.layers if isinstance(layer, BatchNormalization)}
    kept = [layer for layer in network.layers if not isinstance(layer, BatchNormalization) or layer.name in not_folded]
    assert network.count_params() == BACKBONES[name].num_parameters
    assert sum(map(num_values, kept)) / 224**2 == pytest.approx(BACKBONES[name].values_per_pixel, abs=0.06)
    assert values_at_once(network) / 224**2 == pytest.approx(BACKBONES[name].peak_per_pixel, abs=0.06)


def num_values(layer: Any) -> int:
    """Of its output, for one image."""
    return math.prod(size for size in layer.output.shape if size)


def values_at_once(network: Any) -> int:
    """The most values that are there while layer follows layer, each output dropped after its last use."""
    position = {layer.name: index for index, layer in enumerate(network.layers)}
    last_use = dict.fromkeys(position, len(position))
    for layer in (layer for layer in network.get_config()["layers"] if layer["name"] in position):
        inputs = re.findall(r'"keras_history": \["(.+?)"', json.dumps(layer["inbound_nodes"]))
        last_use |= dict.fromkeys(inputs, position[layer["name"]])
    return max(
        sum(num_values(other) for other in network.layers[: index + 1] if last_use[other.name] >= index)
        for index in range(len(position))
    )


def test_images_count_where_they_are_kept() -> None:
    """In memory, on disk, or nowhere."""
    images = 1000 * 150 * 150 * 3
    assert need().images == images
    assert need().memory - need(cache="disk").memory == images
    assert need(cache="disk").scratch - need().scratch == images
    assert need(cache="none").memory == need(cache="disk").memory


@pytest.mark.parametrize(("num_workers", "num_rows"), [(2, 16), (5, 7), (32, 1)])
def test_a_worker_needs_memory_for_its_rows(num_workers: int, num_rows: int) -> None:
    """Of the 32 of a batch, and for as large a part of the images; what is stored does not change."""
    one, several = need(num_examples=3200), need(num_examples=3200, workers=num_workers)
    assert several.images == 100 * num_rows * 150**2 * 3
    assert several.activations == pytest.approx(one.activations * num_rows / 32, abs=1)
    assert one.memory - several.memory > one.images - several.images
    disk = need(num_examples=3200, workers=num_workers, cache="disk")
    assert disk.scratch - several.scratch == several.images
    assert (several.storage, several.checkpoint, several.evaluated) == (one.storage, one.checkpoint, one.evaluated)


def test_to_know_what_is_left_out_each_worker_keeps_all_images() -> None:
    """See THAW_ON_UNREADABLE=skip."""
    assert need(workers=4, on_unreadable="skip").images == need().images == 4 * need(workers=4).images


def test_without_fine_tuning_no_state_of_the_backbone_is_kept() -> None:
    """No moments, the values of a few layers at a time, and checkpoints of kilobytes."""
    head = need(fine_tune_epochs=0)
    assert head.checkpoint == head.scratch == 0
    assert head.activations == head.evaluated == int(32 * 150**2 * 75.8 * 4)
    assert head.storage == head.model


def test_averages_and_partners_need_memory_in_training() -> None:
    """One array of the backbone more, also in each checkpoint; the partners of a batch, which are in none."""
    plain, averaged = need(), need(ema_decay=0.99)
    assert averaged.checkpoint - plain.checkpoint == plain.model
    assert averaged.memory - plain.memory == 3 * plain.model
    assert need(fine_tune_epochs=0, ema_decay=0.99).checkpoint == 0
    for mixing in ({"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}):
        assert need(**mixing).memory - plain.memory == 32 * 150**2 * 3 * 4
        assert need(**mixing).checkpoint == plain.checkpoint


def test_a_batch_in_parts_needs_the_memory_of_one() -> None:
    """And another gradient. Parts of all rows change nothing."""
    whole, parts = need(batch_size=512), need(batch_size=512, microbatch_size=32)
    assert (parts.at_once, parts.activations, parts.evaluated) == (32, need().activations, need().evaluated)
    assert parts.device == need().device + parts.model
    assert (parts.storage, parts.checkpoint) == (whole.storage, whole.checkpoint)
    assert need(microbatch_size=32) == need(microbatch_size=64) == need()
    one_part = need(batch_size=512, microbatch_size=32, workers=16)
    assert one_part.device == need(batch_size=512, workers=16).device


def test_a_run_that_lacks_memory_is_told_of_smaller_parts() -> None:
    """Half of what is computed at a time, as long as that is an image."""
    assert with_smaller_parts(need().at_once).startswith("set THAW_MICROBATCH_SIZE=16, ")
    assert with_smaller_parts(need(microbatch_size=3, workers=4).at_once).startswith("set THAW_MICROBATCH_SIZE=1, ")
    assert with_smaller_parts(need(microbatch_size=1).at_once) == ""


def test_the_checkpoint_of_xception_is_as_large_as_measured() -> None:
    """249,979,208 bytes: a run of Xception in fine-tuning wrote it."""
    assert need().checkpoint == pytest.approx(249_979_208, rel=0.01)


@pytest.mark.parametrize(
    ("values", "measured"),
    [
        ({"num_examples": 256}, 2.86e9),
        ({"num_examples": 256, "precision": "bfloat16"}, 2.25e9),
        ({"num_examples": 288, "microbatch_size": 8}, 2.08e9),
        ({"backbone": "MobileNetV2", "image_size": 512, "batch_size": 2, "cache": "disk"}, 1.46e9),
        (
            {"backbone": "MobileNetV2", "image_size": 512, "batch_size": 16, "fine_tune_epochs": 0, "cache": "disk"},
            1.85e9,
        ),
        ({"fine_tune_epochs": 0, "cache": "disk"}, 1.30e9),
        (
            {
                "backbone": "Tiny",
                "weights": "none",
                "image_size": 512,
                "batch_size": 1,
                "fine_tune_epochs": 0,
                "cache": "disk",
            },
            0.86e9,
        ),
    ],
)
def test_the_memory_is_near_the_peaks_of_runs_that_were_measured(values: dict[str, Any], measured: float) -> None:
    """Whether training or evaluation needs more: within a tenth."""
    assert need(**values).memory == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("fine_tune_epochs", [10, 0])
@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32"])
def test_an_evaluation_fits_where_a_step_of_training_did(precision: Precision, fine_tune_epochs: int) -> None:
    """Of every backbone, though it is in float32: it takes fewer images where it must, one at least, at most 64."""
    for batch_size, microbatch_size in ((2, None), (8, None), (32, None), (100, None), (512, None), (512, 3)):
        values = {"batch_size": batch_size, "microbatch_size": microbatch_size, "fine_tune_epochs": fine_tune_epochs}
        assert evaluation_batch_size(small_settings(values), precision) <= min(64, batch_size, microbatch_size or 64)
        for backbone in BACKBONES.keys() - {CUSTOM}:
            of_run = need(backbone=backbone, weights="none", precision=precision, **values)
            assert of_run.evaluated <= of_run.activations, backbone
    assert evaluation_batch_size(small_settings({"batch_size": 1, "fine_tune_epochs": 0}), "bfloat16") == 1
