"""What one of several workers decodes and keeps: its own images, and the batches of all workers are those of one."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from job.data import images
from job.data.order import Portion, epoch_order, own_rows
from job.data.resizing import Resizing
from job.data.split_spec import DEFAULT_SPECS
from job.data.splits import Split, Splits
from job.data.tfds.records import RecordReader
from job.errors import DataCorrupt
from job.workers.share import Share
from tests import shapes
from tests.conftest import slowly

BATCH_SIZE = 16
EVALUATION_BATCH_SIZE = 5
FIRST = {"train": 0, "validation": 40, "test": 56}
"""Where each split begins among the pictures."""

Load = Callable[..., Splits]


@pytest.fixture
def load(prepared: Path, tmp_path: Path, load_and_close: Load) -> Load:
    """Loads the data of one worker."""

    def load_share(share: Share, **changes: Any) -> Splits:
        portion = Portion(share=share, batch_size=BATCH_SIZE, evaluation_batch_size=EVALUATION_BATCH_SIZE, seed=0)
        values = {"resizing": Resizing(24), "cache_dir": tmp_path, "portion": portion} | changes
        return load_and_close(shapes.request(prepared, **values), first_order=order_of)

    return load_share


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Size of the split and index of each image that is read to be decoded."""
    places: list[tuple[int, int]] = []
    read = RecordReader.read

    def noted(self: RecordReader, index: int) -> bytes:
        places.append((len(self), int(index)))
        return read(self, index)

    monkeypatch.setattr(RecordReader, "read", noted)
    return places


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each array that is allocated has room for."""
    sizes: list[int] = []
    allocate = images.allocate

    def noted(shape: tuple[int, ...], *where: Any) -> np.ndarray | None:
        sizes.append(shape[0])
        return allocate(shape, *where)

    monkeypatch.setattr("job.data.splits.allocate", noted)
    return sizes


def order_of(num_examples: int, epoch: int = 0) -> np.ndarray:
    return epoch_order(num_examples, batch_size=BATCH_SIZE, seed=0, phase="head", epoch=epoch)


def own_of(splits: Splits, share: Share) -> dict[str, list[int]]:
    portion = Portion(share=share, batch_size=BATCH_SIZE, evaluation_batch_size=EVALUATION_BATCH_SIZE, seed=0)
    return {split.name: portion.of(split.name, len(split)).tolist() for split in of_each(splits)}


def of_each(splits: Splits) -> tuple[Split, Split, Split]:
    return splits.train, splits.validation, splits.test


@pytest.mark.parametrize(
    ("cache", "num_workers"),
    [
        ("memory", 2),
        *slowly(("memory", 5), ("disk", 3), ("none", 3)),
    ],
)
def test_the_batches_of_all_workers_are_those_of_one(load: Load, cache: str, num_workers: int) -> None:
    """Row for row, with the right labels, from any batch of two epochs on; no worker's data is other data."""
    workers = [Share(worker, num_workers) for worker in range(num_workers)]
    splits = {share: load(share, cache=cache) for share in workers}
    assert len({str(found.identity) for found in splits.values()}) == 1
    for skip_batches in (0, 2):
        for epoch in range(2):
            order = order_of(40, epoch)
            for share in workers:
                found = splits[share].train.worker_batches(
                    order, batch_size=BATCH_SIZE, skip_batches=skip_batches, share=share
                )
                starts = range(skip_batches * BATCH_SIZE, 40, BATCH_SIZE)
                batches = [order[start : start + BATCH_SIZE] for start in starts]
                rows = [batch[share.rows(BATCH_SIZE, len(batch))] for batch in batches]
                for (pixels, labels), expected in zip(found, [row for row in rows if len(row)], strict=True):
                    np.testing.assert_array_equal(pixels, shapes.pictures(expected))
                    assert labels.numpy().tolist() == (expected % 2).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [3, 1, 6])
def test_the_evaluation_batches_of_all_workers_are_those_of_one(load: Load, num_workers: int) -> None:
    """Each knows where it begins; a worker for which there is no batch has none."""
    places = []
    for worker in range(num_workers):
        share = Share(worker, num_workers)
        for first, pixels, labels in load(share).test.evaluation_batches(EVALUATION_BATCH_SIZE, share):
            expected = np.arange(first, min(first + EVALUATION_BATCH_SIZE, 24))
            np.testing.assert_array_equal(pixels, shapes.pictures(56 + expected))
            assert labels.numpy().tolist() == (expected % 2).tolist()
            places.append(first)
    assert places == [0, 5, 10, 15, 20]


