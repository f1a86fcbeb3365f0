"""An image file gives the pixels that a viewer shows, the same from bytes and in TensorFlow's graph, or a reason."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from job import memory
from job.data import formats, pixels
from job.data.formats import MAX_PIXELS
from job.data.pixels import decode_bytes
from job.data.resizing import Resizing, Way
from tests import graphs

SIDE = 24
WAYS: tuple[Way, ...] = get_args(Way)
every_way = pytest.mark.parametrize("way", WAYS)


def upright(channels: int = 3, *, dtype: type = np.uint8) -> np.ndarray:
    """An image without symmetry, 20 by 30, whose values fill their range."""
    rng = np.random.default_rng(channels)
    return rng.integers(0, np.iinfo(dtype).max, (20, 30, channels), dtype=dtype, endpoint=True).squeeze()


def saved(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}) | options)
    return buffer.getvalue()


def in_graph(encoded: bytes, side: int = SIDE, way: Way = "stretch") -> np.ndarray:
    resizing = Resizing(side, way)
    decode = tf.autograph.experimental.do_not_convert(lambda content: pixels.decode(content, resizing))
    (image,) = tf.data.Dataset.from_tensors(encoded).map(decode).as_numpy_iterator()
    return np.asarray(image)


def decoded(encoded: bytes, side: int = SIDE, way: Way = "stretch") -> np.ndarray:
    """The same from bytes as in a graph."""
    image = decode_bytes(encoded, Resizing(side, way))
    np.testing.assert_array_equal(in_graph(encoded, side, way), image)
    assert (image.dtype, image.shape) == (np.uint8, (side, side, 3))
    return image


def resized(image: np.ndarray, way: Way = "stretch", side: int = SIDE) -> np.ndarray:
    """RGB pixels as the recipe resizes them, or in another way, by TensorFlow's own functions."""
    if way == "crop":
        smallest = min(image.shape[:2])
        image = tf.image.resize_with_crop_or_pad(image, smallest, smallest)
    square = tf.image.resize(image, (side, side), preserve_aspect_ratio=way == "pad", antialias=way != "stretch")
    if way == "pad":
        square = tf.image.resize_with_crop_or_pad(square, side, side)
    return np.asarray(tf.saturate_cast(tf.round(square), tf.uint8))


def plain(colour: str) -> Image.Image:
    return Image.new("RGB", (20, 20), colour)


# The recipe's pixels


@every_way
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {}), ("JPEG", {"progressive": True, "quality": 95}), ("PNG", {})]
)
def test_a_plain_file_has_the_pixels_of_tensorflow(kind: str, options: dict[str, Any], channels: int, way: Way) -> None:
    """Bit for bit, grey or coloured, resized in each way."""
    encoded = saved(upright(channels), kind, **options)
    expected = resized(tf.io.decode_image(encoded, channels=3, expand_animations=False), way)
    np.testing.assert_array_equal(decoded(encoded, way=way), expected)


def test_a_large_image_has_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is decoded by itself."""
    files = [saved(upright(), kind) for kind in ("JPEG", "WEBP")]
    expected = [decode_bytes(file, Resizing(SIDE)) for file in files]
    for module in (formats, pixels):
        monkeypatch.setattr(module, "LARGE_PIXELS", 1)
    for file, image in zip(files, expected, strict=True):
        np.testing.assert_array_equal(decoded(file), image)


# What a file says of its pixels

STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, 1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image, -1),
}
"""How a camera stores an upright image under each EXIF orientation (Exif 2.3, table 6)."""


@pytest.mark.slow
@every_way
@pytest.mark.parametrize(
    ("orientation", "kind"), [*((orientation, "JPEG") for orientation in STORED), (2, "PNG"), (5, "WEBP"), (6, "TIFF")]
)
def test_an_image_is_turned_as_its_orientation_says(orientation: int, kind: str, way: Way) -> None:
    """The pixels are those of the image that was stored upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](upright()))
    encoded = saved(stored, kind, exif=exif)
    if kind == "JPEG":
        # A JPEG loses something when it is saved: turned is what it holds.
        inverse = {6: 8, 8: 6}.get(orientation, orientation)
        expected = STORED[inverse](np.asarray(tf.io.decode_jpeg(saved(stored, kind))))
    else:
        expected = upright()
    np.testing.assert_array_equal(decoded(encoded, way=way), resized(expected, way))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_exif_that_is_damaged_turns_nothing() -> None:
    """The image is there all the same."""
    encoded = saved(upright(), "JPEG", exif=b"Exif\x00\x00MM\x00\x2a\x00\x00\x00\x08\x00\x01\x01\x12")
    np.testing.assert_array_equal(decoded(encoded), decoded(saved(upright(), "JPEG")))


