"""Whether a classifier can be trained on a prepared TFDS data set, judged by its description: features, splits, files.

A start and a plan call the same function. This module reads no example and imports no TensorFlow: the types of features
are NumPy's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from job.data.split_ranges import split_ranges
from job.data.split_spec import Specs
from job.errors import DataCorrupt, InputError, InvalidSettings
from job.wording import numbered, some

MAX_NAMED = 20


@dataclass(frozen=True)
class Supervision:
    """The keys of the image and of the label in an example, and the names of the classes by label.

    Data that is not prepared yet may not know its classes: then there are no names.
    """

    image_key: str
    label_key: str
    class_names: tuple[str, ...]


def judge(
    builder: tfds.core.DatasetBuilder,
    specs: Specs,
    *,
    cache: str,
    is_there: Callable[[Path], bool] = Path.is_file,
) -> Supervision:
    """What a start finds out about prepared data before it reads an example.

    `is_there` says whether a file of the data is where the description says. Raises InputError when the features are
    not those of an image classification data set, InvalidSettings when the splits or the cache do not fit the data,
    DataCorrupt when a file is missing.
    """
    found = supervision(builder)
    if len(found.class_names) < 2:
        raise InputError(
            f"{builder.info.full_name}: {found.label_key!r} is {_kind(builder.info.features[found.label_key])}: "
            "expected two classes or more",
            hint="choose a THAW_DATASET of two classes or more",
        )
    split_ranges(specs, builder.info.splits, of=builder.info.full_name)
    if cache == "none" and not has_random_access(builder):
        raise InvalidSettings(
            f"THAW_CACHE=none reads TFRecord and ArrayRecord files, and {builder.info.full_name} is kept as "
            f"{builder.info.file_format}",
            hint="set THAW_CACHE=memory or disk",
        )
    wanted = {Path(part.filename) for spec in specs.values() for part in builder.info.splits[spec].file_instructions}
    missing = sorted(path.name for path in wanted if not is_there(path))
    if missing:
        raise DataCorrupt(
            f"{len(missing)} of the {len(wanted)} files of {builder.info.full_name} that the splits need are missing "
            f"in {builder.data_dir}: {some(missing, most=MAX_NAMED, shown=str)}",
            hint="prepare or copy the data set again",
        )
    return found


def has_random_access(builder: tfds.core.DatasetBuilder) -> bool:
    """Whether the examples of a data set can be read in any order."""
    formats = tfds.core.FileFormat
    return builder.info.file_format in (formats.TFRECORD, formats.ARRAY_RECORD)


def supervision(builder: tfds.core.DatasetBuilder) -> Supervision:
    """The image and the label of an example. Raises InputError when there is no such pair, or more than one.

    The supervised keys decide, in any order; where they name no such pair, or are absent, as in data that TFDS's short
    ways write, an only Image and an only ClassLabel among the features do.
    """
    info = builder.info
    features = dict(info.features) if isinstance(info.features, tfds.features.FeaturesDict) else {"": info.features}
    supervised = info.supervised_keys
    named = [key for key in supervised or () if isinstance(key, str) and key in features]
    for candidates in (named, list(features)):
        images = [key for key in candidates if _is_image(features[key])]
        labels = [key for key in candidates if isinstance(features[key], tfds.features.ClassLabel)]
        if len(images) == len(labels) == 1 and (candidates is not named or len(named) == len(supervised or ())):
            return _usable(info, images[0], labels[0])
    # First those that the keys name: they were meant.
    found = [f"  {key or 'an example'}: {_kind(features[key])}" for key in [*named, *(features.keys() - named)]]
    raise InputError(
        f"{info.full_name} is not an image classification data set: expected one Image and one ClassLabel, with "
        f"supervised keys that name them if there are more; its supervised keys are {supervised}, its features\n"
        + "\n".join(found[:MAX_NAMED]),
        hint=_hint(features),
    )


def _usable(info: tfds.core.DatasetInfo, image_key: str, label_key: str) -> Supervision:
    image, label = info.features[image_key], info.features[label_key]
    if not np.issubdtype(image.np_dtype, np.integer):
        raise InputError(
            f"{info.full_name}: {image_key!r} is {_kind(image)}: expected whole numbers, as PNG and JPEG files have",
            hint="prepare the data set again with images of uint8, 0 to 255",
        )
    return Supervision(image_key, label_key, tuple(label.names or ()))


def _is_image(feature: Any) -> bool:
    """A picture; the subclass of Image whose pixels are labels is none."""
    return isinstance(feature, tfds.features.Image) and not isinstance(feature, tfds.features.LabeledImage)


def _kind(feature: Any) -> str:
    """A feature in words: `Image of uint8`, `Tensor of uint8 [30, 40, 3]`, `Sequence of ClassLabel`."""
    name = type(feature).__name__
    if isinstance(feature, tfds.features.ClassLabel):
        return f"ClassLabel of {numbered(feature.num_classes or 0, 'class')}"
    if isinstance(feature, tfds.features.Sequence):
        return f"Sequence of {_kind(feature.feature)}"
    if isinstance(feature, tfds.features.FeaturesDict | tfds.features.Text):
        return name
    shape = f" {list(feature.shape)}" if type(feature) is tfds.features.Tensor else ""
    return f"{name} of {np.dtype(feature.np_dtype).name}{shape}"


def _hint(features: dict[str, Any]) -> str:
    """What to do about the feature that stands in for the one that is missing."""
    kinds = tfds.features
    images = [key for key, feature in features.items() if _is_image(feature)]
    labels = [key for key, feature in features.items() if isinstance(feature, kinds.ClassLabel)]
    if len(images) > 1 or len(labels) > 1:
        return "prepare the data set with supervised_keys=(IMAGE, LABEL), which choose one of each"
    if not images and any(type(feature) is kinds.Tensor for feature in features.values()):
        return "prepare the data set again with tfds.features.Image for the pixels, which are then kept as image files"
    if images and any(isinstance(feature, kinds.Sequence) for feature in features.values()):
        return "prepare the data set again with one tfds.features.ClassLabel an image: several labels are not learned"
    if images and any(isinstance(feature, kinds.Text) for feature in features.values()):
        return "prepare the data set again with tfds.features.ClassLabel(names=[...]) for the label"
    return "choose a THAW_DATASET that has an image and a class label"
