"""Images are decoded in the background: a wait is for no more than is needed, and never for ever."""

import gc
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from job.data import decoding
from job.data.order import epoch_order
from job.data.resizing import Resizing
from job.data.splits import Splits, load_splits
from job.data.tfds.records import RecordReader
from job.errors import DataCorrupt, Interrupted, InvalidSettings
from job.storage import LocalStore
from tests import shapes
from tests.runs import Small, never, start

Load = Callable[..., Splits]


@pytest.fixture
def load(prepared: Path, tmp_path: Path, load_and_close: Load) -> Load:
    def load_with(*, check_stop: Callable[[], None] = never, first_order: Any = np.arange, **changes: Any) -> Splits:
        request = shapes.request(prepared, **({"resizing": Resizing(24), "cache_dir": tmp_path} | changes))
        return load_and_close(request, check_stop=check_stop, first_order=first_order)

    return load_with


class Held:
    """Holds the decode up at some images, by size of the split and index, until they are let go."""

    def __init__(self) -> None:
        self.places: set[tuple[int, int]] = set()
        self.num_read = 0
        self._let_go = threading.Event()

    def wait(self, size: int, index: int) -> None:
        if (size, int(index)) in self.places:
            self._let_go.wait()
        self.num_read += 1

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
    return epoch_order(num_examples, batch_size=16, seed=0, phase="head", epoch=0)


def in_a_thread(function: Callable[[], Any]) -> Callable[[], BaseException | None]:
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
    batches = iter(train.worker_batches(order, batch_size=16))
    for indices in (order[:16], order[16:32]):
        train.wait(indices)
        np.testing.assert_array_equal(next(batches)[0], shapes.pictures(indices))
    assert not train.decoding.is_ready("train")
    held.let_go()
    train.wait(order[32:])
    np.testing.assert_array_equal(next(batches)[0], shapes.pictures(order[32:]))


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
    images = [images for images, _ in train.worker_batches(order, batch_size=16).as_numpy_iterator()]
    np.testing.assert_array_equal(np.concatenate(images), shapes.pictures(order))


def test_a_wait_is_left_at_a_stop(load: Load, held: Held) -> None:
    """While the decode hangs."""
    held.places = {(40, 0)}
    stopped = threading.Event()

    def stop() -> None:
        if stopped.is_set():
            raise Interrupted("now")

    splits = load(check_stop=stop)
    stopped.set()
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


@pytest.mark.slow
def test_many_waits_do_not_keep_the_decode_from_its_threads(load: Load, held: Held) -> None:
    """Each waits inside TensorFlow, more of them than it has threads."""
    held.places = {(40, 0)}
    splits = load()
    ends = [in_a_thread(lambda: list(splits.test.batches(24))) for _ in range(40)]
    held.let_go()
    assert [end() for end in ends] == [None] * 40


# Damage

BOTH = ("shape-7.png", "shape-50.png")


@pytest.mark.parametrize(
    ("file_format", "cache", "specs", "names"),
    [
        ("tfrecord", "memory", ("train[:60]", "train[60:70]", "train[70:80]"), BOTH),
        pytest.param("tfrecord", "disk", ("train[8:60]", "train[:8]", "train[80:90]"), BOTH, marks=pytest.mark.slow),
        pytest.param(
            "tfrecord", "none", ("train[60:80]", "train[51:60]", "train[8:51]"), BOTH[1:], marks=pytest.mark.slow
        ),
        *(
            pytest.param(kind, "memory", ("train[:60]", "train[60:70]", "train[70:80]"), BOTH, marks=pytest.mark.slow)
            for kind in ("array_record", "parquet")
        ),
    ],
)
def test_all_that_is_damaged_is_named(
    load: Load, prepared_as: Callable[[str], Path],
    file_format: str, cache: str, specs: tuple[str, str, str], names: tuple[str, ...],
) -> None:  # fmt: skip
    """By file name, and by its place in the files where TFDS knows one; in every wait for all of the data."""
    splits = load(dataset="damaged_shapes", data_dir=str(prepared_as(file_format)), specs=specs, cache=cache)
    place = "" if file_format == "array_record" else rf" at damaged_shapes-train\.{file_format}\S+"
    for _ in range(2):
        with pytest.raises(DataCorrupt, match=rf"^{len(names)} of the \d+ images cannot be read:") as caught:
            splits.wait()
        assert len(caught.value.message.splitlines()) == 1 + len(names)
        for name in names:
            assert caught.match(rf"{name}{place}: cannot be decoded: .+")
    assert "damaged_shapes" in caught.value.hint


