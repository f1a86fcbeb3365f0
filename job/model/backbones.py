"""The backbones that a run can name: one table of what must be known of each before it is built.

It imports nothing, so that a wrong name is answered without TensorFlow. The rescaling and the smallest image are those
of `keras.applications` (the `preprocess_input` and the `min_size` of each family), the sizes those of the networks that
Keras builds. ResNet v1 and VGG are absent: they want BGR channels, which is not a rescaling. The first EfficientNet is
absent: Keras 3.15 builds it with another rescaling when it loads the weights than when it does not.
"""

from dataclasses import dataclass

Channels = tuple[float, float, float]
"""Of red, green and blue."""


@dataclass(frozen=True, kw_only=True)
class Rescaling:
    """Maps a pixel p in 0..255 to p * scale + offset, per channel."""

    scale: Channels
    offset: Channels


@dataclass(frozen=True)
class Backbone:
    """A network without its top.

    `values_per_pixel` are the values of its layers for each pixel of the input, and `peak_per_pixel` is how many of
    them are there at once when each is dropped after its last use.
    """

    min_image_size: int
    rescaling: Rescaling
    num_parameters: int
    values_per_pixel: float
    peak_per_pixel: float
    has_imagenet_weights: bool = True


_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLUS_MINUS_ONE = Rescaling(scale=(1 / 127.5,) * 3, offset=(-1.0,) * 3)
BUILT_IN = Rescaling(scale=(1.0,) * 3, offset=(0.0,) * 3)
"""The network rescales its input itself."""
IMAGENET_STATISTICS = Rescaling(
    scale=(1 / (255 * _STD[0]), 1 / (255 * _STD[1]), 1 / (255 * _STD[2])),
    offset=(-_MEAN[0] / _STD[0], -_MEAN[1] / _STD[1], -_MEAN[2] / _STD[2]),
)

TINY = "Tiny"
"""Our own small network for the demo and the tests; the only one that is not of `keras.applications`."""

BACKBONES: dict[str, Backbone] = {
    "Xception": Backbone(71, PLUS_MINUS_ONE, 20_861_480, 457.6, 75.8),
    "InceptionV3": Backbone(75, PLUS_MINUS_ONE, 21_802_784, 240.8, 30.3),
    "InceptionResNetV2": Backbone(75, PLUS_MINUS_ONE, 54_336_736, 673.9, 30.3),
    "MobileNet": Backbone(32, PLUS_MINUS_ONE, 3_228_864, 235.2, 32.3),
    "MobileNetV2": Backbone(32, PLUS_MINUS_ONE, 2_257_984, 301.6, 48.4),
    "ResNet50V2": Backbone(32, PLUS_MINUS_ONE, 23_564_800, 575.6, 48.0),
    "ResNet101V2": Backbone(32, PLUS_MINUS_ONE, 42_626_560, 937.8, 48.0),
    "ResNet152V2": Backbone(32, PLUS_MINUS_ONE, 58_331_648, 1_384.0, 48.0),
    "NASNetMobile": Backbone(32, PLUS_MINUS_ONE, 4_269_716, 463.8, 30.0),
    "NASNetLarge": Backbone(32, PLUS_MINUS_ONE, 84_916_818, 2_127.2, 94.7),
    "DenseNet121": Backbone(32, IMAGENET_STATISTICS, 7_037_504, 893.0, 42.0),
    "DenseNet169": Backbone(32, IMAGENET_STATISTICS, 12_642_880, 1_089.6, 42.0),
    "DenseNet201": Backbone(32, IMAGENET_STATISTICS, 18_321_984, 1_424.4, 42.0),
    "EfficientNetV2B0": Backbone(32, BUILT_IN, 5_919_312, 227.3, 18.0),
    "EfficientNetV2B1": Backbone(32, BUILT_IN, 6_931_124, 303.0, 18.0),
    "EfficientNetV2B2": Backbone(32, BUILT_IN, 8_769_374, 327.3, 18.0),
    "EfficientNetV2B3": Backbone(32, BUILT_IN, 12_930_622, 408.5, 22.5),
    "EfficientNetV2S": Backbone(32, BUILT_IN, 20_331_360, 594.2, 27.0),
    "EfficientNetV2M": Backbone(32, BUILT_IN, 53_150_388, 968.3, 27.0),
    "EfficientNetV2L": Backbone(32, BUILT_IN, 117_746_848, 1_707.0, 36.0),
    "MobileNetV3Small": Backbone(32, BUILT_IN, 939_120, 78.6, 9.2),
    "MobileNetV3Large": Backbone(32, BUILT_IN, 2_996_352, 219.7, 32.3),
    "ConvNeXtTiny": Backbone(32, BUILT_IN, 27_820_128, 573.8, 60.0),
    "ConvNeXtSmall": Backbone(32, BUILT_IN, 49_454_688, 924.8, 78.0),
    "ConvNeXtBase": Backbone(32, BUILT_IN, 87_566_464, 1_231.0, 104.0),
    "ConvNeXtLarge": Backbone(32, BUILT_IN, 196_230_336, 1_843.5, 156.0),
    "ConvNeXtXLarge": Backbone(32, BUILT_IN, 348_147_968, 2_456.0, 208.0),
    TINY: Backbone(16, PLUS_MINUS_ONE, 190_704, 18.0, 8.0, has_imagenet_weights=False),
}