def with_hidden(colour: int, kind: str) -> bytes:
    """An image whose left half is transparent, with a colour hidden there."""
    grey = np.full((20, 30), 90, np.uint8)
    grey[:, :15] = colour
    alpha = np.where(np.arange(30) < 15, 0, 255) * np.ones((20, 1))
    if kind == "palette":
        image = Image.fromarray(np.where(alpha == 0, 0, 1).astype(np.uint8), "P")
        image.putpalette([colour] * 3 + [90] * 3)
        return saved(image, "PNG", transparency=0)
    if kind == "key":
        return saved(np.stack([grey] * 3, axis=2), "PNG", transparency=(colour,) * 3)
    if kind == "GIF":
        return saved(Image.fromarray(grey), "GIF", transparency=colour)
    layers = [grey, alpha] if kind == "LA" else [grey, grey, grey, alpha]
    return saved(np.stack(layers, axis=2).astype(np.uint8), "PNG" if kind == "LA" else kind, exact=True)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "LA", "palette", "key", "GIF"])
def test_what_is_transparent_is_white_whatever_it_hides(kind: str) -> None:
    """As on a page."""
    black, bright = (decoded(with_hidden(colour, kind)) for colour in (0, 200))
    np.testing.assert_array_equal(black, bright)
    assert (black[:, 0] == 255).all()
    assert (black[:, -1] == 90).all()


