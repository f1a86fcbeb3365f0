"""The examples of one split as its files have them: in their order, and by index where the format allows it.

TFRecord files are read by `records`, ArrayRecord files by their own library, every other format by TFDS alone, from the
beginning. This module knows the format; what it gives does not depend on it.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from job.data.images import PARALLEL_DECODES, PREFETCHED_BATCHES, Cache, as_it_is, mapped, untuned
from job.data.source import Source
from job.data.split_spec import Specs, resolved
from job.data.tfds.description import Supervision, has_random_access, judge
from job.data.tfds.records import RecordReader, cut_short
from job.errors import DataCorrupt, InputError

EXAMPLES_READ_TOGETHER = 64


def read_data_set(
    builder: tfds.core.DatasetBuilder, specs: Specs, *, cache: Cache, check_stop: Callable[[], None]
) -> Source:
    """The examples of a prepared data set; `check_stop` is called now and then, and raises to leave.

    Raises InputError, InvalidSettings and DataCorrupt as `description.judge` does, DataCorrupt when the files are not
    as the description says, InputError when this installation cannot read them.
    """
    specs = resolved(specs, list(builder.info.splits))
    found = judge(builder, specs, cache=cache)
    examples = {name: TfdsExamples(builder, spec, found) for name, spec in specs.items()}
    for split in examples.values():
        split.read(check_stop)
    return Source(
        identity=builder.info.full_name,
        class_names=found.class_names,
        has_names=False,
        repair_hint=f"repair or remove them and prepare {builder.info.full_name} again in {builder.data_dir}",
        specs=specs,
        examples=examples,
    )


class TfdsExamples:
    """The `size` examples of `spec`; see `source.Examples`."""

    def __init__(self, builder: tfds.core.DatasetBuilder, spec: str, found: Supervision) -> None:
        self.spec = spec
        self.size: int = builder.info.splits[spec].num_examples
        self.labels = np.empty(self.size, dtype=np.int32)
        self.digests = np.empty((self.size, 32), dtype=np.uint8)
        self.unread: Mapping[int, str] = {}
        self._builder = builder
        self._found = found
        self._read_one: Callable[[int], bytes] | None = None
        if has_random_access(builder):
            # Before TensorFlow reads anything: sizes are believed from here on.
            num_records, self._read_one = _reader(builder, spec)
            if num_records != self.size:
                raise DataCorrupt(
                    f"the files of {spec} have {num_records:,} examples, and {builder.info.full_name} says "
                    f"{self.size:,}",
                    hint="prepare or copy the data set again",
                )

    @property
    def is_in_any_order(self) -> bool:
        return self._read_one is not None

    def mapped(self, order: np.ndarray, use: Callable[[tf.Tensor], tf.Tensor]) -> tf.data.Dataset:
        if self.is_in_any_order:
            return mapped(order, lambda index: use(self._example(index)[self._found.image_key]))
        load = as_it_is(lambda example: use(example[self._found.image_key]))
        return self._in_turn().map(load, num_parallel_calls=PARALLEL_DECODES)

    def read(self, check_stop: Callable[[], None], *, batch_size: int = EXAMPLES_READ_TOGETHER) -> None:
        """Fill `labels` and `digests`; the checksums of the files are verified where they have any."""
        label_key, image_key, num_classes = self._found.label_key, self._found.image_key, len(self._found.class_names)
        pairs = self._in_turn().map(as_it_is(lambda example: (example[label_key], example[image_key])))
        batches = untuned(pairs.batch(batch_size).prefetch(PREFETCHED_BATCHES)).as_numpy_iterator()
        for start in range(0, self.size, batch_size):
            check_stop()
            try:
                some_labels, images = next(batches)
                if len(images) < min(batch_size, self.size - start):
                    raise EOFError("the files have no more")
            except (tf.errors.OpError, StopIteration, EOFError) as error:
                if batch_size > 1:
                    # Once more, one by one, so that the error can say which example it is.
                    return self.read(check_stop, batch_size=1)
                raise cut_short(f"{start} of {self.size}", error) from error
            wrong = np.flatnonzero((some_labels < 0) | (some_labels >= num_classes))
            if wrong.size:
                raise DataCorrupt(
                    f"example {start + wrong[0]} of {self.spec} has the label {some_labels[wrong[0]]}, expected 0 to "
                    f"{num_classes - 1}",
                    hint="choose splits whose examples are labelled",
                )
            rows = slice(start, start + len(images))
            self.labels[rows] = some_labels
            hashed = b"".join(hashlib.sha256(image).digest() for image in images)
            self.digests[rows] = np.frombuffer(hashed, np.uint8).reshape(-1, 32)
        return None

    def names(self, indices: Sequence[int]) -> list[str]:
        """The file name of each, where the data set keeps it, and its place in the record files."""
        name_keys = [key for key in self._builder.info.features if "filename" in key or "file_name" in key]
        wanted, names = set(indices), []
        for index, example in enumerate(self._in_turn(add_tfds_id=True).as_numpy_iterator()):
            if index in wanted:
                parts = [example[key].decode(errors="replace") for key in (*name_keys, "tfds_id") if key in example]
                names.append(" at ".join(parts) or f"example {index}")
        return names

    def _in_turn(self, **options: Any) -> tf.data.Dataset:
        """The examples in order, their images encoded. One shard after the other: nothing else decides the order."""
        if _is_array_record(self._builder):
            return mapped(np.arange(self.size), self._example)
        return self._builder.as_dataset(
            split=self.spec,
            decoders={self._found.image_key: tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False, **options),
        )

    def _example(self, index: tf.Tensor) -> dict[str, tf.Tensor]:
        serialized = tf.ensure_shape(tf.numpy_function(self._read_one, [index], tf.string, stateful=False), [])
        decoders = {self._found.image_key: tfds.decode.SkipDecoding()}
        return self._builder.info.features.deserialize_example(serialized, decoders=decoders)


def _reader(builder: tfds.core.DatasetBuilder, spec: str) -> tuple[int, Callable[[int], bytes]]:
    """How many examples the files of a split have, and what reads a serialized one by index, in several threads."""
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
