"""How an image of any size becomes the square of pixels that a network takes: what a run says of it."""

from typing import Literal, NamedTuple

Way = Literal["stretch", "crop", "pad"]


class Resizing(NamedTuple):
    """The side of the square in pixels, and the way to it.

    | way | of the image | aspect ratio | antialiased | elsewhere |
    |---|---|---|---|---|
    | `stretch` | all of it | lost | no | `tf.image.resize`; timm's `squash` and fastai's `Squish`, which antialias |
    | `crop` | the largest square in the middle | kept | yes | Keras's `crop_to_aspect_ratio`, timm's `center` |
    | `pad` | all of it, between black borders | kept | yes | Keras's `pad_to_aspect_ratio`, timm's `border` |
    """

    size: int
    way: Way = "stretch"