@pytest.mark.parametrize(("kind", "dtype"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")])
def test_16_bits_are_scaled_to_8(kind: str, dtype: str) -> None:
    """65535 is white, and each value the nearest of 256; in a TIFF file of a big-endian machine too."""
    image = np.array([[0, 128, 129, 257], [0x1234, 0x8000, 65406, 65407], [65535, 514, 40000, 1], [9] * 4], np.uint16)
    encoded = saved(Image.fromarray(image.astype(dtype)), kind)
    np.testing.assert_array_equal(decoded(encoded, 4)[..., 0], np.round(image / 257))


@pytest.mark.parametrize(
    ("mode", "kind"), [("P", "BMP"), ("P", "PNG"), ("P", "GIF"), ("1", "PNG"), ("1", "BMP"), ("1", "TIFF")]
)
def test_a_palette_gives_its_colours(mode: str, kind: str) -> None:
    """Those of the same image without one."""
    image = Image.fromarray(upright()).convert(mode)
    np.testing.assert_array_equal(decoded(saved(image, kind)), resized(np.asarray(image.convert("RGB"))))


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_counts(kind: str) -> None:
    """Or the first page."""
    encoded = saved(plain("red"), kind, save_all=True, append_images=[plain("blue")])
    np.testing.assert_array_equal(decoded(encoded)[0, 0], (255, 0, 0))


@pytest.mark.parametrize(
    ("encoded", "colour"),
    [
        (saved(plain("red"), "MPO", save_all=True, append_images=[plain("blue")]), (255, 0, 0)),
        (saved(Image.new("CMYK", (20, 20), (0, 255, 255, 0)), "JPEG"), (255, 0, 0)),
        (saved(plain("red"), "AVIF"), (255, 0, 0)),
        (saved(Image.new("RGBA", (20, 20), (0, 0, 0, 128)), "PNG"), (127, 127, 127)),
    ],
    ids=["a camera's second picture does not count", "printers' colours", "AVIF", "half transparent"],
)
def test_a_colour_is_that_of_a_viewer(encoded: bytes, colour: tuple[int, int, int]) -> None:
    """Within what a format loses."""
    np.testing.assert_allclose(decoded(encoded)[0, 0], colour, atol=6)


@every_way
def test_without_python_plain_files_and_png_of_any_kind_have_the_same_pixels(way: Way) -> None:
    """PNG to within 1: 16 bits, alpha, palettes; what is transparent is white."""
    for file in (saved(upright(), "JPEG"), saved(upright(1), "JPEG"), saved(upright(), "PNG")):
        found = pixels.decode_without_python(tf.constant(file), Resizing(SIDE, way))
        np.testing.assert_array_equal(found, decode_bytes(file, Resizing(SIDE, way)))
    rgb = Image.fromarray(upright())
    rgba = rgb.copy()
    rgba.putalpha(Image.linear_gradient("L").resize(rgb.size))
    palette = rgb.convert("P")
    images = (rgba, rgba.convert("LA"), Image.fromarray(upright(1, dtype=np.uint16)), palette, palette.convert("1"))
    for file in (*(saved(image, "PNG") for image in images), saved(palette, "PNG", transparency=3)):
        found = pixels.decode_without_python(tf.constant(file), Resizing(SIDE, way)).numpy()
        np.testing.assert_allclose(found.astype(int), decode_bytes(file, Resizing(SIDE, way)).astype(int), atol=1)


# The way to a square

SIZES = [(375, 500, 150), (500, 375, 150), (333, 500, 150), (61, 83, 24), (11, 14, 24), (24, 24, 24), (7, 90, 16)]
"""Height and width of an image, and side of the square. Half of the first is 112.5 pixels."""


def in_either_direction(image: np.ndarray, way: Way) -> np.ndarray:
    """What becomes of an image that is wide; a tall one becomes the same, turned."""
    wide = decoded(saved(image, "PNG"), way=way)
    tall = decoded(saved(np.ascontiguousarray(image.swapaxes(0, 1)), "PNG"), way=way)
    np.testing.assert_array_equal(tall, wide.swapaxes(0, 1))
    return wide


def test_a_crop_has_the_middle_and_nothing_else() -> None:
    """Of a wide and of a tall image, with an odd number of pixels to cut off too."""
    for width, first in ((96, 24), (97, 24), (50, 1)):
        image = np.full((48, width, 3), (255, 0, 0), np.uint8)
        image[:, first : first + 48] = (0, 255, 0)
        assert (in_either_direction(image, "crop") == (0, 255, 0)).all()


def test_a_padded_image_is_whole_between_black_borders() -> None:
    """Those of both sides are alike, or differ by one pixel; a corner stays in its corner."""
    for height, top, bottom in ((48, 6, 6), (44, 6, 7), (96, 0, 0)):
        image = np.full((height, 96, 3), 200, np.uint8)
        image[: height // 2, :48] = 100
        padded = in_either_direction(image, "pad")
        inner = padded[top : SIDE - bottom]
        assert inner[[0, 0, -1, -1], [0, -1, 0, -1], 0].tolist() == [100, 200, 200, 200]
        assert (inner >= 100).all()
        assert padded.sum() == inner.sum()


def test_the_thinnest_image_keeps_a_row_when_it_is_padded() -> None:
    image = np.full((1, 1000, 3), 200, np.uint8)
    (lit,) = np.nonzero(in_either_direction(image, "pad").any(axis=(1, 2)))
    assert lit.tolist() == [11]


def test_details_become_their_mean_where_the_aspect_ratio_is_kept() -> None:
    """A fine checkerboard becomes grey; stretching takes single pixels of it."""
    y, x = np.mgrid[: 9 * SIDE, : 9 * SIDE]
    board = saved((255 * ((x + y) % 2)).astype(np.uint8), "PNG")
    assert set(decoded(board).flat) == {0, 255}
    for way in ("crop", "pad"):
        np.testing.assert_allclose(decoded(board, way=way)[1:-1, 1:-1], 127.5, atol=3)


@every_way
@pytest.mark.parametrize(("height", "width", "side"), SIZES)
def test_every_size_has_the_pixels_of_tensorflow(height: int, width: int, side: int, way: Way) -> None:
    """Enlarged and reduced, to the last pixel of a border."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    np.testing.assert_array_equal(decoded(saved(image, "PNG"), side, way), resized(image, way, side))


@every_way
def test_images_are_decoded_side_by_side(way: Way) -> None:
    """Which a deterministic tf.data does only with functions that have no state."""
    traced = pixels._decoder(Resizing(SIDE, way)).get_concrete_function()  # type: ignore[attr-defined]
    operations = [operation for graph in graphs.with_functions(traced.graph) for operation in graph.get_operations()]
    assert "DecodePng" in {operation.type for operation in operations}
    assert [operation.name for operation in operations if operation.op_def.is_stateful] == []


# What is refused


def png_of(width: int, height: int) -> bytes:
    """A PNG file that says how large it is, and ends after some of it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000)))


