"""TFDS splits -> decoded uint8 images -> the exact batches of an epoch, and those of an evaluation.

Every example is read at the start and its label kept; images are decoded and resized once, in the background, so a
damaged one is found early, by name. An epoch is a permutation: example order is a pure function of (seed, phase,
epoch), whatever the cache, and a restart in the middle of an epoch begins at the right batch without reading the ones
before it.
This room knows nothing of models; augmentation happens on the device, in `model`.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from job import dataset as tfds_data
from job.dataset import SPLIT_NAMES
from job.decoding import Decoding, Part, cut_short
from job.errors import DataCorrupt
from job.images import (
    PARALLEL_DECODES,
    CachedImages,
    ImageSource,
    RecordImages,
    allocate,
    as_it_is,
    has_random_access,
    untuned,
)
from job.pixels import decode

CHECK_STOP_EVERY_EXAMPLES = 64
PREFETCHED_BATCHES = 2
PREFETCHED_LABELS = 64


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

    def wait(self, indices: np.ndarray | None = None, *, check_stop: Callable[[], None]) -> None:
        """Return when these images are decoded, or all of them.

        `check_stop` is called now and then, and raises to leave. Raises DataCorrupt when an image of any split is known
        to be damaged.
        """
        self.decoding.wait(self.name, indices, check_stop=check_stop)

    def batches(self, batch_size: int, *, order: np.ndarray | None = None) -> tf.data.Dataset:
        """(images uint8 [b, size, size, 3], labels int32 [b]) in `order`, which is 0, 1, 2, ... by default.

        A batch whose images are still to be decoded waits for them. Such a wait cannot be left: `wait` first.
        """
        order = np.arange(len(self)) if order is None else order
        labels = tf.data.Dataset.from_tensor_slices(self.labels[order]).batch(batch_size)
        batches = tf.data.Dataset.zip(self.images.batches(order, batch_size), labels)
        # Whoever leaves an iterator waits for what it prefetches, which may wait for images of a later batch.
        return untuned(batches.prefetch(PREFETCHED_BATCHES) if self.decoding.is_ready(self.name) else batches)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The data of a run; `identity` is what a resumed run must find again. Leaving the context ends the decode."""

    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    identity: dict[str, Any]
    decoding: Decoding

    def wait(self, *, check_stop: Callable[[], None]) -> None:
        """Return when every image is decoded; as `Split.wait`."""
        for split in (self.train, self.validation, self.test):
            split.wait(check_stop=check_stop)

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


def load_splits(
    *,
    dataset: str,
    data_dir: str | None,
    specs: tuple[str, str, str],
    image_size: int,
    cache: Literal["memory", "disk", "none"],
    cache_dir: Path,
    check_stop: Callable[[], None],
    first_order: Callable[[int], np.ndarray] = np.arange,
) -> Splits:
    """Load train, validation and test of a TFDS data set, downloading and preparing it if need be.

    Labels are read, and images left to the background: wait for them before they are used, and close the splits.
    `first_order` guesses in which order those of train will be wanted first, as a permutation of so many indices; it
    is not asked where files cannot be read in any order. `check_stop` is called now and then, and raises to leave.
    Raises DataUnavailable, DataCorrupt, InputError when it is no image classification data set, InvalidSettings when
    the splits do not fit the data.
    """
    builder = tfds_data.prepared_builder(dataset, data_dir)
    image_key, class_names = tfds_data.supervision(builder)
    tfds_data.check_specs(builder, specs)
    identity = tfds_data.identity(builder, specs)
    labels: dict[str, np.ndarray] = {}
    records: dict[str, RecordImages] = {}
    parts: list[Part] = []
    for name, spec in zip(SPLIT_NAMES, specs, strict=True):
        size = builder.info.splits[spec].num_examples
        order = np.arange(size)
        pixels = allocate((size, image_size, image_size, 3), cache, cache_dir)
        labels[name] = _read_labels(builder, spec, num_classes=len(class_names), check_stop=check_stop)
        if pixels is None or has_random_access(builder):
            order = first_order(size) if name == "train" else order
            records[name] = RecordImages(builder, spec, image_key, image_size)
            images = records[name].each(order)
        else:
            images = _each_in_turn(builder, spec, image_key, image_size)
        corrupt = partial(tfds_data.corrupt, builder, spec)
        parts.append(Part(name=name, order=order, images=images, pixels=pixels, corrupt=corrupt))
    decoding = Decoding(parts)
    splits = {}
    for part, spec in zip(parts, specs, strict=True):
        if part.pixels is None:
            source: ImageSource = records[part.name]
        else:
            source = CachedImages(part.pixels, partial(decoding.wait_in_batch, part.name))
        splits[part.name] = Split(name=part.name, spec=spec, labels=labels[part.name], images=source, decoding=decoding)
    return Splits(**splits, class_names=class_names, identity=identity, decoding=decoding)


def _examples(builder: tfds.core.DatasetBuilder, spec: str, image_key: str) -> tf.data.Dataset:
    """The examples of a split in order, their images still encoded."""
    return builder.as_dataset(
        split=spec, decoders={image_key: tfds.decode.SkipDecoding()}, read_config=tfds_data.read_config()
    )


def _each_in_turn(builder: tfds.core.DatasetBuilder, spec: str, image_key: str, image_size: int) -> tf.data.Dataset:
    """The images of a split as uint8 [size, size, 3], in the only order that its files can be read in."""
    return _examples(builder, spec, image_key).map(
        as_it_is(lambda example: decode(example[image_key], image_size)), num_parallel_calls=PARALLEL_DECODES
    )


def _read_labels(
    builder: tfds.core.DatasetBuilder, spec: str, *, num_classes: int, check_stop: Callable[[], None]
) -> np.ndarray:
    """The labels of a split, int32 [n]; every example is read, and its checksum verified where it has one."""
    image_key, label_key = builder.info.supervised_keys
    examples = _examples(builder, spec, image_key).map(as_it_is(lambda example: example[label_key]))
    found = untuned(examples.prefetch(PREFETCHED_LABELS)).as_numpy_iterator()
    labels = np.empty(builder.info.splits[spec].num_examples, dtype=np.int32)
    for index in range(len(labels)):
        if index % CHECK_STOP_EVERY_EXAMPLES == 0:
            check_stop()
        try:
            labels[index] = next(found)
        except (tf.errors.OpError, StopIteration) as error:
            raise cut_short(index, len(labels), error) from error
        if not 0 <= labels[index] < num_classes:
            raise DataCorrupt(
                f"example {index} has the label {labels[index]}, expected 0 to {num_classes - 1}",
                hint="choose splits whose examples are labelled",
            )
    return labels
