"""Pictures inside a page: `data:` addresses, so that the page needs no other file."""

import base64
import io

import numpy as np
from PIL import Image

MAX_SIDE = 192
"""Pixels of a picture: twice what a page shows, for dense screens."""

LOSSLESS_SIDE = 48
"""Up to this size JPEG's blocks of eight pixels would be visible, and PNG is small."""


def data_uri(pixels: np.ndarray) -> str:
    """uint8 [h, w, 3] as a `data:` address, of at most `MAX_SIDE` pixels either way."""
    image = Image.fromarray(np.asarray(pixels, dtype=np.uint8))
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    kind, options = ("png", {"optimize": True}) if max(image.size) <= LOSSLESS_SIDE else ("jpeg", {"quality": 85})
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
