"""Small TFDS data sets for the tests: bright shapes on noise, learned in seconds.

The program never imports this: it reads the prepared files by name, as it would any data set that TFDS does not know.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from job.data.split_spec import SPLIT_NAMES

if TYPE_CHECKING:
    from job.data.splits import DataRequest

SIDE = 24

SPECS = ("train[:40]", "train[40:56]", "train[56:80]")
"""40, 16 and 24 examples."""
FIRST_OF_TEST = 56


def request(data_dir: Path | str, /, **changes: Any) -> "DataRequest":
    """The prepared `two_shapes` for three splits, in images of 16 pixels; keywords override.

    `specs` are given in the order of the splits.
    """
    from job.data.resizing import Resizing
    from job.data.splits import DataRequest

    values: dict[str, Any] = {
        "dataset": "two_shapes", "data_dir": str(data_dir), "specs": SPECS, "resizing": Resizing(16), "cache": "memory",
        "cache_dir": Path(data_dir),
    }  # fmt: skip
    values |= changes
    return DataRequest(**(values | {"specs": dict(zip(SPLIT_NAMES, values["specs"], strict=True))}))


def draw(kind: int, index: int) -> np.ndarray:
    """uint8 [24, 24, 3]: a disc, a bar across, or a bar down, on dark noise."""
    rng = np.random.default_rng([kind, index])
    image = rng.integers(0, 60, (SIDE, SIDE, 3))
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE // 2 + rng.integers(-2, 3)
    shape = (x**2 + y**2 < 36, np.abs(y) < 3, np.abs(x) < 3)[kind]
    image[shape] += 150
    return image.astype(np.uint8)


def pictures(indices: np.ndarray) -> np.ndarray:
    """The images of `two_shapes` at some indices, uint8 [n, 24, 24, 3]."""
    return np.stack([draw(index % 2, index) for index in indices])


def encode(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def encoded(index: int) -> bytes:
    """The image of `two_shapes` at an index, as PNG."""
    return encode(draw(index % 2, index))


def write_images(root: Path, num_images: int = 96) -> Path:
    """A folder for each class, `disc` and `bar`, with the images of `two_shapes` as PNG files."""
    for index in range(num_images):
        path = root / ("disc", "bar")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(index))
    return root


class _Shapes(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    CLASSES: ClassVar[list[str]]
    NUM_EXAMPLES = 96
    DAMAGED: ClassVar[set[int]] = set()

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "image/filename": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=self.CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(self.NUM_EXAMPLES):
            kind = index % len(self.CLASSES)
            content = encode(draw(kind, index))
            if index in self.DAMAGED:
                content = content[: len(content) // 2]
            yield (
                index,
                {
                    "image": io.BytesIO(content),
                    "image/filename": f"shape-{index}.png",
                    "label": self.CLASSES[kind],
                },
            )


class TwoShapes(_Shapes):
    CLASSES: ClassVar[list[str]] = ["disc", "bar"]


class ThreeShapes(_Shapes):
    CLASSES: ClassVar[list[str]] = ["disc", "across", "down"]


class DamagedShapes(_Shapes):
    CLASSES: ClassVar[list[str]] = ["disc", "bar"]
    DAMAGED: ClassVar[set[int]] = {7, 50}


features = tfds.features
_IMAGE, _LABEL = features.Image(shape=(SIDE, SIDE, 3)), features.ClassLabel(names=["disc", "bar"])

USABLE: dict[str, dict[str, Any]] = {
    "no_keys": {"features": {"image": _IMAGE, "label": _LABEL}, "keys": None},
    "reversed_keys": {"features": {"image": _IMAGE, "label": _LABEL}, "keys": ("label", "image")},
    "weighted": {
        "features": {"image": _IMAGE, "label": _LABEL, "w": features.Scalar(np.float32)},
        "keys": ("image", "label", "w"),
    },
    "chosen": {
        "features": {"image": _IMAGE, "mask": _IMAGE, "breed": _LABEL, "label": _LABEL}, "keys": ("image", "label")
    },
}  # fmt: skip
"""Data sets with one image and one class label, whatever else: the features, and the supervised keys."""

UNUSABLE: dict[str, dict[str, Any]] = {
    "two_images": {"features": {"front": _IMAGE, "back": _IMAGE, "label": _LABEL}, "keys": None},
    "two_labels": {"features": {"image": _IMAGE, "label": _LABEL, "breed": _LABEL}, "keys": None},
    "text_label": {"features": {"image": _IMAGE, "label": features.Text()}, "keys": ("image", "label")},
    "several_labels": {"features": {"image": _IMAGE, "labels": features.Sequence(_LABEL)}, "keys": ("image", "labels")},
    "pixels": {
        "features": {"image": features.Tensor(shape=(SIDE, SIDE, 3), dtype=np.uint8), "label": _LABEL},
        "keys": ("image", "label"),
    },
    "float_images": {
        "features": {
            "image": features.Image(shape=(SIDE, SIDE, 1), dtype=np.float32, encoding_format="png"), "label": _LABEL
        },
        "keys": ("image", "label"),
    },
    "one_class": {"features": {"image": _IMAGE, "label": features.ClassLabel(names=["disc"])}, "keys": None},
}  # fmt: skip
"""Data sets that a classifier cannot be trained on."""


def prepare(folder: Path, name: str, *, features: dict[str, Any], keys: Any, file_format: str | None = None) -> None:
    """Write `name` as prepared data of ten examples, five of each class."""

    def value(feature: Any, index: int) -> Any:
        if isinstance(feature, tfds.features.ClassLabel):
            return index % len(feature.names)
        if isinstance(feature, tfds.features.Sequence):
            return [index % 2]
        if isinstance(feature, tfds.features.Text | tfds.features.Scalar):
            return "disc" if isinstance(feature, tfds.features.Text) else 1.0
        return draw(index % 2, index)[..., : feature.shape[-1]].astype(feature.np_dtype)

    class Kind(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=keys,
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
            for index in range(10):
                yield index, {key: value(feature, index) for key, feature in features.items()}

    Kind.name = name
    Kind(data_dir=folder, file_format=file_format).download_and_prepare()
