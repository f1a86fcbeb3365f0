"""The backbones that a run can name: one table of what must be known of each before it is built.

It imports nothing, so that a wrong name is answered without TensorFlow. The rescaling and the image sizes are those of
`keras.applications` (the `preprocess_input`, `min_size` and `default_size` of each family), the other sizes those of
the networks that Keras builds.
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
    them are there at once when each is dropped after its last use. `default_image_size`, in pixels, is that of its
    ImageNet weights. `imagenet_top1` is the published accuracy of these, in percent of the validation images: the
    table of keras.io/api/applications, for MobileNetV3 that of Keras's documentation of it; of ConvNeXt none was found.
    A network that is `bgr` takes its channels reversed, after the rescaling. `first_layer` is the name of the layer
    that it begins with here: what Keras puts before that one is in `rescaling`.
    """

    min_image_size: int
    rescaling: Rescaling
    num_parameters: int
    values_per_pixel: float
    peak_per_pixel: float
    default_image_size: int | None = None
    imagenet_top1: float | None = None
    has_imagenet_weights: bool = True
    bgr: bool = False
    first_layer: str | None = None


_STEM = "stem_conv_pad"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the pixels of ImageNet's training images, as parts of 255."""
PLUS_MINUS_ONE = Rescaling(scale=(1 / 127.5,) * 3, offset=(-1.0,) * 3)
BUILT_IN = Rescaling(scale=(1.0,) * 3, offset=(0.0,) * 3)
"""The network rescales its input itself."""
IMAGENET_STATISTICS = Rescaling(
    scale=(1 / (255 * IMAGENET_STD[0]), 1 / (255 * IMAGENET_STD[1]), 1 / (255 * IMAGENET_STD[2])),
    offset=(
        -IMAGENET_MEAN[0] / IMAGENET_STD[0],
        -IMAGENET_MEAN[1] / IMAGENET_STD[1],
        -IMAGENET_MEAN[2] / IMAGENET_STD[2],
    ),
)
MEAN_SUBTRACTED = Rescaling(scale=(1.0,) * 3, offset=(-123.68, -116.779, -103.939))

TINY = "Tiny"
"""Our own small network for the demo and the tests."""

CUSTOM = "Custom"
"""The network of the file in THAW_WEIGHTS. It is estimated as Xception, since nothing is known of it before."""