@pytest.mark.parametrize("cache", ["memory", *slowly("disk", "none")])
def test_a_worker_decodes_and_keeps_its_own_images_alone(
    load: Load, decoded: list[tuple[int, int]], kept: list[int], cache: str
) -> None:
    """Those of the first epoch in the order of it, each once; the others are not touched."""
    share = Share(1, 3)
    splits = load(share, cache=cache)
    splits.wait()
    own = own_of(splits, share)
    assert [len(found) for found in own.values()] == [12, 0, 10]
    for split in of_each(splits):
        assert sorted(index for size, index in decoded if size == len(split)) == own[split.name]
    assert kept == [12, 0, 10]
    assert all(splits.decoding.is_ready(split.name) for split in of_each(splits))


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["memory", "none"])
def test_the_image_of_another_worker_is_read_again(load: Load, decoded: list[tuple[int, int]], cache: str) -> None:
    """It is not waited for, which would be for ever; alone, and among images of its own."""
    share = Share(1, 4)
    splits = load(share, cache=cache)
    splits.wait()
    for split in of_each(splits):
        num_decoded = len(decoded)
        everything = np.arange(len(split))
        split.wait(everything)
        assert len(decoded) == num_decoded
        others = np.setdiff1d(everything, own_of(splits, share)[split.name])
        for indices in (others[:1], everything):
            ((pixels, labels),) = split.batches(len(indices), order=indices)
            np.testing.assert_array_equal(pixels, shapes.pictures(FIRST[split.name] + indices))
            assert labels.numpy().tolist() == (indices % 2).tolist()


@pytest.mark.slow
def test_a_worker_without_an_image_has_nothing_to_wait_for(load: Load) -> None:
    """A closed decode of nothing is complete."""
    share = Share(15, 16)
    splits = load(share, specs=("train[:10]", "train[40:44]", "train[56:60]"), cache="disk")
    assert own_of(splits, share) == {"train": [], "validation": [], "test": []}
    splits.close()
    splits.wait()
    order = order_of(10)
    assert list(splits.train.worker_batches(order, batch_size=BATCH_SIZE, share=share)) == []
    assert list(splits.test.evaluation_batches(EVALUATION_BATCH_SIZE, share)) == []
    ((pixels, _),) = splits.train.batches(10)
    np.testing.assert_array_equal(pixels, shapes.pictures(np.arange(10)))


@pytest.mark.slow
def test_the_first_own_rows_are_there_before_the_last_are_decoded(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guess of what comes first holds among the images of a worker."""
    share = Share(1, 4)
    own = own_rows(order_of(40), batch_size=BATCH_SIZE, share=share)
    let_go = threading.Event()
    read = RecordReader.read

    def held(self: RecordReader, index: int) -> bytes:
        if (len(self), int(index)) == (40, own[-1]):
            let_go.wait()
        return read(self, index)

    monkeypatch.setattr(RecordReader, "read", held)
    splits = load(share)
    splits.train.wait(own[:-1])
    assert not splits.decoding.is_ready("train")
    let_go.set()
    splits.wait()


@pytest.mark.slow
def test_a_worker_names_what_is_damaged_of_its_own(load: Load) -> None:
    """By the place in the data, not among its images; all workers together name all."""
    specs, found = ("train[:60]", "train[60:70]", "train[70:80]"), []
    for worker in range(4):
        splits = load(Share(worker, 4), dataset="damaged_shapes", specs=specs)
        damaged = {7, 50} & set(own_of(splits, Share(worker, 4))["train"])
        if not damaged:
            splits.wait()
            continue
        with pytest.raises(DataCorrupt) as caught:
            splits.wait()
        _, *lines = caught.value.message.splitlines()
        found += [(worker, line.split(": ")[1].split(" at ")[0]) for line in lines]
        assert [name for _, name in found[-len(damaged) :]] == [f"shape-{index}.png" for index in sorted(damaged)]
    assert {name for _, name in found} == {"shape-7.png", "shape-50.png"}
    assert len(found) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file_format", "changes"),
    [("parquet", {}), ("tfrecord", {"on_unreadable": "skip"})],
    ids=["in turn", "skip"],
)
def test_where_all_must_be_decoded_each_worker_keeps_all(
    load: Load, kept: list[int], prepared_as: Callable[[str], Path], file_format: str, changes: dict[str, Any]
) -> None:
    """Files that can only be read in turn, and images that are left out: the batches are those of the share."""
    share = Share(1, 2)
    splits = load(share, data_dir=str(prepared_as(file_format)), **changes)
    splits.wait()
    assert kept == [40, 16, 24]
    order = order_of(40)
    pixels = np.concatenate(
        [batch for batch, _ in splits.train.worker_batches(order, batch_size=BATCH_SIZE, share=share)]
    )
    np.testing.assert_array_equal(pixels, shapes.pictures(own_rows(order, batch_size=BATCH_SIZE, share=share)))


@pytest.mark.slow
def test_own_images_are_divided_as_well(load: Load, tmp_path: Path, kept: list[int]) -> None:
    """A folder: each worker reads all files for their digests, and decodes its own."""
    folder = shapes.write_images(tmp_path / "images")
    splits = [load(Share(worker, 2), dataset=str(folder), specs=DEFAULT_SPECS) for worker in range(2)]
    assert splits[0].identity == splits[1].identity
    assert splits[0].table == splits[1].table
    for found in splits:
        found.wait()
    assert sum(kept) == sum(len(split) for split in of_each(splits[0]))
    order = order_of(len(splits[0].train))
    ((expected, _),) = splits[0].train.batches(len(order), order=order)
    for worker, found in enumerate(splits):
        share = Share(worker, 2)
        rows = [pixels for pixels, _ in found.train.worker_batches(order, batch_size=BATCH_SIZE, share=share)]
        np.testing.assert_array_equal(
            np.concatenate(rows), own_rows(np.asarray(expected), batch_size=BATCH_SIZE, share=share)
        )
