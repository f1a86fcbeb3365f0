"""Images are decoded in the background: nobody waits for more than is needed, and nobody for ever."""

import gc
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from job.data import decoding
from job.data.records import RecordReader
from job.data.splits import Splits, epoch_order, load_splits, train_batches
from job.errors import DataCorrupt, Interrupted, InvalidSettings
from tests import shapes
from tests.runs import never

Load = Callable[..., Splits]


@pytest.fixture
def load(prepared: Path, tmp_path: Path) -> Iterator[Load]:
    loaded: list[Splits] = []

    def load_with(*, check_stop: Callable[[], None] = never, first_order: Any = np.arange, **changes: Any) -> Splits:
        request = shapes.request(prepared, **({"image_size": 24, "cache_dir": tmp_path} | changes))
        loaded.append(load_splits(request, check_stop=check_stop, first_order=first_order))
        return loaded[-1]

    yield load_with
    for splits in loaded:
        splits.close()


class Held:
    """Holds the decode up at some images, by size of the split and index, until they are let go."""

    def __init__(self) -> None:
        self.places: set[tuple[int, int]] = set()
        self._let_go = threading.Event()

    def wait(self, size: int, index: int) -> None:
        if (size, int(index)) in self.places:
            self._let_go.wait()

    def let_go(self) -> None:
        self._let_go.set()


