"""What a run needs of memory and disk, estimated from its settings and the size of its data, before anything is loaded.

In bytes, with n examples, images of s x s pixels, batches of b, and a backbone of p parameters that gives a values for
each pixel of its input, over all its layers but the BatchNorms that are folded into convolutions. When nothing is kept
for a backward pass, at most m of these are there at once:

    images      n * s^2 * 3                     decoded, as uint8
    model       4 * p                           float32
    checkpoint  3 * 4 * p                       in fine-tuning: weights and Adam's two moments
    activations b * s^2 * a * 2 or 4            in fine-tuning, in bfloat16 or float32
                b * s^2 * m * 2 or 4            in training the head alone
    evaluated   evaluation batch * s^2 * m * 4  in the evaluation, always float32

    memory      0.8 GB for the libraries + images in memory + the larger of
                training    the model, its gradients and Adam's moments (4 * 4 * p)
                            + two checkpoints on their way into the store + activations
                evaluation  0.1 GB for the export + the model twice, Adam's moments + evaluated
    scratch     images on disk + a checkpoint + the exported model
    storage     THAW_KEEP_CHECKPOINTS + 2 checkpoints + the exported model

The head is left out: it is a thousandth of any backbone. tests/test_need.py holds the estimate against a run.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

LIBRARIES_BYTES = 800_000_000
EXPORT_BYTES = 100_000_000
FLOAT32_BYTES = 4
VALUE_BYTES = {"float32": FLOAT32_BYTES, "bfloat16": 2}
MAX_EVALUATION_BATCH = 64
ARRAYS_OF_A_CHECKPOINT = 3
ARRAYS_IN_TRAINING = 4
CHECKPOINTS_UNDER_WAY = 2
CHECKPOINTS_BESIDE_THE_KEPT = 2
"""The last one of the phase before, and the next one before the oldest is pruned."""


class Size(NamedTuple):
    """Of a backbone without its top: parameters, and values of its layers for each pixel of the input.

    `peak_per_pixel` is how many of the values are there at once when each is dropped after its last use.
    """

    num_parameters: int
    values_per_pixel: float
    peak_per_pixel: float


SIZES = {
    "Xception": Size(20_861_480, 457.6, 75.8),
    "InceptionV3": Size(21_802_784, 240.8, 30.3),
    "InceptionResNetV2": Size(54_336_736, 673.9, 30.3),
    "MobileNet": Size(3_228_864, 235.2, 32.3),
    "MobileNetV2": Size(2_257_984, 301.6, 48.4),
    "ResNet50V2": Size(23_564_800, 575.6, 48.0),
    "ResNet101V2": Size(42_626_560, 937.8, 48.0),
    "ResNet152V2": Size(58_331_648, 1_384.0, 48.0),
    "NASNetMobile": Size(4_269_716, 463.8, 30.0),
    "NASNetLarge": Size(84_916_818, 2_127.2, 94.7),
    "DenseNet121": Size(7_037_504, 893.0, 42.0),
    "DenseNet169": Size(12_642_880, 1_089.6, 42.0),
    "DenseNet201": Size(18_321_984, 1_424.4, 42.0),
    "EfficientNetV2B0": Size(5_919_312, 227.3, 18.0),
    "EfficientNetV2B1": Size(6_931_124, 303.0, 18.0),
    "EfficientNetV2B2": Size(8_769_374, 327.3, 18.0),
    "EfficientNetV2B3": Size(12_930_622, 408.5, 22.5),
    "EfficientNetV2S": Size(20_331_360, 594.2, 27.0),
    "EfficientNetV2M": Size(53_150_388, 968.3, 27.0),
    "EfficientNetV2L": Size(117_746_848, 1_707.0, 36.0),
    "MobileNetV3Small": Size(939_120, 78.6, 9.2),
    "MobileNetV3Large": Size(2_996_352, 219.7, 32.3),
    "ConvNeXtTiny": Size(27_820_128, 573.8, 60.0),
    "ConvNeXtSmall": Size(49_454_688, 924.8, 78.0),
    "ConvNeXtBase": Size(87_566_464, 1_231.0, 104.0),
    "ConvNeXtLarge": Size(196_230_336, 1_843.5, 156.0),
    "ConvNeXtXLarge": Size(348_147_968, 2_456.0, 208.0),
    "Tiny": Size(190_704, 18.0, 8.0),
}


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes; see the formulas above."""

    images: int
    model: int
    checkpoint: int
    activations: int
    evaluated: int
    memory: int
    scratch: int
    storage: int


def evaluation_batch_size(batch_size: int, *, value_bytes: int, fine_tunes: bool) -> int:
    """How many images an evaluation, in float32, takes at a time: no more than fit where a step of training did.

    For each image fine-tuning keeps more than an evaluation ever has at once. A step of the head alone has as many
    values as an evaluation, of `value_bytes` each.
    """
    fitting = batch_size if fine_tunes else batch_size * value_bytes // FLOAT32_BYTES
    return min(max(1, fitting), MAX_EVALUATION_BATCH)


def estimate(
    *,
    backbone: str,
    num_examples: int,
    image_size: int,
    batch_size: int,
    cache: Literal["memory", "disk", "none"],
    value_bytes: int,
    fine_tunes: bool,
    keep_checkpoints: int,
) -> Need:
    """The need of a run; `value_bytes` is 2 in bfloat16 and 4 in float32."""
    images = num_examples * image_size**2 * 3
    size = SIZES[backbone]
    model = FLOAT32_BYTES * size.num_parameters
    # With a frozen backbone no moments of it are kept, and a checkpoint has kilobytes.
    trained = model if fine_tunes else 0
    checkpoint = ARRAYS_OF_A_CHECKPOINT * trained
    values_at_once = size.values_per_pixel if fine_tunes else size.peak_per_pixel
    activations = int(batch_size * image_size**2 * values_at_once * value_bytes)
    evaluated = int(
        evaluation_batch_size(batch_size, value_bytes=value_bytes, fine_tunes=fine_tunes)
        * image_size**2 * size.peak_per_pixel * FLOAT32_BYTES
    )  # fmt: skip
    training = max(model, ARRAYS_IN_TRAINING * trained) + CHECKPOINTS_UNDER_WAY * checkpoint + activations
    evaluation = EXPORT_BYTES + model + max(model, checkpoint) + evaluated
    return Need(
        images=images,
        model=model,
        checkpoint=checkpoint,
        activations=activations,
        evaluated=evaluated,
        memory=LIBRARIES_BYTES + (images if cache == "memory" else 0) + max(training, evaluation),
        scratch=(images if cache == "disk" else 0) + checkpoint + model,
        storage=(keep_checkpoints + CHECKPOINTS_BESIDE_THE_KEPT) * checkpoint + model,
    )
