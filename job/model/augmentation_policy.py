"""What is done to training images at random, as values: without tensors, so that settings can be read without them."""

from dataclasses import dataclass
from typing import Literal

Flip = Literal["horizontal", "vertical", "horizontal_and_vertical", "none"]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The random changes of training images, each with the name and the unit of its setting; by default none.

    An amount is the largest one either way: `rotation` as a fraction of a full turn, `translation` as a fraction of
    height and of width, `zoom` and `contrast` and `saturation` as a fraction of what is there, `brightness` as a
    fraction of white, `hue` as a fraction of the colour circle.
    """

    flip: Flip = "none"
    rotation: float = 0.0
    zoom: float = 0.0
    translation: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    randaugment_operations: int = 0
    randaugment_magnitude: float = 9.0


OFF = Augmentation()