@pytest.fixture
def held(load: Load, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    places = Held()
    read = RecordReader.read

    def read_when_let_go(self: RecordReader, index: int) -> bytes:
        places.wait(len(self), index)
        return read(self, index)

    monkeypatch.setattr(RecordReader, "read", read_when_let_go)
    yield places
    places.let_go()


def order_of(num_examples: int) -> np.ndarray:
    return epoch_order(num_examples, seed=0, phase="head", epoch=0)


def pictures(indices: np.ndarray) -> np.ndarray:
    """What the images of the training split are, uint8 [n, 24, 24, 3]."""
    return np.stack([shapes.draw(index % 2, index) for index in indices])


def in_a_thread(function: Callable[[], None]) -> Callable[[], BaseException | None]:
    """Begin a call; returns what waits for its end, and returns its error."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def end() -> BaseException | None:
        thread.join(60)
        assert not thread.is_alive()
        return errors[0] if errors else None

    return end


# Waiting


def test_the_first_epoch_begins_before_the_last_image_is_decoded(load: Load, held: Held) -> None:
    """Each batch waits for its own images; in the order that was guessed, the last of them is needed last."""
    order = order_of(40)
    held.places = {(40, int(order[-1]))}
    train = load(first_order=order_of).train
    batches = iter(train_batches(train, order, batch_size=16))
    for indices in (order[:16], order[16:32]):
        train.wait(indices)
        images, _ = next(batches)
        np.testing.assert_array_equal(images, pictures(indices))
    assert not train.decoding.is_ready("train")
    held.let_go()
    train.wait(order[32:])
    np.testing.assert_array_equal(next(batches)[0], pictures(order[32:]))


def test_train_is_decoded_before_validation_and_that_before_test(load: Load, held: Held) -> None:
    """What is needed last waits longest."""
    held.places = {(24, 0)}
    splits = load()
    splits.train.wait()
    splits.validation.wait()
    assert not splits.decoding.is_ready("test")
    held.let_go()
    splits.wait()
    assert splits.decoding.is_ready("test")


def test_a_wrong_guess_gives_the_same_batches(load: Load) -> None:
    """The last image first."""
    order = order_of(40)
    train = load(first_order=lambda size: order_of(size)[::-1].copy()).train
    batches = train_batches(train, order, batch_size=16)
    np.testing.assert_array_equal(
        np.concatenate([images for images, _ in batches.as_numpy_iterator()]), pictures(order)
    )


def test_a_wait_is_left_when_told_to_stop(load: Load, held: Held) -> None:
    """While the decode hangs."""
    held.places = {(40, 0)}
    told = threading.Event()

    def stop() -> None:
        if told.is_set():
            raise Interrupted("now")

    splits = load(check_stop=stop)
    told.set()
    with pytest.raises(Interrupted):
        splits.train.wait()
    with pytest.raises(Interrupted):
        next(splits.validation.evaluation_batches(16))


def test_an_iterator_is_left_while_images_are_missing(load: Load, held: Held) -> None:
    """Nothing is read ahead that would have to be waited for."""
    held.places = {(40, 39)}
    train = load().train
    batches = iter(train.batches(16))
    next(batches)
    del batches
    assert not train.decoding.is_ready("train")


def test_many_who_wait_do_not_keep_the_decode_from_its_threads(load: Load, held: Held) -> None:
    """Each waits inside TensorFlow, more of them than it has threads."""
    held.places = {(40, 0)}
    splits = load()
    ends = [in_a_thread(lambda: [None for _ in splits.test.batches(24)] and None) for _ in range(40)]
    held.let_go()
    assert [end() for end in ends] == [None] * 40


# Damage


@pytest.mark.parametrize("cache", ["memory", "none"])
@pytest.mark.parametrize(
    ("specs", "names"),
    [
        (("train[:60]", "train[60:70]", "train[70:80]"), ("shape-7.png", "shape-50.png")),
        (("train[60:80]", "train[:60]", "train[80:90]"), ("shape-7.png", "shape-50.png")),
        (("train[60:80]", "train[51:60]", "train[8:51]"), ("shape-50.png",)),
    ],
    ids=["train", "validation", "test"],
)
def test_all_that_is_damaged_in_a_split_is_named(
    load: Load, specs: tuple[str, str, str], names: tuple[str, ...], cache: str
) -> None:
    """To whoever waits for the whole of the data."""
    splits = load(dataset="damaged_shapes", specs=specs, cache=cache)
    for _ in range(2):
        with pytest.raises(DataCorrupt, match=f"{len(names)} of the images of train.* cannot be decoded") as caught:
            splits.wait()
        assert all(re.search(rf"{name} at .*: cannot be decoded: .+", caught.value.message) for name in names)


def test_whoever_waits_for_a_damaged_image_is_told(load: Load, held: Held) -> None:
    """With `wait`, and in a batch that was asked for without it, which TensorFlow ends with an error of its own."""
    held.places = {(60, 0)}
    train = load(dataset="damaged_shapes", specs=("train[:60]", "train[60:70]", "train[70:80]")).train
    waits = in_a_thread(lambda: train.wait(np.array([7])))
    reads = in_a_thread(lambda: [None for _ in train.batches(16)] and None)
    held.let_go()
    assert isinstance(waits(), DataCorrupt)
    assert isinstance(reads(), tf.errors.OpError)


def test_damage_elsewhere_is_told_to_whoever_waits_next(load: Load) -> None:
    """Also when all that is waited for is there: no step is done once damage is known."""
    splits = load(dataset="damaged_shapes", specs=("train[51:60]", "train[60:70]", "train[:51]"))
    with pytest.raises(DataCorrupt):
        splits.test.wait()
    with pytest.raises(DataCorrupt, match=r"2 of the images of train\[:51\]"):
        splits.train.wait(np.array([0]))


def test_a_file_that_is_gone_while_its_images_are_decoded_is_an_error_of_the_data(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the image that could not be read."""

    def gone(self: RecordReader, index: int) -> bytes:
        raise FileNotFoundError("the volume is gone")

    monkeypatch.setattr(RecordReader, "read", gone)
    with pytest.raises(DataCorrupt, match=r"at example 0 of 40: .*the volume is gone"):
        load().wait()


# Other files than TFRecord


@pytest.fixture(scope="module")
def in_parquet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The data sets in files that are read from their beginning only."""
    folder = tmp_path_factory.mktemp("parquet")
    for builder in (shapes.TwoShapes, shapes.DamagedShapes):
        builder(data_dir=folder, file_format=tfds.core.FileFormat.PARQUET).download_and_prepare()
    return str(folder)


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_other_files_give_the_same_images(load: Load, in_parquet: str, cache: str) -> None:
    """Decoded as they come, whatever is guessed."""
    other = load(data_dir=in_parquet, cache=cache, first_order=order_of)
    for of_record, of_other in ((load().train, other.train), (load().test, other.test)):
        expected, found = (
            list(split.batches(16, order=order_of(len(split))).as_numpy_iterator()) for split in (of_record, of_other)
        )
        for (images, labels), (expected_images, expected_labels) in zip(found, expected, strict=True):
            np.testing.assert_array_equal(images, expected_images)
            np.testing.assert_array_equal(labels, expected_labels)


def test_what_is_damaged_in_other_files_is_named(load: Load, in_parquet: str) -> None:
    """In the same words."""
    splits = load(dataset="damaged_shapes", data_dir=in_parquet, specs=("train[:60]", "train[60:70]", "train[70:80]"))
    with pytest.raises(DataCorrupt, match=r"(?s)2 of the images .*shape-7\.png.*shape-50\.png"):
        splits.wait()


def test_other_files_are_not_read_without_a_cache(load: Load, in_parquet: str) -> None:
    """They have no random access."""
    with pytest.raises(InvalidSettings, match="THAW_CACHE=none reads TFRecord and ArrayRecord files"):
        load(data_dir=in_parquet, cache="none")


# The end


def test_the_thread_ends_with_the_context(load: Load, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits is told, and leaving does not wait for an image that hangs."""
    monkeypatch.setattr(decoding, "CLOSING_SECONDS", 0.01)
    held.places = {(40, 20)}
    with load() as splits:
        waits = in_a_thread(lambda: splits.wait())
    assert isinstance(waits(), RuntimeError)
    held.let_go()
    splits.decoding._thread.join(60)
    assert not splits.decoding._thread.is_alive()


def test_what_is_decoded_can_be_read_after_the_end(load: Load) -> None:
    """A closed decode that is complete is complete."""
    with load() as splits:
        splits.wait()
    images, _ = next(iter(splits.train.batches(40)))
    np.testing.assert_array_equal(images, pictures(np.arange(40)))


def test_the_thread_ends_when_nobody_can_wait_any_more(prepared: Path, held: Held, tmp_path: Path) -> None:
    """The data is garbage."""
    held.places = {(40, 20)}
    splits = load_splits(shapes.request(prepared, image_size=24), check_stop=never)
    thread, ready = splits.decoding._thread, splits.decoding._state.ready
    del splits
    gc.collect()
    held.let_go()
    thread.join(60)
    assert not thread.is_alive()
    assert not ready["train"].all()
