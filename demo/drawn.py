"""The built-in data set of the demo: cats and dogs drawn by program, served by TFDS like any real data set.

It must not read the network or any file, and nothing but the shape of an animal may show its class.
"""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import tensorflow_datasets as tfds
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFilter

LABELS = ("cat", "dog")

Point = tuple[float, float]
Points = NDArray[np.float64]
Color = tuple[int, int, int]

# Examples depend on this and their index alone; a change of a drawing needs a new VERSION.
_SEED = 20_240_613
# Drawn this many times larger and reduced at the end, because ImageDraw does not smooth edges.
_SUPERSAMPLING = 2
_HARD_FRACTION = 0.06

_GINGER, _CREAM, _WHITE = (214, 134, 62), (236, 205, 160), (238, 236, 230)
_BLACK, _GREY, _BLUE = (52, 48, 50), (128, 126, 130), (108, 118, 136)
_CHESTNUT, _CHOCOLATE, _FAWN = (122, 82, 52), (84, 60, 46), (168, 148, 128)
# One palette for both classes, so that the color of the fur says nothing about the class.
_FURS = (_GINGER, _CREAM, _WHITE, _BLACK, _GREY, _BLUE, _CHESTNUT, _CHOCOLATE, _FAWN)
_IRISES = ((120, 168, 72), (206, 164, 52), (92, 148, 190), (122, 78, 42), (168, 120, 56))
_INK, _SHINE, _PINK, _TONGUE = (34, 28, 30), (255, 255, 255), (226, 146, 150), (220, 108, 120)