JPEG = saved(Image.new("RGB", (64, 64), "red"), "JPEG")
HUGE_JPEG = (lambda at: JPEG[: at + 5] + struct.pack(">HH", 60_000, 60_000) + JPEG[at + 9 :])(JPEG.index(b"\xff\xc0"))

REFUSED = {
    "float": (saved(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"), "float pixels, whose range is not known"),
    "32 bit": (saved(Image.fromarray(np.ones((9, 9), np.int32)), "TIFF"), "32 bit pixels, whose range is not known"),
    "bomb": (png_of(60_000, 60_000), f"3600000000 pixels.* exceeds limit of {MAX_PIXELS} pixels"),
    "bomb of JPEG": (HUGE_JPEG, f"3600000000 pixels.* exceeds limit of {MAX_PIXELS} pixels"),
    "just too large": (png_of(MAX_PIXELS // 64 + 1, 64), f"exceeds limit of {MAX_PIXELS} pixels"),
    "HEIC": (b"\0\0\0\x18ftypheic" + b"\0" * 40, "is HEIC, which is not read: convert it"),
    "JPEG XL": (b"\xff\x0a" + b"\0" * 40, "is JPEG XL, which is not read: convert it"),
    "PostScript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "no image of a format that is read .*JPEG, PNG",
    ),
    "text": ("né\n".encode("latin-1"), "no image of a format that is read"),
    **{
        f"half a {kind}": (saved(upright(), kind)[:-300], "cannot be decoded")
        for kind in ("JPEG", "PNG", "TIFF", "WEBP")
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused_with_the_reason(name: str) -> None:
    """From bytes, and in a graph, as an error of this one example."""
    encoded, reason = REFUSED[name]
    with pytest.raises(ValueError, match=reason):
        decode_bytes(encoded, Resizing(SIDE))
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        in_graph(encoded)
    with pytest.raises(ValueError, match=reason):
        raise ValueError(pixels.reason_of(caught.value))


@pytest.mark.slow
@pytest.mark.parametrize("orientation", [1, 6])
def test_memory_that_does_not_suffice_is_no_damage(orientation: int) -> None:
    """No machine has what this size takes; with EXIF, the image is decoded in Python also in a graph."""
    exif, side = Image.Exif(), 1 << 22
    exif[0x0112] = orientation
    encoded = saved(upright(), "JPEG", exif=exif)
    with pytest.raises(MemoryError):
        decode_bytes(encoded, Resizing(side))
    with pytest.raises(tf.errors.ResourceExhaustedError) as caught:
        in_graph(encoded, side)
    assert memory.is_exhausted(caught.value)