def test_a_wait_for_a_damaged_image_raises(load: Load, held: Held) -> None:
    """Also one in a batch that was asked for without it, which TensorFlow ends with an error of its own."""
    held.places = {(60, 0)}
    train = load(dataset="damaged_shapes", specs=("train[:60]", "train[60:70]", "train[70:80]")).train
    waits = in_a_thread(lambda: train.wait(np.array([7])))
    reads = in_a_thread(lambda: list(train.batches(16)))
    held.let_go()
    assert isinstance(waits(), DataCorrupt)
    assert isinstance(reads(), tf.errors.OpError)


def test_damage_elsewhere_is_raised_by_the_next_wait_and_by_no_batch(load: Load) -> None:
    """Also when all that is waited for is there: no step is done once damage is known. It may become known between a
    wait and its batch, which is read then.
    """
    splits = load(dataset="damaged_shapes", specs=("train[51:60]", "train[60:70]", "train[:51]"))
    with pytest.raises(DataCorrupt):
        splits.test.wait()
    ((images, _),) = splits.train.batches(9)
    np.testing.assert_array_equal(images, shapes.pictures(np.arange(51, 60)))
    with pytest.raises(DataCorrupt, match=r"2 of the 70 images cannot be read"):
        splits.train.wait(np.array([0]))


def test_a_file_that_is_gone_while_its_images_are_decoded_is_an_error_of_the_data(
    held: Held, prepared: Path, tmp_path: Path
) -> None:
    """At the image that could not be read."""
    folder = Path(shutil.copytree(prepared / "two_shapes", tmp_path / "copied" / "two_shapes"))
    held.places = {(40, 0)}
    splits = load_splits(shapes.request(folder.parent), check_stop=never)
    shutil.rmtree(folder)
    held.let_go()
    with pytest.raises(DataCorrupt, match=r"at example 0 of 40: .*No such file"):
        splits.wait()
    # TensorFlow's threads end here: they log each file that is not there, and this test captures it.
    del splits
    gc.collect()


def test_formats_without_random_access_need_a_cache(load: Load, prepared_as: Callable[[str], Path]) -> None:
    """Parquet files are read from their beginning alone."""
    with pytest.raises(InvalidSettings, match="THAW_CACHE=none reads TFRecord and ArrayRecord files"):
        load(data_dir=str(prepared_as("parquet")), cache="none")


# The end


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "decoding"]


def test_the_thread_ends_with_the_context(load: Load, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every wait raises, and leaving does not wait for an image that hangs."""
    monkeypatch.setattr(decoding, "CLOSING_SECONDS", 0.01)
    held.places = {(40, 20)}
    with load() as splits:
        waits = in_a_thread(splits.wait)
        threads = decoding_threads()
    assert isinstance(waits(), RuntimeError)
    held.let_go()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_the_thread_ends_when_a_run_refuses_the_data(
    small: Small, store: LocalStore, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose error may be kept for as long as one likes."""
    monkeypatch.setattr(decoding, "CLOSING_SECONDS", 0.01)
    held.places = {(40, 20)}
    with pytest.raises(InvalidSettings, match="is for two classes") as caught:
        start(small(dataset="three_shapes", threshold="auto"), store)
    threads = decoding_threads()
    held.let_go()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert held.num_read < 40 + 16 + 24
    assert "leave THAW_THRESHOLD out" in caught.value.hint


@pytest.mark.slow
def test_what_is_decoded_can_be_read_after_the_end(load: Load) -> None:
    """A closed decode that is complete is complete."""
    with load() as splits:
        splits.wait()
    images, _ = next(iter(splits.train.batches(40)))
    np.testing.assert_array_equal(images, shapes.pictures(np.arange(40)))


@pytest.mark.slow
def test_the_thread_ends_when_the_data_is_garbage(prepared: Path, held: Held) -> None:
    """Nothing can wait for it any more."""
    held.places = {(40, 20)}
    splits = load_splits(shapes.request(prepared), check_stop=never)
    threads = decoding_threads()
    del splits
    gc.collect()
    held.let_go()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert held.num_read < 40 + 16 + 24


@pytest.mark.parametrize("file_format", ["tfrecord", pytest.param("parquet", marks=pytest.mark.slow)])
def test_damaged_images_of_prepared_data_can_be_skipped(
    load: Load, prepared_as: Callable[[str], Path], file_format: str
) -> None:
    """As own images can."""
    splits = load(
        dataset="damaged_shapes", data_dir=str(prepared_as(file_format)), on_unreadable="skip",
        specs=("train[:60]", "train[60:70]", "train[70:80]"),
    )  # fmt: skip
    splits.wait()
    assert [image.name.split(" at ")[0] for image in splits.composition.skipped] == ["shape-7.png", "shape-50.png"]
    assert splits.identity["splits"] == {"train": 58, "validation": 10, "test": 10}
    images = np.concatenate([images for images, _ in splits.train.batches(16).as_numpy_iterator()])
    np.testing.assert_array_equal(images, shapes.pictures(np.delete(np.arange(60), [7, 50])))