class DrawnCatsVsDogs(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of `drawn_cats_vs_dogs`: one split, `train`, with the features of `cats_vs_dogs`."""

    VERSION = tfds.core.Version("1.0.0")
    num_examples: ClassVar[int] = 2_000

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Heads of cats and dogs, drawn by program. Only the shape tells the class.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "image/filename": tfds.features.Text(),
                    "label": tfds.features.ClassLabel(names=list(LABELS)),
                }
            ),
            supervised_keys=("image", "label"),
            # The order of `draw_label` balances every slice; the shuffle of TFDS would do so only on average.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # Nothing is downloaded.
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(self.num_examples):
            label = draw_label(index)
            filename = f"{label}.{index}.jpg"
            yield index, {"image": encode_example(index), "image/filename": filename, "label": label}


def draw_label(index: int) -> str:
    """Label of example `index`: each pair (2n, 2n + 1) holds one cat and one dog in random order."""
    pair, position = divmod(index, 2)
    first = int(np.random.default_rng([_SEED, pair, 0]).integers(2))
    return LABELS[(first + position) % 2]


def encode_example(index: int) -> bytes:
    """JPEG bytes of example `index`."""
    buffer = io.BytesIO()
    draw_example(index).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def draw_example(index: int) -> Image.Image:
    """RGB drawing of example `index`, 96 to 160 pixels a side: a pure function of `index`."""
    rng = np.random.default_rng([_SEED, index, 1])
    side, stretch = rng.uniform(108, 143), math.sqrt(rng.uniform(0.8, 1.25))
    width, height = round(side * stretch), round(side / stretch)
    image = _draw_background(rng, (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    is_hard, is_cropped = rng.random() < _HARD_FRACTION, rng.random() < 0.5
    pen = _pose(rng, image, is_cropped=is_hard and is_cropped)
    coat = Coat.sample(rng)
    _draw_shoulders(pen, coat)
    if draw_label(index) == "cat":
        _draw_cat(rng, pen, coat)
    else:
        _draw_dog(rng, pen, coat)
    if is_hard and not is_cropped:
        _draw_bar(rng, pen)
    return _photograph(rng, image.reduce(_SUPERSAMPLING))


@dataclass(frozen=True, kw_only=True)
class Coat:
    """Colors and marking of one animal, sampled alike for both classes."""

    fur: Color
    light: Color
    dark: Color
    patch: Color
    collar: Color | None
    iris: Color
    marking: str

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Self:
        base, other = rng.choice(len(_FURS), size=2, replace=False)
        fur = _to_color(_FURS[base] + rng.integers(-14, 15, size=3))
        return cls(
            fur=fur,
            light=_mix(fur, (255, 250, 240), rng.uniform(0.3, 0.65)),
            dark=_mix(fur, (20, 12, 10), rng.uniform(0.28, 0.45)),
            patch=_FURS[other],
            collar=_any_color(rng) if rng.random() < 0.4 else None,
            iris=_IRISES[rng.integers(len(_IRISES))],
            marking=str(rng.choice(["none", "blaze", "eye patch", "stripes"])),
        )


@dataclass(frozen=True, kw_only=True)
class Pen:
    """Draws in the frame of a head: origin at its center, x right, y down, one unit about half its width."""

    draw: ImageDraw.ImageDraw
    origin: Point
    unit: float
    angle: float
    turn: float

    def polygon(self, points: ArrayLike, fill: Color) -> None:
        """Fill a polygon."""
        self.draw.polygon(self._to_pixels(points), fill=fill)

    def ellipse(self, center: Point, radii: Point, fill: Color, *, tilt: float = 0.0) -> None:
        """Fill an ellipse turned clockwise by `tilt` radians."""
        self.polygon(_arc(center, radii, tilt=tilt), fill)

    def line(self, points: ArrayLike, fill: Color, *, width: float) -> None:
        """Stroke a line `width` units wide."""
        num_pixels = max(1, round(width * self.unit))
        self.draw.line(self._to_pixels(points), fill=fill, width=num_pixels, joint="curve")

    def _to_pixels(self, points: ArrayLike) -> list[float]:
        pixels = _rotate(np.asarray(points), self.angle) * self.unit + self.origin
        return [float(coordinate) for coordinate in pixels.flat]


def _rotate(points: Points, angle: float) -> Points:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.asarray(points @ np.array([(cos, sin), (-sin, cos)]), dtype=np.float64)


def _arc(center: ArrayLike, radii: Point | Points, *, tilt: float = 0, degrees: Point = (0, 360)) -> Points:
    angles = np.radians(np.linspace(*degrees, num=25))
    return _rotate(np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii, tilt) + np.asarray(center)


def _pose(rng: np.random.Generator, image: Image.Image, *, is_cropped: bool) -> Pen:
    width, height = image.size
    # A head with its ears and a little of its shoulders takes 2.8 by 3 units.
    unit = min(width / 2.8, height / 3.0) * rng.uniform(0.82, 1.0)
    x, y = rng.uniform(-0.5, 0.5, size=2) * (width - 2.8 * unit, height - 3.0 * unit)
    if is_cropped:
        x = rng.choice([-1.0, 1.0]) * (width / 2 - rng.uniform(0.3, 0.6) * unit)
    origin = (width / 2 + x, height / 2 + y + 0.15 * unit)
    angle, turn = rng.uniform(-0.22, 0.22), rng.uniform(-0.16, 0.16)
    return Pen(draw=ImageDraw.Draw(image), origin=origin, unit=unit, angle=angle, turn=turn)


def _draw_shoulders(pen: Pen, coat: Coat) -> None:
    pen.ellipse((0.0, 2.1), (1.1, 1.5), coat.dark)
    pen.ellipse((0.0, 2.2), (0.98, 1.5), coat.fur)
    if coat.collar is not None:
        pen.polygon(_arc((0.0, 0.72), (0.78, 0.5), degrees=(10, 170)), coat.collar)


def _draw_skull(pen: Pen, coat: Coat, *, radii: Point) -> None:
    pen.ellipse((0.0, 0.0), (radii[0] + 0.06, radii[1] + 0.06), coat.dark)
    pen.ellipse((0.0, 0.0), radii, coat.fur)
    x, top = 0.5 * pen.turn, 0.12 - radii[1]
    if coat.marking == "blaze":
        pen.polygon([(x - 0.1, top), (x + 0.1, top), (x + 0.2, 0.4), (x - 0.2, 0.4)], coat.light)
    elif coat.marking == "eye patch":
        pen.ellipse((x + 0.4, -0.2), (0.36, 0.38), coat.patch)
    elif coat.marking == "stripes":
        for offset in (-0.28, 0.0, 0.28):
            left = x + offset - 0.08
            pen.polygon([(left, top), (left + 0.16, top), (x + 0.7 * offset, -0.4)], coat.dark)


def _draw_cat(rng: np.random.Generator, pen: Pen, coat: Coat) -> None:
    spread, height, droop = rng.uniform(0.0, 0.14), rng.uniform(1.25, 1.5), rng.uniform(-0.1, 0.15)
    for side in (-1, 1):
        tip = (0.88 + spread) * side
        pen.polygon([(1.0 * side, -0.1), (tip + 0.04 * side, -height), (0.1 * side, -0.72)], coat.dark)
        pen.polygon([(0.93 * side, -0.2), (tip, 0.1 - height), (0.2 * side, -0.7)], coat.fur)
        inside = [(0.82 * side, -0.4), (tip - 0.05 * side, 0.28 - height), (0.36 * side, -0.7)]
        pen.polygon(inside, _mix(_PINK, coat.dark, 0.3))
        pen.polygon([(0.6 * side, 0.55), (1.28 * side, 0.42), (0.95 * side, 0.1)], coat.fur)
    _draw_skull(pen, coat, radii=(1.04, 0.84))
    nose, nose_color = 1.1 * pen.turn, _mix(_PINK, _INK, rng.uniform(0.0, 0.6))
    pen.ellipse((nose, 0.62), (0.15, 0.12), coat.light)
    whisker = _mix(coat.fur, _SHINE if sum(coat.fur) < 480 else _INK, 0.8)
    for side in (-1, 1):
        x = 0.6 * pen.turn + 0.44 * side
        pen.ellipse((x, -0.1), (0.27, 0.21), coat.dark, tilt=0.3 * side)
        pen.ellipse((x, -0.1), (0.23, 0.17), coat.iris, tilt=0.3 * side)
        pen.ellipse((x, -0.1), (0.055, 0.16), _INK)
        pen.ellipse((x - 0.06, -0.17), (0.04, 0.04), _SHINE)
        pen.ellipse((pen.turn + 0.2 * side, 0.42), (0.27, 0.2), coat.light)
        pen.line(_arc((nose + 0.12 * side, 0.42), (0.12, 0.12), degrees=(0, 180)), _INK, width=0.045)
        for row in (-1, 0, 1):
            end = (1.32 * side, 0.42 + 0.24 * row + droop)
            pen.line([(pen.turn + 0.3 * side, 0.42 + 0.07 * row), end], whisker, width=0.03)
    pen.polygon([(nose - 0.12, 0.23), (nose + 0.12, 0.23), (nose, 0.39)], nose_color)


def _draw_dog(rng: np.random.Generator, pen: Pen, coat: Coat) -> None:
    flare, length = rng.uniform(0.05, 0.3), rng.uniform(0.55, 0.75)
    _draw_skull(pen, coat, radii=(0.82, 0.98))
    nose = 1.2 * pen.turn
    for side in (-1, 1):
        ear = (side * (0.84 + 0.35 * flare), length - 0.62)
        pen.ellipse(ear, (0.31, length + 0.05), coat.dark, tilt=-side * flare)
        pen.ellipse(ear, (0.25, length - 0.02), _mix(coat.fur, coat.dark, 0.5), tilt=-side * flare)
        x = 0.6 * pen.turn + 0.34 * side
        pen.ellipse((x, -0.22), (0.17, 0.18), coat.dark)
        pen.ellipse((x, -0.22), (0.135, 0.145), coat.iris)
        pen.ellipse((x, -0.22), (0.09, 0.1), _INK)
        pen.ellipse((x - 0.05, -0.27), (0.04, 0.04), _SHINE)
        pen.line(_arc((x, -0.35), (0.16, 0.14), degrees=(205, 335)), coat.dark, width=0.05)
    if rng.random() < 0.5:
        pen.ellipse((nose, 0.98), (0.17, 0.28), _TONGUE)
    pen.ellipse((nose, 0.5), (0.5, 0.46), _mix(coat.light, coat.dark, 0.4))
    pen.ellipse((nose, 0.5), (0.46, 0.43), coat.light)
    for side in (-1, 1):
        pen.line(_arc((nose + 0.19 * side, 0.62), (0.19, 0.16), degrees=(0, 180)), _INK, width=0.05)
    pen.line([(nose, 0.35), (nose, 0.64)], _INK, width=0.045)
    pen.ellipse((nose, 0.28), (0.25, 0.17), _INK)
    pen.ellipse((nose - 0.08, 0.22), (0.07, 0.035), _GREY)


def _draw_bar(rng: np.random.Generator, pen: Pen) -> None:
    y, angle = rng.uniform(-0.6, 0.5), rng.uniform(0, math.pi)
    bar = _rotate(np.array([(-9.0, y), (9.0, y)]), angle)
    pen.line(bar, _any_color(rng), width=rng.uniform(0.2, 0.35))


def _draw_background(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    # A few random pixels, enlarged smoothly, are a gradient or clouds.
    num_cells = int(rng.choice([2, 2, 3, 5]))
    cells = [[_any_color(rng) for _ in range(num_cells)] for _ in range(num_cells)]
    image = Image.fromarray(np.array(cells, dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    if rng.random() < 0.6:
        return image
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(4, 10)):
        ellipse = _arc(rng.random(2), rng.uniform(0.06, 0.3, size=2), tilt=rng.uniform(0, math.pi))
        # Every eighth point of an ellipse makes a triangle, every sixth a quadrangle.
        draw.polygon((ellipse[:: rng.choice([1, 6, 8])] * size).ravel().tolist(), fill=_any_color(rng))
    # The coarser it is before it is enlarged again, the further out of focus.
    return image.reduce(int(rng.integers(4, 17))).resize(size, Image.Resampling.BICUBIC)


def _photograph(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    pixels = np.asarray(image.filter(ImageFilter.BoxBlur(rng.uniform(0.0, 1.0))), dtype=np.float32)
    height, width, _ = pixels.shape
    down, right = rng.uniform(-0.25, 0.25, size=2)
    light = np.add.outer(down * np.linspace(-1, 1, height), right * np.linspace(-1, 1, width))
    exposure = rng.uniform(0.75, 1.15) * rng.uniform(0.9, 1.1, size=3)
    gain = (light[..., np.newaxis] + exposure).astype(np.float32)
    noise = rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(rng.uniform(1.0, 8.0))
    return Image.fromarray(np.clip(pixels * gain + noise, 0, 255).astype(np.uint8))


def _any_color(rng: np.random.Generator) -> Color:
    # Mostly muted: a brightness with a little of each channel.
    return _to_color(rng.uniform(30, 225) + rng.normal(0, 40, size=3))


def _mix(first: Color, second: Color, share: float) -> Color:
    """The color `share` of the way from `first` to `second`."""
    return _to_color(np.asarray(first) * (1 - share) + np.asarray(second) * share)


def _to_color(values: NDArray[Any]) -> Color:
    red, green, blue = (int(value) for value in np.clip(values, 0, 255))
    return red, green, blue
