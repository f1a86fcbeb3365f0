"""From the bytes of an image file to pixels: the same in training, in `predict` and in the report.

Pillow reads the files, as `formats` says; JPEG data alone is decoded by TensorFlow. There the two differ by up to 5 of
255, in most pixels (Pillow 13.0, TensorFlow 2.21), and the recipe's pixels are TensorFlow's. Plain JPEG and PNG files,
which say nothing of their own pixels, are decoded in TensorFlow's graph without Python, for speed; of PNG the two give
the same.

What a file says is followed: the EXIF orientation turns the image, a palette gives it colours, and of an animation the
first frame counts. What is transparent shows white: colours hidden there do not count. 16 bits are scaled to 8. Colour
profiles are ignored. Refused are pixels whose range is not known, and images of more than MAX_PIXELS.
"""

import re
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import tensorflow as tf
from PIL import Image

from job import memory
from job.data.formats import LARGE_PIXELS, MAX_PIXELS, is_jpeg, opened, orientation, rgb, turned
from job.data.resizing import Resizing

_PLAIN_JPEG = r"\C{6}JFIF\C*"
# Both sides under 4096; 8 bits; grey or RGB; no chunk between header and pixels that could give them another meaning.
_PLAIN_PNG = r"\CPNG\r\n\x1a\n\x00\x00\x00\rIHDR(\x00\x00[\x00-\x0f]\C){2}\x08[\x00\x02]\C{11}IDAT\C*"
_PNG = r"\CPNG\r\n\x1a\n\C*"
_PNG_WITH_ALPHA = r"\CPNG\r\n\x1a\n\C{4}IHDR\C{9}([\x04\x06]\C*|\C*tRNS\C*)"
_PALETTE_BMP = r"BM\C{26}[\x01-\x10]\x00\C*"
_ORIENTED = r"\C*(Exif|eXIf|Orientation)\C*"

_is_like = tf.strings.regex_full_match
_jpeg = partial(tf.io.decode_jpeg, channels=3)


def decode(encoded: tf.Tensor, resizing: Resizing) -> tf.Tensor:
    """In a graph: encoded bytes of an image, a scalar -> uint8 [size, size, 3], resized as `resizing` says.

    When they are no image that can be read, the operation fails with InvalidArgumentError.
    """
    return _decoder(resizing)(encoded)


@lru_cache(maxsize=8)
def _decoder(resizing: Resizing) -> Callable[[tf.Tensor], tf.Tensor]:
    """`decode` of one resizing. Every split, and with no cache every epoch, calls one function that is traced once."""

    # TensorFlow itself keeps it no longer than the graph in which it is traced first.
    def read(data: bytes) -> tuple[np.ndarray, bytes]:
        return _read_or_reason(data, resizing)

    def decoded(encoded: tf.Tensor) -> tf.Tensor:
        def in_python() -> tf.Tensor:
            image, reason = tf.numpy_function(read, [encoded], [tf.uint8, tf.string], stateful=False)
            # A reason is no number, which is an error. An assertion would have state, and with that in its functions a
            # deterministic tf.data decodes one image after the other.
            zero = tf.strings.to_number(tf.strings.join([b"0", reason]), tf.int32)
            shape = (resizing.size, resizing.size, 3)
            return tf.ensure_shape(tf.reshape(image, tf.constant(shape) + zero), shape)

        return _plain_or(in_python, encoded, resizing)

    traced: Callable[[tf.Tensor], tf.Tensor] = tf.function(
        decoded, input_signature=[tf.TensorSpec((), tf.string)], autograph=False
    )
    return traced


def decode_without_python(encoded: tf.Tensor, resizing: Resizing) -> tf.Tensor:
    """The same as far as TensorFlow's operations can, for a graph that leaves this program.

    Plain JPEG and PNG files give the same pixels, other PNG files too, to within 1. What else it does not read, or not
    as `decode` does, the model card says.
    """

    def other() -> tf.Tensor:
        which = tf.where(_is_like(encoded, _PNG), 0, tf.where(_is_like(encoded, _PALETTE_BMP), 1, 2))
        return _resized(tf.switch_case(which, [lambda: _png_of_any_kind(encoded), palette, any_format]), resizing)

    def palette() -> tf.Tensor:
        with tf.control_dependencies([tf.debugging.Assert(False, ["a BMP image with a palette"])]):
            return tf.zeros((1, 1, 3), tf.uint8)

    def any_format() -> tf.Tensor:
        return tf.io.decode_image(encoded, channels=3, expand_animations=False)

    return _plain_or(other, encoded, resizing)


def decode_bytes(encoded: bytes, resizing: Resizing) -> np.ndarray:
    """The same of bytes at hand, as `decode` gives it. Raises ValueError, which says why they cannot be read.

    Raises MemoryError where memory does not suffice, in TensorFlow too.
    """
    with opened(encoded) as file, tf.device("CPU"):
        try:
            return np.asarray(_resized(_upright(encoded, file), resizing))
        except tf.errors.OpError as error:
            if memory.is_exhausted(error):
                raise MemoryError(_in_short(error)) from error
            raise ValueError(_in_short(error)) from error


