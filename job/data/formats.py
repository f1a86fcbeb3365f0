"""Which image files are read, within which limits, and why another is not; without TensorFlow.

Pillow reads the files, because it knows what they say of their own pixels.
"""

import contextlib
import io
import re
import threading
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What Pillow may read: no format whose reader starts another program."""

MAX_PIXELS = 1 << 26
"""67 million, which take up to 1 GB while one image is decoded."""

LARGE_PIXELS = 1 << 25
"""Images of more pixels are decoded one at a time, so that many threads need no more memory than one."""

EMPTY = "is empty"

_large = threading.Lock()

_OTHER_FORMATS = {
    "HEIC": rb".{4}ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)",
    "JPEG XL": rb"\xff\x0a|\x00\x00\x00\x0cJXL ",
    "PDF": rb"%PDF",
    "SVG": rb"\s*<(svg|\?xml)",
}

# What is odd in a file is either an error or does not matter; a log has no use for the library's remarks.
warnings.filterwarnings("ignore", module=r"PIL\b")
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns there, and refuses what has twice as many


@contextlib.contextmanager
def opened(encoded: bytes) -> Iterator[Image.Image]:
    """The image in a file, to be decoded inside. Raises ValueError, which says why it cannot be read.

    An error that is raised inside counts as one of the file: what a damaged one raises depends on where it is damaged.
    """
    try:
        file = Image.open(io.BytesIO(encoded), formats=FORMATS)
        with _large if file.width * file.height > LARGE_PIXELS else contextlib.nullcontext():
            yield file
    except UnidentifiedImageError as error:
        raise ValueError(_unknown(encoded)) from error
    except MemoryError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"cannot be decoded: {reason}") from error


def is_jpeg(file: Image.Image) -> bool:
    """Pillow takes a JPEG that holds a second picture, a preview, for a format of its own."""
    return file.format in ("JPEG", "MPO")


def orientation(file: Image.Image) -> int:
    """How EXIF says that the image is turned, 1 to 8; 1 is not at all."""
    try:
        return int(file.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1  # EXIF that cannot be read says nothing


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """`image` as a viewer shows it; changed itself, unless it is upright."""
    if orientation != 1:
        image.getexif()[ExifTags.Base.Orientation] = orientation
        ImageOps.exif_transpose(image, in_place=True)
    return image


def rgb(image: Image.Image) -> Image.Image:
    """8 bits a channel, over white where it is transparent. Raises ValueError where the range of values is unknown."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16S"):
        kind = "float" if image.mode == "F" else "32 bit"
        raise ValueError(f"has {kind} pixels, whose range is not known: save it with 8 or 16 bits a channel")
    if image.mode.startswith("I;16"):
        scaled = (np.asarray(image).astype(np.uint32) + 128) // 257
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGB", image.size, "white")
        colours = image if image.mode == "RGBA" else image.convert("RGBA")
        white.paste(colours, mask=colours)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _unknown(encoded: bytes) -> str:
    if not encoded:
        return EMPTY
    for name, begin in _OTHER_FORMATS.items():
        if re.match(begin, encoded, re.DOTALL):
            return f"is {name}, which is not read: convert it to JPEG or PNG"
    return f"is no image of a format that is read ({', '.join(FORMATS)}), or its beginning is damaged"
