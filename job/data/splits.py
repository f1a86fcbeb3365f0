"""TFDS splits -> decoded uint8 images -> the exact batches of an epoch, and those of an evaluation.

Every example is read at the start: its label and the SHA-256 of its image are kept, which tell this data from another.
Images are decoded and resized once, in the background, so a damaged one is found early, by name. An epoch is a
permutation: example order is a pure function of (seed, phase, epoch), whatever the cache, and a restart in the middle
of an epoch begins at the right batch without reading the ones before it.
This module knows nothing of models; augmentation happens on the device, in `model`.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from job.data import tfds_source as tfds_data
from job.data.composition import Composition, identity
from job.data.decoding import Decoding, Part, cut_short
from job.data.description import SPLIT_NAMES, Supervision, has_random_access, judge
from job.data.images import PARALLEL_DECODES, CachedImages, ImageSource, RecordImages, allocate, as_it_is, untuned
from job.data.pixels import decode
from job.data.records import RecordReader
from job.errors import DataCorrupt, InputError

EXAMPLES_READ_TOGETHER = 64
PREFETCHED_BATCHES = 2


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
    cache: Literal["memory", "disk", "none"]
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
    builder = tfds_data.prepared_builder(request.dataset, request.data_dir)
    found = judge(builder, request.specs, cache=request.cache)
    sources = {
        name: _source(builder, spec, found, image_size) for name, spec in zip(SPLIT_NAMES, request.specs, strict=True)
    }
    labels, digests = _read(sources, found, check_stop)
    composition = Composition.of(found.class_names, labels, digests)
    composition.check()
    parts = []
    for name, source in sources.items():
        order = first_order(source.size) if name == "train" and source.records is not None else np.arange(source.size)
        parts.append(
            Part(
                name=name,
                order=order,
                images=_images(source, order, found.image_key, image_size),
                pixels=allocate((source.size, image_size, image_size, 3), request.cache, request.cache_dir),
                corrupt=partial(tfds_data.corrupt, builder, source.spec, source.named_examples),
            )
        )
    decoding = Decoding(parts, check_stop)
    splits = {}
    for part, source in zip(parts, sources.values(), strict=True):
        images: ImageSource | None = source.records
        if part.pixels is not None:
            images = CachedImages(part.pixels, partial(decoding.wait_in_batch, part.name))
        assert images is not None, "judged before: without a cache files are read in any order"
        splits[part.name] = Split(
            name=part.name, spec=source.spec, labels=labels[part.name], images=images, decoding=decoding
        )
    return Splits(
        **splits,
        class_names=found.class_names,
        identity=identity(builder.info.full_name, found.class_names, labels, digests),
        composition=composition,
        decoding=decoding,
    )


@dataclass(frozen=True, kw_only=True)
class _Source:
    """One split as its files have it.

    `examples` are all in order, their images encoded; `named_examples` the same, where possible with their place.
    `records` reads them by index, where the files can be read so.
    """

    spec: str
    size: int
    examples: tf.data.Dataset
    named_examples: Callable[[], tf.data.Dataset]
    records: RecordImages | None


def _source(builder: tfds.core.DatasetBuilder, spec: str, found: Supervision, image_size: int) -> _Source:
    """Open a split; its files are as long as their description says. Raises DataCorrupt, InputError."""
    size = builder.info.splits[spec].num_examples
    records = None
    if has_random_access(builder):
        # Before anything is allocated, or read by TensorFlow: sizes are believed from here on.
        num_records, read = _reader(builder, spec)
        if num_records != size:
            raise DataCorrupt(
                f"the files of {spec} have {num_records:,} examples, and {builder.info.full_name} says {size:,}",
                hint="prepare or copy the data set again",
            )
        records = RecordImages(read, builder.info.features, found.image_key, image_size)

    def in_turn(**options: Any) -> tf.data.Dataset:
        return builder.as_dataset(
            split=spec,
            decoders={found.image_key: tfds.decode.SkipDecoding()},
            read_config=tfds_data.read_config(**options),
        )

    if _is_array_record(builder):
        assert records is not None
        examples = records.examples(np.arange(size))
        return _Source(spec=spec, size=size, examples=examples, named_examples=lambda: examples, records=records)
    return _Source(
        spec=spec, size=size, examples=in_turn(), named_examples=partial(in_turn, add_tfds_id=True), records=records
    )


def _reader(builder: tfds.core.DatasetBuilder, spec: str) -> tuple[int, Callable[[int], bytes]]:
    """How many examples the files of a split have, and what reads a serialized one by index."""
    if not _is_array_record(builder):
        reader = RecordReader(builder.info.splits[spec].file_instructions)
        return len(reader), reader.read
    try:
        source = builder.as_data_source(split=spec, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    except ImportError as error:
        raise InputError(
            f"{builder.info.full_name} is kept as ArrayRecord files, which this installation cannot read: {error}",
            hint="pip install array_record, or prepare the data set again with file_format='tfrecord'",
        ) from error
    return len(source), source.__getitem__


def _is_array_record(builder: tfds.core.DatasetBuilder) -> bool:
    """TFDS 4.9 reads such files by index alone, with no `as_dataset`."""
    return bool(builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD)


def _images(source: _Source, order: np.ndarray, image_key: str, image_size: int) -> tf.data.Dataset:
    """Images as uint8 [size, size, 3] in `order`; that is the only one where files cannot be read in any order."""
    if source.records is not None:
        return source.records.each(order)
    return source.examples.map(
        as_it_is(lambda example: decode(example[image_key], image_size)), num_parallel_calls=PARALLEL_DECODES
    )


def _read(
    sources: Mapping[str, _Source], found: Supervision, check_stop: Callable[[], None]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """By split the labels, int32 [n], and the SHA-256 of each encoded image, uint8 [n, 32].

    Every example is read, and its checksum verified where it has one.
    """
    found_here = {name: _read_split(source, found, check_stop) for name, source in sources.items()}
    return (
        {name: labels for name, (labels, _) in found_here.items()},
        {name: digests for name, (_, digests) in found_here.items()},
    )


def _read_split(
    source: _Source, found: Supervision, check_stop: Callable[[], None], *, batch_size: int = EXAMPLES_READ_TOGETHER
) -> tuple[np.ndarray, np.ndarray]:
    pairs = source.examples.map(as_it_is(lambda example: (example[found.label_key], example[found.image_key])))
    batches = untuned(pairs.batch(batch_size).prefetch(PREFETCHED_BATCHES)).as_numpy_iterator()
    labels, digests = np.empty(source.size, dtype=np.int32), np.empty((source.size, 32), dtype=np.uint8)
    for start in range(0, source.size, batch_size):
        check_stop()
        try:
            some_labels, images = next(batches)
            if len(images) < min(batch_size, source.size - start):
                raise EOFError("the files have no more")
        except (tf.errors.OpError, StopIteration, EOFError) as error:
            if batch_size > 1:
                # Once more, one by one: which example it is should be told.
                return _read_split(source, found, check_stop, batch_size=1)
            raise cut_short(start, source.size, error) from error
        wrong = np.flatnonzero((some_labels < 0) | (some_labels >= len(found.class_names)))
        if wrong.size:
            raise DataCorrupt(
                f"example {start + wrong[0]} of {source.spec} has the label {some_labels[wrong[0]]}, expected 0 to "
                f"{len(found.class_names) - 1}",
                hint="choose splits whose examples are labelled",
            )
        rows = slice(start, start + len(images))
        labels[rows] = some_labels
        digests[rows] = np.frombuffer(b"".join(hashlib.sha256(image).digest() for image in images), np.uint8).reshape(
            -1, 32
        )
    return labels, digests
