"""Small TFDS data sets for the tests: bright shapes on noise, learned in seconds.

The program never imports this: it reads the prepared files by name, as it would any data set that TFDS does not know.
"""

import io
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

SIDE = 24


def draw(kind: int, index: int) -> np.ndarray:
    """uint8 [24, 24, 3]: a disc, a bar across, or a bar down, on dark noise."""
    rng = np.random.default_rng([kind, index])
    image = rng.integers(0, 60, (SIDE, SIDE, 3))
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE // 2 + rng.integers(-2, 3)
    shape = (x**2 + y**2 < 36, np.abs(y) < 3, np.abs(x) < 3)[kind]
    image[shape] += 150
    return image.astype(np.uint8)


def encode(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


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
