"""Activation maps as pictures: their colours over the image in grey."""

import matplotlib
import numpy as np
from PIL import Image

COLORS = "cividis"
"""From dark blue to yellow: in order of lightness, and the same for readers who see red and green alike."""

OPACITY = 0.6


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """An activation map over its image in grey, uint8 [h, w, 3].

    `pixels` is uint8 [h, w, 3], `heat` float32 of any two sizes, from 0 to 1, which is enlarged by bilinear
    interpolation. The grey leaves all colour to the map.
    """
    height, width, _ = pixels.shape
    enlarged = Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    colors = matplotlib.colormaps[COLORS](np.asarray(enlarged), bytes=True)[..., :3]
    grey = Image.fromarray(pixels).convert("L").convert("RGB")
    return np.asarray(Image.blend(grey, Image.fromarray(np.ascontiguousarray(colors)), OPACITY))


def color_scale() -> str:
    """The colours of `overlay` from 0 to 1, as the stops of a gradient in CSS."""
    colors = matplotlib.colormaps[COLORS](np.linspace(0, 1, 9), bytes=True)
    return ", ".join(f"rgb({red} {green} {blue})" for red, green, blue, _ in colors.tolist())
