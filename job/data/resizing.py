"""How an image of any size becomes the square of pixels that a network takes; without TensorFlow."""

from typing import Literal, NamedTuple

Way = Literal["stretch", "crop", "pad"]


class Resizing(NamedTuple):
    """The side of the square in pixels, and the way to it; all interpolate bilinearly.

    `stretch` takes the whole image without antialiasing, and loses its aspect ratio. The others antialias and keep it:
    `crop` takes the largest square in the middle, `pad` the whole image and puts black borders around it.
    """

    size: int
    way: Way = "stretch"