def reason_of(error: tf.errors.OpError) -> str:
    """Why an image could not be decoded, without TensorFlow's words around it."""
    if given := re.search(r"assertion failed: \[(.*)\]|could not correctly convert string: 0(.*)", error.message):
        return given[1] or given[2]
    return f"cannot be decoded: {_in_short(error)}"


def _in_short(error: tf.errors.OpError) -> str:
    text = re.sub(r"\{\{.*?\}\} ?| \[Op:\w+\].*|.* transformation with iterator: \S+: ", "", error.message).strip()
    return text.splitlines()[0] if text else "no reason given"


def _plain_or(otherwise: Callable[[], tf.Tensor], encoded: tf.Tensor, resizing: Resizing) -> tf.Tensor:
    """Decode a plain JPEG or PNG that is not large; what anything else is, uint8 [size, size, 3], `otherwise` says."""

    def jpeg() -> tf.Tensor:
        num_pixels = tf.reduce_prod(tf.cast(tf.io.extract_jpeg_shape(encoded)[:2], tf.float32))
        return tf.cond(num_pixels <= LARGE_PIXELS, lambda: _resized(_jpeg(encoded), resizing), otherwise)

    def png() -> tf.Tensor:
        return _resized(tf.io.decode_png(encoded, channels=3), resizing)

    plain = tf.where(_is_like(encoded, _PLAIN_JPEG), 0, tf.where(_is_like(encoded, _PLAIN_PNG), 1, 2))
    return tf.switch_case(tf.where(_is_like(encoded, _ORIENTED), 2, plain), [jpeg, png, otherwise])


def _png_of_any_kind(encoded: tf.Tensor) -> tf.Tensor:
    """uint8 [h, w, 3] of 8 or 16 bits a channel, over white."""
    sides = tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.int32, little_endian=False)
    is_small = tf.reduce_prod(tf.cast(sides, tf.float32)) <= MAX_PIXELS

    def values(channels: int) -> tf.Tensor:
        return tf.cast(tf.io.decode_png(encoded, channels=channels, dtype=tf.uint16), tf.float32) / 257.0

    def over_white() -> tf.Tensor:
        rgba = values(4)
        alpha = rgba[..., 3:] / 255.0
        return rgba[..., :3] * alpha + 255.0 * (1.0 - alpha)

    with tf.control_dependencies([tf.debugging.Assert(is_small, ["an image of more pixels than the limit"])]):
        # Asked for an alpha that is not there, TensorFlow 2.21 gives almost transparent pixels below 8 bits.
        image = tf.cond(_is_like(encoded, _PNG_WITH_ALPHA), over_white, lambda: values(3))
    return tf.saturate_cast(tf.round(image), tf.uint8)


def _resized(image: tf.Tensor, resizing: Resizing) -> tf.Tensor:
    """Bilinear, rounded to uint8 [size, size, 3]. `Resizing` has the ways."""
    size, way = resizing
    if way == "pad":
        resized = _between_borders(image, size)
    elif way == "crop":
        resized = tf.image.resize(_largest_square(image), (size, size), antialias=True)
    else:
        resized = tf.image.resize(image, (size, size))
    return tf.saturate_cast(tf.round(resized), tf.uint8)


# TensorFlow's own functions that crop and pad have assertions, which would make a deterministic tf.data slow.
def _largest_square(image: tf.Tensor) -> tf.Tensor:
    """The middle of [h, w, 3], as `tf.image.resize_with_crop_or_pad` has it."""
    height, width = tf.unstack(tf.shape(image)[:2])
    side = tf.minimum(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def _between_borders(image: tf.Tensor, size: int) -> tf.Tensor:
    """float32 [size, size, 3]: all of [h, w, 3] with its aspect ratio, and black on both sides of it.

    It is as high and as wide as `tf.image.resize` with `preserve_aspect_ratio` makes it, but never of no pixel.
    """
    sides = tf.cast(tf.shape(image)[:2], tf.float32)
    scaled = tf.maximum(1, tf.cast(tf.round(tf.reduce_min(size / sides) * sides), tf.int32))
    before = (size - scaled) // 2
    borders = tf.stack([before, size - scaled - before], axis=1)
    padded = tf.pad(tf.image.resize(image, scaled, antialias=True), tf.concat([borders, [[0, 0]]], axis=0))
    return tf.ensure_shape(padded, (size, size, 3))


def _read_or_reason(encoded: bytes, resizing: Resizing) -> tuple[np.ndarray, bytes]:
    """The image and nothing, or nothing and the reason: TensorFlow logs a traceback of what is raised here."""
    try:
        return decode_bytes(encoded, resizing), b""
    except ValueError as error:
        return np.empty((0, 0, 3), np.uint8), str(error).encode("ascii", "backslashreplace")


def _upright(encoded: bytes, file: Image.Image) -> tf.Tensor | np.ndarray:
    """uint8 [h, w, 3] as a viewer shows it."""
    turn = orientation(file)
    if not is_jpeg(file):
        return np.asarray(turned(rgb(file), turn))
    return _jpeg(encoded) if turn == 1 else np.asarray(turned(Image.fromarray(_jpeg(encoded).numpy()), turn))
