"""The splits of a source -> decoded uint8 images -> the exact batches of an epoch, and those of an evaluation.

Every example is read at the start, for its label and the SHA-256 of its image, which identify the data. Images are
decoded and resized once, in the background, so a damaged one is found early, by name. Of several workers each reads all
examples, so that all hold the same data, and decodes and keeps only the images of its portion. This module knows
nothing of models; augmentation happens on the device, in `model`.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from job.data import image_table, unreadable
from job.data.composition import Composition, Skipped, identity
from job.data.decoding import Decoding, Part
from job.data.files.listing import ANY, FilesRequest
from job.data.files.names import is_place
from job.data.files.places import open_place
from job.data.files.source import read_own_images
from job.data.images import NOT_KEPT, PREFETCHED_BATCHES, Cache, ImageBatches, allocate, cached, decoded_again, untuned
from job.data.on_device import OnDevice
from job.data.order import Portion, evaluated, own_rows
from job.data.pixels import decode
from job.data.resizing import Resizing
from job.data.source import Examples, Source
from job.data.split_spec import Specs
from job.data.tfds.builders import prepared_builder
from job.data.tfds.examples import read_data_set
from job.observe import data_events, events
from job.workers.share import Share

ALL = Share()


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split, ready to be read in any order; `labels` is int32 [n], 0 to classes - 1.

    `indices`, int64 [n], has the place of each example in `images`, which may have more: those that were skipped.
    `on_device` has the same images, if they are kept there.
    """

    name: str
    labels: np.ndarray
    indices: np.ndarray
    images: ImageBatches
    decoding: Decoding
    on_device: OnDevice | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def wait(self, indices: np.ndarray | None = None) -> None:
        """Return when these images are decoded, or all of them; those of other workers are not waited for.

        Raises DataCorrupt when an image of any split is known to be damaged, and what `check_stop` of the data raises.
        """
        self.decoding.wait(self.name, None if indices is None else self.indices[indices])

    def batches(self, batch_size: int, *, order: np.ndarray | None = None) -> tf.data.Dataset:
        """(images uint8 [b, size, size, 3], labels int32 [b]) in `order`, which is 0, 1, 2, ... by default.

        A batch whose images are still to be decoded waits for them. Such a wait cannot be left: `wait` first. When any
        of the images is another worker's, all of them are decoded again.
        """
        order = np.arange(len(self)) if order is None else order
        labels = tf.data.Dataset.from_tensor_slices(self.labels[order]).batch(batch_size)
        batches = tf.data.Dataset.zip(self.images(self.indices[order], batch_size), labels)
        # To leave an iterator is to wait for what it prefetches, which may wait for images of a later batch.
        return untuned(batches.prefetch(PREFETCHED_BATCHES) if self.decoding.is_ready(self.name) else batches)

    def worker_batches(
        self, order: np.ndarray, *, batch_size: int, skip_batches: int = 0, share: Share = ALL
    ) -> tf.data.Dataset:
        """A worker's rows of the batches of an epoch in its `epoch_order`, from batch `skip_batches` on.

        The last partial batch is kept; where the worker has no row of it, it is absent.
        """
        order = own_rows(order[skip_batches * batch_size :], batch_size=batch_size, share=share)
        rows = share.of(batch_size)
        return self.batches(max(1, rows.stop - rows.start), order=order)

    def worker_places(
        self, order: np.ndarray, *, batch_size: int, skip_batches: int = 0, share: Share = ALL
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The same with the places of the images `on_device`, int64 [b], and their labels."""
        for start in range(skip_batches * batch_size, len(order), batch_size):
            batch = order[start : start + batch_size]
            if len(own := batch[share.rows(batch_size, len(batch))]):
                yield self._places_of(own), self.labels[own]

    def evaluation_batches(self, batch_size: int, share: Share = ALL) -> Iterator[tuple[int, tf.Tensor, tf.Tensor]]:
        """A worker's `batches` of an evaluation, each with the index of its first example.

        They come once all images of this worker are decoded; raises as `wait` does, before each batch too.
        """
        self.wait()
        order = evaluated(len(self), batch_size=batch_size, share=share)
        batches = self.batches(batch_size, order=order) if self.on_device is None else self._gathered(order, batch_size)
        for first, (images, labels) in zip(order[::batch_size].tolist(), batches, strict=True):
            self.decoding.check_stop()
            yield first, images, labels

    def _gathered(self, order: np.ndarray, batch_size: int) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        """What `batches` gives of images that are decoded, from the device."""
        assert self.on_device is not None
        for start in range(0, len(order), batch_size):
            own = order[start : start + batch_size]
            yield self.on_device.gathered(tf.constant(self._places_of(own))), tf.constant(self.labels[own])

    def _places_of(self, examples: np.ndarray) -> np.ndarray:
        assert self.on_device is not None
        return np.asarray(self.on_device.places[self.indices[examples]])


@dataclass(frozen=True, kw_only=True)
class Splits(contextlib.AbstractContextManager["Splits"]):
    """The data of a run. Leaving the context ends the decode, and raises DataCorrupt when images were lost meanwhile.

    `by_name` are those of a run, or the one of an evaluation, and `specs` what they are of the data. `identity` is what
    a resumed run must find again, `composition` what the splits are made of, `table` that of `image_table`, for images
    that have names. `lost` makes the error of images that cannot be read any more, if any.
    """

    by_name: Mapping[str, Split]
    specs: Specs
    class_names: tuple[str, ...]
    identity: dict[str, Any]
    composition: Composition
    table: bytes | None
    decoding: Decoding
    lost: Callable[[], BaseException | None]

    @property
    def train(self) -> Split:
        return self.by_name["train"]

    @property
    def validation(self) -> Split:
        return self.by_name["validation"]

    @property
    def test(self) -> Split:
        return self.by_name["test"]

    def findings(self) -> Iterator[events.Event]:
        """What a person should look at."""
        for finding in self.composition.findings():
            if isinstance(finding, data_events.Duplicates) and self.table is not None:
                yield replace(finding, images=image_table.duplicates(self.table))
            else:
                yield finding

    def wait(self) -> None:
        """Return when every image of this worker is decoded; raises as `Split.wait` does."""
        for split in self.by_name.values():
            split.wait()

    def close(self) -> None:
        self.decoding.close()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self.close()
        if isinstance(error, tf.errors.OpError) and (lost := self.lost()) is not None:
            raise lost from error


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """Which data a run wants, and how it keeps the decoded images.

    `dataset` is the name of a TFDS data set or a local place of image files, `specs` are the TFDS split specs of train,
    validation and test, or of one split that is only evaluated, `resizing` what every image becomes. `files` counts for
    image files only.

    `portion` is what of the images this process decodes and keeps: all by default. It keeps all the same where
    unreadable images are skipped, because all must be decoded to know which, and where files can only be read in turn.

    `check_space` is called with the number of examples before an image is kept, and raises when they do not fit.
    """

    dataset: str
    data_dir: str | None
    specs: Specs
    resizing: Resizing
    cache: Cache
    cache_dir: Path
    files: FilesRequest = ANY
    on_unreadable: Literal["fail", "skip"] = "fail"
    check_space: Callable[[int], None] = lambda num_examples: None
    portion: Portion | None = None


def load_splits(
    request: DataRequest, *, check_stop: Callable[[], None], first_order: Callable[[int], np.ndarray] = np.arange
) -> Splits:
    """Load the splits, of a TFDS data set after downloading and preparing it if need be.

    Labels and encoded images are read, and decoding is left to the background: wait for images before they are used,
    and close the splits. Only where unreadable images are skipped, all images are decoded first. `check_stop` is called
    now and then, here and in every later wait, and raises to leave. `first_order` guesses in which order those of train
    will be wanted first, as a permutation of so many indices; it is not asked where files cannot be read in any order.
    Raises DataUnavailable, DataCorrupt, InputError when these are no labelled images or the classes of the splits do
    not fit together, InvalidSettings when the splits do not fit the data.
    """
    source = _source(request, check_stop)
    examples = source.examples
    kept = {name: np.arange(len(split.labels)) for name, split in examples.items()}
    may_skip = request.on_unreadable == "skip"
    if not may_skip:
        # A plain mistake is reported before the decode is begun.
        composition, found_identity = _content(source, kept)
    request.check_space(sum(len(split.labels) for split in examples.values()))
    parts = [_part(name, split, request, first_order) for name, split in examples.items()]
    corrupt = None if may_skip else partial(unreadable.corrupt, examples, hint=source.repair_hint)
    decoding = Decoding(parts, check_stop, corrupt=corrupt)
    if may_skip:
        with contextlib.ExitStack() as on_error:
            on_error.callback(decoding.close)
            for name in examples:
                decoding.wait(name, None)
            skipped = unreadable.skipped(examples, decoding.damaged)
            kept = {name: np.delete(indices, list(decoding.damaged[name])) for name, indices in kept.items()}
            composition, found_identity = _content(source, kept, skipped)
            on_error.pop_all()
    return Splits(
        by_name={part.name: _split(part, examples[part.name], kept[part.name], request, decoding) for part in parts},
        specs=source.specs,
        class_names=source.class_names,
        identity=found_identity,
        composition=composition,
        table=image_table.written(examples, kept, source.class_names) if source.has_names else None,
        decoding=decoding,
        lost=partial(unreadable.lost, examples, kept),
    )


def _source(request: DataRequest, check_stop: Callable[[], None]) -> Source:
    if is_place(request.dataset):
        listing = open_place(request.dataset, request.files, scratch=request.cache_dir)
        return read_own_images(listing, request.specs, stratify=request.files.stratify, check_stop=check_stop)
    builder = prepared_builder(request.dataset, request.data_dir)
    return read_data_set(builder, request.specs, cache=request.cache, check_stop=check_stop)


def _content(
    source: Source, kept: Mapping[str, np.ndarray], skipped: tuple[Skipped, ...] = ()
) -> tuple[Composition, dict[str, Any]]:
    """Composition and identity of the examples that are kept. Raises InputError when those of a run do not fit."""
    labels = {name: split.labels[kept[name]] for name, split in source.examples.items()}
    digests = {name: split.digests[kept[name]] for name, split in source.examples.items()}
    composition = Composition.of(source.class_names, labels, digests, skipped, num_unused=source.num_unused)
    if "train" in labels:
        composition.check()
    # Microsoft writes Cat where Kaggle writes cat: the same images are the same data.
    names = [name.casefold() for name in source.class_names] if source.has_names else source.class_names
    return composition, identity(source.identity, names, labels, digests, skipped)


def _part(name: str, split: Examples, request: DataRequest, first_order: Callable[[int], np.ndarray]) -> Part:
    num_examples, side = len(split.labels), request.resizing.size
    own = np.arange(num_examples)
    if request.portion is not None and split.is_in_any_order and request.on_unreadable == "fail":
        own = request.portion.of(name, num_examples)
    places = np.full(num_examples, NOT_KEPT)
    places[own] = np.arange(len(own))
    order = own
    if name == "train" and split.is_in_any_order:
        guess = first_order(num_examples)
        order = guess[places[guess] != NOT_KEPT]
    pixels = allocate((len(own), side, side, 3), request.cache, request.cache_dir)
    images = split.mapped(order, partial(decode, resizing=request.resizing))
    return Part(name=name, order=order, images=images, places=places, pixels=pixels)


def _split(part: Part, examples: Examples, kept: np.ndarray, request: DataRequest, decoding: Decoding) -> Split:
    images = decoded_again(examples, request.resizing)
    on_device = None
    if part.pixels is not None:
        wait = partial(decoding.wait_in_batch, part.name)
        images = cached(part.pixels, part.places, wait=wait, others=images)
        on_device = OnDevice(part.pixels, part.places) if request.cache == "device" else None
    return Split(
        name=part.name, labels=examples.labels[kept], indices=kept, images=images, decoding=decoding,
        on_device=on_device,
    )  # fmt: skip
