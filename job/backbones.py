"""The backbones that a run can name: their smallest image and the rescaling they were trained with.

A table of facts that both the settings and the model read; it imports nothing, so that a wrong name is
answered without TensorFlow. The facts are those of `keras.applications` (the `preprocess_input` and the
`min_size` of each family). ResNet v1 and VGG are absent: they want BGR channels, which is not a rescaling. The first
EfficientNet is absent: Keras 3.15 builds it with another rescaling when it loads the weights than when it does not.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """What must be known of a backbone before it is built.

    `scale` and `offset` map a pixel p in 0..255 to p * scale + offset, per channel (R, G, B).
    """

    min_image_size: int
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]
    has_imagenet_weights: bool = True


def _to_plus_minus_one(min_image_size: int) -> BackboneSpec:
    return BackboneSpec(min_image_size=min_image_size, scale=(1 / 127.5,) * 3, offset=(-1.0,) * 3)


def _rescales_itself(min_image_size: int) -> BackboneSpec:
    return BackboneSpec(min_image_size=min_image_size, scale=(1.0,) * 3, offset=(0.0,) * 3)


_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


def _imagenet_statistics(min_image_size: int) -> BackboneSpec:
    r, g, b = (1 / (255 * std) for std in _IMAGENET_STD)
    offset_r, offset_g, offset_b = (-mean / std for mean, std in zip(_IMAGENET_MEAN, _IMAGENET_STD, strict=True))
    return BackboneSpec(min_image_size=min_image_size, scale=(r, g, b), offset=(offset_r, offset_g, offset_b))


TINY = "Tiny"
"""Our own small network for the demo and the tests; the only one that is not of `keras.applications`."""

BACKBONES: dict[str, BackboneSpec] = {
    "Xception": _to_plus_minus_one(71),
    "InceptionV3": _to_plus_minus_one(75),
    "InceptionResNetV2": _to_plus_minus_one(75),
    "MobileNet": _to_plus_minus_one(32),
    "MobileNetV2": _to_plus_minus_one(32),
    "ResNet50V2": _to_plus_minus_one(32),
    "ResNet101V2": _to_plus_minus_one(32),
    "ResNet152V2": _to_plus_minus_one(32),
    "NASNetMobile": _to_plus_minus_one(32),
    "NASNetLarge": _to_plus_minus_one(32),
    **{f"DenseNet{depth}": _imagenet_statistics(32) for depth in (121, 169, 201)},
    **{f"EfficientNetV2{size}": _rescales_itself(32) for size in ("B0", "B1", "B2", "B3", "S", "M", "L")},
    "MobileNetV3Small": _rescales_itself(32),
    "MobileNetV3Large": _rescales_itself(32),
    **{f"ConvNeXt{size}": _rescales_itself(32) for size in ("Tiny", "Small", "Base", "Large", "XLarge")},
    TINY: BackboneSpec(min_image_size=16, scale=(1 / 127.5,) * 3, offset=(-1.0,) * 3, has_imagenet_weights=False),
}
