"""TFDS splits -> decoded uint8 images -> the exact batches of an epoch, and those of an evaluation.

Every example is read at the start: its label and the SHA-256 of its image are kept: they identify the data.
Images are decoded and resized once, in the background, so a damaged one is found early, by name. An epoch is a
permutation: example order is a pure function of (seed, phase, epoch), whatever the cache, and a restart in the middle
of an epoch begins at the right batch without reading the ones before it.
This module knows nothing of models; augmentation happens on the device, in `model`.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from job.data.composition import Composition, identity
from job.data.decoding import Decoding, Part
from job.data.images import CachedImages, ImageSource, allocate, untuned
from job.data.tfds.builders import prepared_builder
from job.data.tfds.description import SPLIT_NAMES, Cache, judge
from job.data.tfds.examples import PREFETCHED_BATCHES, Examples


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split, ready to be read in any order; `labels` is int32 [examples], 0 to classes - 1."""

    name: str
    spec: str
    labels: np.ndarray
    images: ImageSource
    decoding: Decoding

    def __len__(self) -> int:
        return len(self.labels)

    def wait(self, indices: np.ndarray | None = None) -> None:
        """Return when these images are decoded, or all of them.

        Raises DataCorrupt when an image of any split is known to be damaged, and what `check_stop` of the data raises.
        """
        self.decoding.wait(self.name, indices)

    def batches(self, batch_size: int, *, order: np.ndarray | None = None) -> tf.data.Dataset:
        """(images uint8 [b, size, size, 3], labels int32 [b]) in `order`, which is 0, 1, 2, ... by default.

        A batch whose images are still to be decoded waits for them. Such a wait cannot be left: `wait` first.
        """
        order = np.arange(len(self)) if order is None else order
        labels = tf.data.Dataset.from_tensor_slices(self.labels[order]).batch(batch_size)
        batches = tf.data.Dataset.zip(self.images.batches(order, batch_size), labels)
        # To leave an iterator is to wait for what it prefetches, which may wait for images of a later batch.
        return untuned(batches.prefetch(PREFETCHED_BATCHES) if self.decoding.is_ready(self.name) else batches)

    def evaluation_batches(self, batch_size: int) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        """The `batches` of an evaluation, once all images are decoded; raises as `wait` does, before each batch too."""
        self.wait()
        for batch in self.batches(batch_size):
            self.decoding.check_stop()
            yield batch


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The data of a run. Leaving the context ends the decode.

    `identity` is what a resumed run must find again, `composition` what the splits are made of.
    """

    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    identity: dict[str, Any]
    composition: Composition
    decoding: Decoding

    def wait(self) -> None:
        """Return when every image is decoded; raises as `Split.wait` does."""
        for split in (self.train, self.validation, self.test):
            split.wait()

    def close(self) -> None:
        self.decoding.close()

    def __enter__(self) -> "Splits":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def epoch_order(num_examples: int, *, seed: int, phase: str, epoch: int) -> np.ndarray:
    """A permutation of 0 .. num_examples - 1 as int64, a pure function of its arguments.

    Ranks of raw Philox bits: NumPy keeps the bits of a generator stable between versions, its shuffles not.
    """
    key = hashlib.sha256(f"order/{seed}/{phase}/{epoch}".encode()).digest()
    bits = np.random.Philox(key=np.frombuffer(key[:16], dtype=np.uint64))
    return np.argsort(bits.random_raw(num_examples), kind="stable")


def train_batches(split: Split, order: np.ndarray, *, batch_size: int, skip_batches: int = 0) -> tf.data.Dataset:
    """The batches of an epoch in its `epoch_order`, from batch `skip_batches` on; the last partial batch is kept."""
    return split.batches(batch_size, order=order[skip_batches * batch_size :])


@dataclass(frozen=True, kw_only=True)
class DataRequest:
    """Which data a run wants, and how it keeps the decoded images.

    `specs` are the TFDS split specs of train, validation and test, `image_size` the pixels of a side.
    """

    dataset: str
    data_dir: str | None
    specs: tuple[str, str, str]
    image_size: int
    cache: Cache
    cache_dir: Path


def load_splits(
    request: DataRequest, *, check_stop: Callable[[], None], first_order: Callable[[int], np.ndarray] = np.arange
) -> Splits:
    """Load train, validation and test of a TFDS data set, downloading and preparing it if need be.

    Labels and encoded images are read, and decoding is left to the background: wait for images before they are used,
    and close the splits. `check_stop` is called now and then, here and in every later wait, and raises to leave.
    `first_order` guesses in which order those of train will be wanted first, as a permutation of so many indices; it is
    not asked where files cannot be read in any order.
    Raises DataUnavailable, DataCorrupt, InputError when it is no image classification data set or the classes of the
    splits do not fit together, InvalidSettings when the splits do not fit the data.
    """
    image_size = request.image_size
    builder = prepared_builder(request.dataset, request.data_dir)
    found = judge(builder, request.specs, cache=request.cache)
    examples = {
        name: Examples(builder, spec, found, image_size) for name, spec in zip(SPLIT_NAMES, request.specs, strict=True)
    }
    labels, digests = {}, {}
    for name, split in examples.items():
        labels[name], digests[name] = split.read(check_stop)
    composition = Composition.of(found.class_names, labels, digests)
    composition.check()
    parts = []
    for name, split in examples.items():
        order = first_order(split.size) if name == "train" and split.is_in_any_order else np.arange(split.size)
        pixels = allocate((split.size, image_size, image_size, 3), request.cache, request.cache_dir)
        parts.append(Part(name=name, order=order, images=split.images(order), pixels=pixels, corrupt=split.corrupt))
    decoding = Decoding(parts, check_stop)
    splits = {}
    for part in parts:
        images: ImageSource = examples[part.name]
        if part.pixels is not None:
            images = CachedImages(part.pixels, partial(decoding.wait_in_batch, part.name))
        splits[part.name] = Split(
            name=part.name, spec=examples[part.name].spec, labels=labels[part.name], images=images, decoding=decoding
        )
    return Splits(
        **splits,
        class_names=found.class_names,
        identity=identity(builder.info.full_name, found.class_names, labels, digests),
        composition=composition,
        decoding=decoding,
    )
