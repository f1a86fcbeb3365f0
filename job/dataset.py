"""Finding a TFDS data set: prepared, downloaded, or told in plain words why not.

What is known of a data set before its images are read: that it is here, that it is one of images and classes, that the
splits fit its size, and what identifies it. This room reads no image.
"""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import requests
import tensorflow_datasets as tfds
import urllib3
from absl import logging

import job.sample  # noqa: F401  registers the built-in data set with TFDS
from job.errors import DataCorrupt, DataUnavailable, InputError, InvalidSettings

MAX_NAMED_EXAMPLES = 20

REACH_TRIES = 3
REACH_BACKOFF_SECONDS = 1.0
REACH_TIMEOUT_SECONDS = 10

SPLIT_NAMES = ("train", "validation", "test")

_Range = tuple[str, int, int]
"""The name of a split, and the examples of it from one index up to another."""


def read_config(**options: Any) -> tfds.ReadConfig:
    """One shard after the other: the order of examples depends on nothing else."""
    return tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False, **options)


def find_builder(dataset: str, data_dir: str | None) -> tuple[tfds.core.DatasetBuilder, bool]:
    """The builder of a data set, and whether its data is prepared. Raises DataUnavailable when it cannot be either."""
    place = data_dir or "~/tensorflow_datasets"
    hint = _hint(dataset)
    try:
        builder = tfds.builder(dataset, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise DataUnavailable(f"there is no data set {dataset!r}: not in {place}, not in TFDS", hint=hint) from error
    except Exception as error:
        # What a broken dataset_info.json raises depends on where it is broken.
        raise DataUnavailable(f"data set {dataset!r} in {place} cannot be opened: {error}", hint=hint) from error
    with _without_tfds_chatter():
        is_prepared = builder.is_prepared()
    if not is_prepared:
        _reach(builder, hint)
    return builder, is_prepared


def prepared_builder(dataset: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """The builder of a data set whose data is prepared, now if not before. Raises DataUnavailable."""
    builder, _ = find_builder(dataset, data_dir)
    try:
        with _without_tfds_chatter():
            builder.download_and_prepare()
    except Exception as error:
        # What a download raises depends on the data set and the network; all of it means the data is not here.
        raise DataUnavailable(
            f"data set {builder.info.full_name} is not prepared in {builder.data_dir}, and cannot be downloaded: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            hint=_hint(dataset),
        ) from error
    return builder


def _hint(dataset: str) -> str:
    return (
        f"either point THAW_DATA_DIR at a folder that holds {dataset} as prepared TFDS data, "
        "or start where there is a network, which downloads it, or try `make demo`, whose data is built in"
    )


@contextlib.contextmanager
def _without_tfds_chatter() -> Iterator[None]:
    """TFDS announces what it does with print, progress bars and warnings that data is not prepared yet."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        logging.set_verbosity(verbosity)


def _reach(builder: tfds.core.DatasetBuilder, hint: str) -> None:
    """Raise DataUnavailable when the places that TFDS would download from do not answer.

    TFDS itself tries each for more than three minutes before it gives up.
    """
    urls = list(builder.url_infos or ())
    with requests.Session() as session:
        retries = urllib3.Retry(total=REACH_TRIES, backoff_factor=REACH_BACKOFF_SECONDS, raise_on_status=False)
        for scheme in ("http://", "https://"):
            session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=retries))
        for url in urls[:1]:
            try:
                session.head(url, timeout=REACH_TIMEOUT_SECONDS)
            except requests.RequestException as error:
                raise DataUnavailable(
                    f"data set {builder.info.full_name} is not prepared in {builder.data_dir}, and there is no way "
                    f"to {url} from here: {type(error).__name__}",
                    hint=hint,
                ) from error


def supervision(builder: tfds.core.DatasetBuilder) -> tuple[str, tuple[str, ...]]:
    """The key of the image and the names of the classes."""
    keys, features = builder.info.supervised_keys, builder.info.features
    if keys and len(keys) == 2:
        image, label = features[keys[0]], features[keys[1]]
        is_classification = isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel)
        if is_classification and (label.num_classes or 0) >= 2:
            return keys[0], tuple(label.names)
    raise InputError(
        f"{builder.info.full_name} is not an image classification data set: its supervised keys are {keys}",
        hint="choose a THAW_DATASET whose supervised keys are an image and a class label of two classes or more",
    )


def check_specs(builder: tfds.core.DatasetBuilder, specs: tuple[str, str, str]) -> None:
    """Judge the splits now that sizes are known: they exist, have examples, and share none."""
    sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    known = f"{builder.info.full_name} has {', '.join(f'{name} ({size:,})' for name, size in sizes.items())}"
    problems: list[str] = []
    taken: list[tuple[str, list[_Range]]] = []
    for name, spec in zip(SPLIT_NAMES, specs, strict=True):
        setting = f"THAW_{name.upper()}_SPLIT={spec!r}"
        try:
            parts = tfds.core.ReadInstruction.from_spec(spec).to_absolute(builder.info.splits)
        except (ValueError, KeyError, AssertionError) as error:
            problems.append(f"{setting}: {str(error).splitlines()[0]}; {known}")
            continue
        ranges = [
            (part.splitname, part.from_ or 0, sizes[part.splitname] if part.to is None else part.to) for part in parts
        ]
        if not any(start < stop for _, start, stop in ranges):
            problems.append(f"{setting}: has no examples; {known}")
        if any(_share(a, b) for a, b in itertools.combinations(ranges, 2)):
            problems.append(f"{setting}: names some examples twice; {known}")
        for other, other_ranges in taken:
            if any(_share(a, b) for a in ranges for b in other_ranges):
                problems.append(f"{setting}: overlaps {other}: the three splits must be disjoint; {known}")
        taken.append((setting, ranges))
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise InvalidSettings(f"the splits do not fit the data; nothing was trained.\n{lines}")


def _share(a: _Range, b: _Range) -> bool:
    return a[0] == b[0] and max(a[1], b[1]) < min(a[2], b[2])


def corrupt(builder: tfds.core.DatasetBuilder, spec: str, damaged: Mapping[int, str]) -> DataCorrupt:
    """An error that names the damaged examples by file name, where the data set keeps it, and place, and says why."""
    features = builder.info.features
    name_keys = [key for key in features if "filename" in key or "file_name" in key]
    examples = builder.as_dataset(
        split=spec,
        decoders={builder.info.supervised_keys[0]: tfds.decode.SkipDecoding()},
        read_config=read_config(add_tfds_id=True),
    )
    wanted, names = set(list(damaged)[:MAX_NAMED_EXAMPLES]), []
    for index, example in enumerate(examples.as_numpy_iterator()):
        if index in wanted:
            parts = [example[key].decode(errors="replace") for key in (*name_keys, "tfds_id")]
            names.append(f"{' at '.join(parts)}: {damaged[index]}")
    more = f"\n  and {len(damaged) - len(names)} more" if len(damaged) > len(names) else ""
    listed = "\n".join(f"  {name}" for name in names)
    return DataCorrupt(
        f"{len(damaged)} of the images of {spec} cannot be decoded:\n{listed}{more}",
        hint=f"repair or remove them and prepare {builder.info.full_name} again in {builder.data_dir}",
    )


def identity(builder: tfds.core.DatasetBuilder, specs: tuple[str, str, str]) -> dict[str, Any]:
    """What tells this data from another of the same name: version, sizes, and the shards' sizes."""
    shards = {
        name: [info.num_examples, info.num_bytes, list(info.shard_lengths)]
        for name, info in sorted(builder.info.splits.items())
    }
    text = json.dumps([builder.info.full_name, shards])
    return {
        "dataset": builder.info.full_name,
        "splits": {name: builder.info.splits[spec].num_examples for name, spec in zip(SPLIT_NAMES, specs, strict=True)},
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
