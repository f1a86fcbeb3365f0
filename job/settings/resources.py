"""What a run needs of memory and disk, estimated from its settings and the size of its data, before anything is loaded.

In bytes, for one worker, which takes at most r of the b rows of a batch: b / workers, rounded up. With n examples,
images of s x s pixels, and a backbone of p parameters that gives a values for each pixel of its input, over all its
layers but the BatchNorms that are folded into convolutions. When nothing is kept for a backward pass, at most m of
these are there at once:

    images      n * r / b * s^2 * 3             decoded, as uint8; all n with THAW_ON_UNREADABLE=skip
    model       4 * p                           float32
    checkpoint  3 * 4 * p                       in fine-tuning: weights, and two moments of Adam or one of others
    activations c * s^2 * a * 2 or 4            in fine-tuning, in 16 or 32 bits; c is r, or a smaller
                c * s^2 * m * 2 or 4            THAW_MICROBATCH_SIZE; this in training the head alone
    evaluated   evaluation batch * s^2 * m * 4  in the evaluation, always float32

    memory      0.8 GB for the libraries + images in memory + the larger of
                training    the model, its gradients and moments (4 * 4 * p)
                            + two checkpoints on their way into the store + activations
                evaluation  0.1 GB for the export + the model twice, the moments + evaluated
    device      images on the device + the model, its gradients and moments + activations
    scratch     images on disk + a checkpoint; worker 0 also writes the exported model
    storage     THAW_KEEP_CHECKPOINTS + 2 checkpoints + the exported model

Images on the device are in memory too. A moving average of the weights is one more array of p, in training and in
checkpoints; the partners that images are mixed with are c * s^2 * 3 * 4 more in training, a batch in parts has one more
gradient, and the images of k > 1 steps in one call are k * r * s^2 * 3, unless they are on the device. The head is left
out: it is a thousandth of any backbone. tests/test_need.py holds the estimate against a run.
"""

import math
from dataclasses import dataclass

from job.model.backbones import BACKBONES
from job.phases import OptimizerName
from job.settings.fields import Precision
from job.settings.settings import Settings

LIBRARIES_BYTES = 800_000_000
EXPORT_BYTES = 100_000_000
FLOAT32_BYTES = 4
VALUE_BYTES: dict[Precision, int] = {"float32": FLOAT32_BYTES, "bfloat16": 2, "float16": 2}
MAX_EVALUATION_BATCH = 64
MOMENTS: dict[OptimizerName, int] = {"adam": 2, "sgd": 1, "lion": 1}
CHECKPOINTS_UNDER_WAY = 2
CHECKPOINTS_BESIDE_THE_KEPT = 2
"""The last one of the phase before, and the next one before the oldest is pruned."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes; see the formulas above. `scratch` is without the exported model, which has as many bytes as `model`.

    `at_once` is no size, but the number of images that a training step computes at a time.
    """

    at_once: int
    images: int
    model: int
    checkpoint: int
    activations: int
    evaluated: int
    memory: int
    device: int
    scratch: int
    storage: int


def images_at_once(settings: Settings, num_workers: int) -> int:
    """How many images a training step of a worker computes at a time."""
    num_rows = math.ceil(settings.batch_size / num_workers)
    return min(num_rows, settings.microbatch_size or num_rows)


def with_smaller_parts(at_once: int) -> str:
    """A hint for a run that lacks memory; empty where nothing smaller can be computed at a time."""
    smaller = at_once // 2
    return f"set THAW_MICROBATCH_SIZE={smaller}, which changes the result only by rounding" if smaller else ""


def with_other_cache(settings: Settings) -> str:
    """A hint for a run whose images take memory; empty where they take none."""
    return {"memory": "set THAW_CACHE=disk", "device": "set THAW_CACHE=memory or disk"}.get(settings.cache, "")


def evaluation_batch_size(settings: Settings, precision: Precision) -> int:
    """How many images an evaluation, in float32, takes at a time: no more than fit where a step of training did.

    For each image fine-tuning keeps more than an evaluation ever has at once. A step of the head alone has as many
    values as an evaluation, of the size that `precision` gives them.
    """
    fitting = images_at_once(settings, num_workers=1)
    if not _trains_backbone(settings):
        fitting = fitting * VALUE_BYTES[precision] // FLOAT32_BYTES
    return min(max(1, fitting), MAX_EVALUATION_BATCH)


def estimate(settings: Settings, *, num_examples: int, precision: Precision) -> Need:
    """The need of a run on so many examples in its three splits, at a precision that is decided.

    Memory is that of worker 0: none needs more. Scratch is that of each worker.
    """
    backbone, pixels = BACKBONES[settings.backbone], settings.image_size**2
    trains_backbone = _trains_backbone(settings)
    num_rows = math.ceil(settings.batch_size / settings.workers)
    # Which images are left out is known only when all are decoded.
    rows_kept = settings.batch_size if settings.on_unreadable == "skip" else num_rows
    images = math.ceil(num_examples * rows_kept / settings.batch_size) * pixels * 3
    model = FLOAT32_BYTES * backbone.num_parameters
    # With a frozen backbone no moments of it are kept, and a checkpoint has kilobytes.
    trained = model if trains_backbone else 0
    kept = max(MOMENTS[phase.optimizer] for phase in settings.training_phases()) + (settings.ema_decay > 0)
    checkpoint = (1 + kept) * trained
    values_at_once = backbone.values_per_pixel if trains_backbone else backbone.peak_per_pixel
    at_once = images_at_once(settings, settings.workers)
    activations = int(at_once * pixels * values_at_once * VALUE_BYTES[precision])
    evaluated = int(evaluation_batch_size(settings, precision) * pixels * backbone.peak_per_pixel * FLOAT32_BYTES)
    step = max(model, (2 + kept) * trained) + activations
    if at_once < num_rows:
        step += trained
    if settings.mixup > 0 or settings.cutmix > 0:
        step += at_once * pixels * 3 * FLOAT32_BYTES
    if settings.steps_per_execution > 1 and settings.cache != "device":
        step += settings.steps_per_execution * num_rows * pixels * 3
    training = step + CHECKPOINTS_UNDER_WAY * checkpoint
    evaluation = EXPORT_BYTES + model + max(model, checkpoint) + evaluated
    return Need(
        at_once=at_once,
        images=images,
        model=model,
        checkpoint=checkpoint,
        activations=activations,
        evaluated=evaluated,
        memory=LIBRARIES_BYTES + (images if settings.cache in ("memory", "device") else 0) + max(training, evaluation),
        device=(images if settings.cache == "device" else 0) + step,
        scratch=(images if settings.cache == "disk" else 0) + checkpoint,
        storage=(settings.keep_checkpoints + CHECKPOINTS_BESIDE_THE_KEPT) * checkpoint + model,
    )


def _trains_backbone(settings: Settings) -> bool:
    return any(phase.unfreeze != "none" for phase in settings.training_phases())