BACKBONES: dict[str, Backbone] = {
    "Xception": Backbone(71, PLUS_MINUS_ONE, 20_861_480, 457.6, 75.8, 299, 79.0),
    "VGG16": Backbone(32, MEAN_SUBTRACTED, 14_714_688, 303.5, 128.0, 224, 71.3, bgr=True),
    "VGG19": Backbone(32, MEAN_SUBTRACTED, 20_024_384, 329.5, 128.0, 224, 71.3, bgr=True),
    "InceptionV3": Backbone(75, PLUS_MINUS_ONE, 21_802_784, 240.8, 30.3, 299, 77.9),
    "InceptionResNetV2": Backbone(75, PLUS_MINUS_ONE, 54_336_736, 673.9, 30.3, 299, 80.3),
    "MobileNet": Backbone(32, PLUS_MINUS_ONE, 3_228_864, 235.2, 32.3, 224, 70.4),
    "MobileNetV2": Backbone(32, PLUS_MINUS_ONE, 2_257_984, 301.6, 48.4, 224, 71.3),
    "ResNet50": Backbone(32, MEAN_SUBTRACTED, 23_587_712, 528.7, 48.0, 224, 74.9, bgr=True),
    "ResNet101": Backbone(32, MEAN_SUBTRACTED, 42_658_176, 800.7, 48.0, 224, 76.4, bgr=True),
    "ResNet152": Backbone(32, MEAN_SUBTRACTED, 58_370_944, 1_136.7, 48.0, 224, 76.6, bgr=True),
    "ResNet50V2": Backbone(32, PLUS_MINUS_ONE, 23_564_800, 575.6, 48.0, 224, 76.0),
    "ResNet101V2": Backbone(32, PLUS_MINUS_ONE, 42_626_560, 937.8, 48.0, 224, 77.2),
    "ResNet152V2": Backbone(32, PLUS_MINUS_ONE, 58_331_648, 1_384.0, 48.0, 224, 78.0),
    "NASNetMobile": Backbone(32, PLUS_MINUS_ONE, 4_269_716, 463.8, 30.0, 224, 74.4),
    "NASNetLarge": Backbone(32, PLUS_MINUS_ONE, 84_916_818, 2_127.2, 94.7, 331, 82.5),
    "DenseNet121": Backbone(32, IMAGENET_STATISTICS, 7_037_504, 893.0, 42.0, 224, 75.0),
    "DenseNet169": Backbone(32, IMAGENET_STATISTICS, 12_642_880, 1_089.6, 42.0, 224, 76.2),
    "DenseNet201": Backbone(32, IMAGENET_STATISTICS, 18_321_984, 1_424.4, 42.0, 224, 77.3),
    "EfficientNetB0": Backbone(32, IMAGENET_STATISTICS, 4_049_564, 360.2, 48.4, 224, 77.1, first_layer=_STEM),
    "EfficientNetB1": Backbone(32, IMAGENET_STATISTICS, 6_575_232, 495.9, 48.4, 240, 79.1, first_layer=_STEM),
    "EfficientNetB2": Backbone(32, IMAGENET_STATISTICS, 7_768_562, 519.0, 48.4, 260, 80.1, first_layer=_STEM),
    "EfficientNetB3": Backbone(32, IMAGENET_STATISTICS, 10_783_528, 688.0, 72.6, 300, 81.6, first_layer=_STEM),
    "EfficientNetB4": Backbone(32, IMAGENET_STATISTICS, 17_673_816, 892.6, 72.6, 380, 82.9, first_layer=_STEM),
    "EfficientNetB5": Backbone(32, IMAGENET_STATISTICS, 28_513_520, 1_222.2, 72.6, 456, 83.6, first_layer=_STEM),
    "EfficientNetB6": Backbone(32, IMAGENET_STATISTICS, 40_960_136, 1_561.3, 96.9, 528, 84.0, first_layer=_STEM),
    "EfficientNetB7": Backbone(32, IMAGENET_STATISTICS, 64_097_680, 2_082.6, 96.9, 600, 84.3, first_layer=_STEM),
    "EfficientNetV2B0": Backbone(32, BUILT_IN, 5_919_312, 227.3, 18.0, 224, 78.7),
    "EfficientNetV2B1": Backbone(32, BUILT_IN, 6_931_124, 303.0, 18.0, 240, 79.8),
    "EfficientNetV2B2": Backbone(32, BUILT_IN, 8_769_374, 327.3, 18.0, 260, 80.5),
    "EfficientNetV2B3": Backbone(32, BUILT_IN, 12_930_622, 408.5, 22.5, 300, 82.0),
    "EfficientNetV2S": Backbone(32, BUILT_IN, 20_331_360, 594.2, 27.0, 384, 83.9),
    "EfficientNetV2M": Backbone(32, BUILT_IN, 53_150_388, 968.3, 27.0, 480, 85.3),
    "EfficientNetV2L": Backbone(32, BUILT_IN, 117_746_848, 1_707.0, 36.0, 480, 85.7),
    "MobileNetV3Small": Backbone(32, BUILT_IN, 939_120, 78.6, 9.2, 224, 68.1),
    "MobileNetV3Large": Backbone(32, BUILT_IN, 2_996_352, 219.7, 32.3, 224, 75.6),
    "ConvNeXtTiny": Backbone(32, BUILT_IN, 27_820_128, 573.8, 60.0, 224),
    "ConvNeXtSmall": Backbone(32, BUILT_IN, 49_454_688, 924.8, 78.0, 224),
    "ConvNeXtBase": Backbone(32, BUILT_IN, 87_566_464, 1_231.0, 104.0, 224),
    "ConvNeXtLarge": Backbone(32, BUILT_IN, 196_230_336, 1_843.5, 156.0, 224),
    "ConvNeXtXLarge": Backbone(32, BUILT_IN, 348_147_968, 2_456.0, 208.0, 224),
    CUSTOM: Backbone(16, BUILT_IN, 20_861_480, 457.6, 75.8, has_imagenet_weights=False),
    TINY: Backbone(16, PLUS_MINUS_ONE, 190_704, 18.0, 8.0, has_imagenet_weights=False),
}
