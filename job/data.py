"""TFDS splits -> decoded uint8 images -> the exact batches of an epoch, and those of an evaluation.

Every example is decoded and resized once before training begins, so a damaged image is found at the start, by name.
After that an epoch is a permutation: example order is a pure function of (seed, phase, epoch), whatever the cache,
and a restart in the middle of an epoch begins at the right batch without reading the ones before it.
This room knows nothing of models; augmentation happens on the device, in `model`.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from job import dataset as tfds_data
from job.dataset import SPLIT_NAMES
from job.errors import DataCorrupt
from job.images import PARALLEL_DECODES, CachedImages, ImageSource, RecordImages, allocate, decode

CHECK_STOP_EVERY_EXAMPLES = 64
PREFETCHED_BATCHES = 2
PREFETCHED_EXAMPLES = 64


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split, ready to be read in any order; `labels` is int32 [examples], 0 to classes - 1."""

    spec: str
    labels: np.ndarray
    images: ImageSource

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, batch_size: int, *, order: np.ndarray | None = None) -> tf.data.Dataset:
        """(images uint8 [b, size, size, 3], labels int32 [b]) in `order`, which is 0, 1, 2, ... by default."""
        order = np.arange(len(self)) if order is None else order
        labels = tf.data.Dataset.from_tensor_slices(self.labels[order]).batch(batch_size)
        return _untuned(
            tf.data.Dataset.zip(self.images.batches(order, batch_size), labels).prefetch(PREFETCHED_BATCHES)
        )


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The data of a run; `identity` is what a resumed run must find again."""

    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    identity: dict[str, Any]


def _untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """`dataset`, whose parallelism and buffers are given: nothing is left for tf.data to tune while it runs.

    The thread that would tune wakes up at growing intervals, and whoever leaves an iterator before its end waits for it
    (TensorFlow 2.21): for as long again as the iterator has lived.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def epoch_order(num_examples: int, *, seed: int, phase: str, epoch: int) -> np.ndarray:
    """A permutation of 0 .. num_examples - 1 as int64, a pure function of its arguments.

    Ranks of raw Philox bits: NumPy keeps the bits of a generator stable between versions, its shuffles not.
    """
    key = hashlib.sha256(f"order/{seed}/{phase}/{epoch}".encode()).digest()
    bits = np.random.Philox(key=np.frombuffer(key[:16], dtype=np.uint64))
    return np.argsort(bits.random_raw(num_examples), kind="stable")


def train_batches(
    split: Split, *, batch_size: int, seed: int, phase: str, epoch: int, skip_batches: int = 0
) -> tf.data.Dataset:
    """The batches of one epoch, from batch `skip_batches` on; the last partial batch is kept."""
    order = epoch_order(len(split), seed=seed, phase=phase, epoch=epoch)
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
) -> Splits:
    """Load train, validation and test of a TFDS data set, downloading and preparing it if need be.

    `check_stop` is called now and then, and raises to leave. Raises DataUnavailable, DataCorrupt, InputError when it
    is no image classification data set, InvalidSettings when the splits do not fit the data.
    """
    builder = tfds_data.prepared_builder(dataset, data_dir)
    image_key, class_names = tfds_data.supervision(builder)
    tfds_data.check_specs(builder, specs)
    loaded = tfds.load(
        dataset,
        split=list(specs),
        as_supervised=True,
        data_dir=data_dir,
        download=False,
        decoders={image_key: tfds.decode.SkipDecoding()},
        read_config=tfds_data.read_config(),
    )
    splits = {}
    for name, spec, examples in zip(SPLIT_NAMES, specs, loaded, strict=True):
        size = builder.info.splits[spec].num_examples
        pixels = allocate((size, image_size, image_size, 3), cache, cache_dir)
        labels = np.empty(size, dtype=np.int32)
        damaged = _decode_all(
            examples,
            image_size,
            labels=labels,
            pixels=pixels,
            num_classes=len(class_names),
            check_stop=check_stop,
        )
        if damaged:
            raise tfds_data.corrupt(builder, spec, damaged)
        if pixels is None:
            images: ImageSource = RecordImages(builder, spec, image_key, image_size)
        else:
            images = CachedImages(pixels)
        splits[name] = Split(spec=spec, labels=labels, images=images)
    return Splits(**splits, class_names=class_names, identity=tfds_data.identity(builder, specs))


def _decode_all(
    examples: tf.data.Dataset,
    image_size: int,
    *,
    labels: np.ndarray,
    pixels: np.ndarray | None,
    num_classes: int,
    check_stop: Callable[[], None],
) -> list[int]:
    """Decode every example in order into `labels` and `pixels`; returns the indices of those that cannot be."""
    decoded = examples.map(lambda image, label: (decode(image, image_size), label), num_parallel_calls=PARALLEL_DECODES)
    iterator = _untuned(decoded.prefetch(PREFETCHED_EXAMPLES)).as_numpy_iterator()
    damaged = []
    for index in range(len(labels)):
        if index % CHECK_STOP_EVERY_EXAMPLES == 0:
            check_stop()
        try:
            image, labels[index] = next(iterator)
        except tf.errors.InvalidArgumentError:
            damaged.append(index)
            continue
        except (tf.errors.OpError, StopIteration) as error:
            raise DataCorrupt(
                f"the prepared data ends or is damaged at example {index} of {len(labels)}: {error}",
                hint="prepare or copy the data set again",
            ) from error
        if not 0 <= labels[index] < num_classes:
            raise DataCorrupt(
                f"example {index} has the label {labels[index]}, expected 0 to {num_classes - 1}",
                hint="choose splits whose examples are labelled",
            )
        if pixels is not None:
            pixels[index] = image
    return damaged
