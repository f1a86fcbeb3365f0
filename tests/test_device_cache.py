"""Images on the device: the batches of memory, bit for bit, with the same errors; and whether they fit there."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from job import nvidia
from job.cli import checks
from job.data.order import Portion, epoch_order
from job.data.splits import ALL, Splits
from job.errors import DataCorrupt, MemoryExhausted
from job.observe.ledger import Ledger
from job.phases import Phase
from job.run import disk_space
from job.settings.resources import estimate
from job.settings.settings import Settings
from job.storage import LocalStore
from job.train.feed import Feed
from job.train.loop import Position, train_phase
from job.train.state import PhaseState
from job.train.step import Recipe
from job.workers.share import Share
from tests import shapes
from tests.classifiers import ALONE, build
from tests.conftest import slowly
from tests.runs import Small, Undisturbed, result_of, start
from tests.test_device import driver

Load = Callable[..., Splits]
ORDER = epoch_order(40, batch_size=16, seed=0, phase="head", epoch=0)


@pytest.fixture
def load(prepared: Path, load_and_close: Load) -> Load:
    """Loads the data as one worker does, by default the only one."""

    def load_with(cache: str, share: Share = ALL, **changes: Any) -> Splits:
        portion = Portion(share=share, batch_size=16, evaluation_batch_size=16, seed=0)
        return load_and_close(shapes.request(prepared, cache=cache, portion=portion, **changes))

    return load_with


@pytest.mark.slow
@pytest.mark.parametrize(
    "share", [*slowly(Share()), Share(2, 3), Share(14, 16)], ids=["alone", "of three", "of sixteen"]
)
def test_a_feed_has_the_images_of_memory(load: Load, share: Share) -> None:
    """The rows of each worker in their order, also where it has none of the last batch, and their labels.

    From the first batch of an epoch on, and from the second.
    """
    found: dict[tuple[str, int], tuple[np.ndarray, ...]] = {}
    for cache in ("memory", "device"):
        train = load(cache, share).train
        train.wait()
        for skip_batches in (0, 1):
            feed = Feed(train, [ORDER], batch_size=16, skip_batches=skip_batches, share=share)
            batches = feed.take(3 - skip_batches, image_size=16)
            images, labels = batches.examples
            if train.on_device is not None:
                images = train.on_device.gathered(images)
            # Of a row that stands in for none the image does not count.
            counts = np.repeat(batches.places[:, 1] > 0, np.maximum(batches.places[:, 1], 1))
            found[cache, skip_batches] = (
                np.asarray(images)[counts], np.asarray(labels)[counts], batches.places, np.asarray(batches.num_examples)
            )  # fmt: skip
    for skip_batches in (0, 1):
        for of_memory, of_device in zip(found["memory", skip_batches], found["device", skip_batches], strict=True):
            np.testing.assert_array_equal(of_device, of_memory)


@pytest.mark.parametrize("share", [Share(), *slowly(Share(1, 2))], ids=["alone", "of two"])
def test_an_evaluation_has_the_images_of_memory(load: Load, share: Share) -> None:
    """Of validation and test, in batches of which the last is partial."""
    loaded = {cache: load(cache, share) for cache in ("memory", "device")}
    for name in ("validation", "test"):
        of_memory, of_device = (
            list(getattr(loaded[cache], name).evaluation_batches(16, share)) for cache in ("memory", "device")
        )
        assert len(of_memory) == len(of_device)
        for expected, found in zip(of_memory, of_device, strict=True):
            for one, other in zip(expected, found, strict=True):
                np.testing.assert_array_equal(other, one)


def new_state() -> PhaseState:
    return PhaseState(build(), Phase(name="fine_tune", unfreeze="all", learning_rate=1e-2, epochs=2))


def facts_of(state: PhaseState, splits: Splits, **recipe: Any) -> Iterator[object]:
    return train_phase(
        state, train=splits.train, validation=splits.validation, recipe=Recipe(16, 0, xla=False, **recipe),
        position=Position(), ledger=Ledger(), collective=ALONE,
    )  # fmt: skip


def trained(splits: Splits, **recipe: Any) -> PhaseState:
    state = new_state()
    for _ in facts_of(state, splits, **recipe):
        pass
    return state


@pytest.mark.slow
@pytest.mark.usefixtures("_deterministic")
def test_training_ends_with_the_same_bits(load: Load) -> None:
    """With mixed images, and several steps in a call."""
    expected = trained(load("memory"), mixup=0.4).arrays()
    found = trained(load("device"), mixup=0.4, steps_per_execution=3).arrays()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.slow
def test_a_run_ends_with_the_same_model(undisturbed_run: Undisturbed, small: Small, store: LocalStore) -> None:
    start(small(cache="device", steps_per_execution=3), store)
    assert result_of(store) == result_of(undisturbed_run[0])


def test_a_damaged_image_ends_the_run_before_its_first_step(load: Load) -> None:
    """Every image is decoded before the first is on the device; it is named as ever."""
    splits = load("device", dataset="damaged_shapes", specs=("train[:60]", "train[60:70]", "train[70:80]"))
    with pytest.raises(DataCorrupt, match=r"shape-7\.png"):
        # A fact of a step would come first.
        next(facts_of(new_state(), splits))


def need(**values: Any) -> Any:
    return estimate(Settings(**values), num_examples=1000, precision="float32")


def test_images_on_the_device_count_there_and_in_memory() -> None:
    """And those of a call where they are not there already."""
    images = 1000 * 150 * 150 * 3
    assert need(cache="device").memory == need().memory
    assert need(cache="device").device - need().device == images
    assert need(steps_per_execution=8).device - need().device == 8 * 32 * 150 * 150 * 3
    assert need(cache="device", steps_per_execution=8) == need(cache="device")


def test_a_gpu_that_is_too_small_is_found_before_the_images_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names another cache. Without this cache a start goes on, and `plan` warns."""
    settings, needed = Settings(cache="device"), need(cache="device")
    monkeypatch.setattr(nvidia, "memory_bytes", lambda: needed.device - 1)
    with pytest.raises(MemoryExhausted, match="THAW_CACHE=device: the GPU is too small") as caught:
        disk_space.check_device(settings, needed)
    assert "THAW_CACHE=memory" in caught.value.hint
    disk_space.check_device(Settings(), needed)
    (warning,) = checks.device_memory(Settings(), need())
    assert (warning.outcome, warning.exit_code) == ("ok", 0)
    (warning,) = checks.device_memory(Settings(), dataclasses.replace(need(), device=needed.device))
    assert (warning.outcome, warning.exit_code) == ("warning", 0)
    assert warning.hint.startswith("set THAW_MICROBATCH_SIZE=16, ")
    assert disk_space.of_device(Settings(cache="device", device="cpu"), needed) is None
    monkeypatch.setattr(nvidia, "memory_bytes", lambda: needed.device)
    disk_space.check_device(settings, needed)
    monkeypatch.setattr(nvidia, "memory_bytes", lambda: None)
    disk_space.check_device(settings, needed)


def test_the_driver_says_how_much_memory_a_gpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first that the process may use."""
    monkeypatch.setattr(nvidia, "CUDA", "/no/driver")
    assert nvidia.memory_bytes() is None
    monkeypatch.setattr("ctypes.CDLL", driver(num_gpus=2))
    assert nvidia.memory_bytes() == 40 << 30
