"""The settings of the recipe: the model, what is done to its images, how it is trained, with which arithmetic."""

from typing import Literal

from pydantic import BaseModel, ValidationInfo, field_validator

from job.model.augmentation_policy import Flip
from job.model.backbones import BACKBONES
from job.phases import PHASE_NAMES, Keep, Monitor, OptimizerName, Schedule, Unfreeze, canonical
from job.settings.fields import BackboneName, ImageSize, Threshold, Weights, phase_rows, setting_group, variable

_model = setting_group("model", changes_result=True)
_augmentation = setting_group("augmentation", changes_result=True)
_phases = setting_group("phases", changes_result=True)
_regularization = setting_group("regularization", changes_result=True)
_answers = setting_group("answers", changes_result=True)
_numerics = setting_group("numerics", changes_result=True)


class RecipeSettings(BaseModel):
    """What is trained, and how. The defaults are the article's."""

    backbone: BackboneName = _model("Xception", f"pre-trained network: {', '.join(BACKBONES)}")
    image_size: ImageSize = _model(150, "side of the square input in pixels", ge=16, le=1024)
    weights: Weights = _model(
        "imagenet", "of the backbone: imagenet, a path or an object in a bucket (.h5, .weights.h5, .keras), none; or "
        "the place of a finished run, whose head is taken too, for classes of the same name",
    )  # fmt: skip
    dropout: float = _model(0.2, "fraction of the pooled features dropped in training", ge=0, lt=1)

    flip: Flip = _augmentation("horizontal", "random flip of training images")
    rotation: float = _augmentation(
        0.1, "largest random rotation of training images either way, as a fraction of a full turn; 0 = off", ge=0, le=1
    )
    zoom: float = _augmentation(
        0.0, "largest random zoom of training images, in or out, as a fraction of their size; 0 = off", ge=0, le=0.9
    )
    translation: float = _augmentation(
        0.0, "largest random shift of training images, as a fraction of height and of width; 0 = off", ge=0, le=0.9
    )
    brightness: float = _augmentation(
        0.0, "largest random change of training images' brightness, as a fraction of white; 0 = off", ge=0, le=1
    )
    contrast: float = _augmentation(
        0.0, "largest random change of training images' contrast, as a fraction of it; 0 = off", ge=0, le=1
    )
    saturation: float = _augmentation(
        0.0, "largest random change of training images' saturation, as a fraction of it; 0 = off", ge=0, le=1
    )
    hue: float = _augmentation(
        0.0, "largest random turn of training images' hue, as a fraction of the colour circle; 0 = off", ge=0, le=0.5
    )
    randaugment_operations: int = _augmentation(
        0, "RandAugment: how many random operations each training image goes through; 0 = off", ge=0, le=14
    )
    randaugment_magnitude: float = _augmentation(
        9.0, "RandAugment: strength of the operations, 10 is the greatest", ge=0, le=10
    )

    head_epochs: int = _phases(5, "epochs with the backbone frozen", ge=0, le=10_000)
    head_learning_rate: float = _phases(1e-3, "learning rate with the backbone frozen", gt=0, le=10)
    fine_tune_epochs: int = _phases(5, "epochs with every weight trained", ge=0, le=10_000)
    fine_tune_learning_rate: float = _phases(1e-5, "learning rate with every weight trained", gt=0, le=10)
    unfreeze: Unfreeze = _phases(
        "all", "what fine-tuning trains of the backbone: all, none, top:N (its last N layers), or block:NAME (from the "
        "first layer whose name begins so)",
    )  # fmt: skip
    phases: str | None = _phases(
        None, "any number of phases instead of these two, as JSON or YAML: a list of name, epochs, learning_rate, and "
        "optionally unfreeze, schedule, warmup_epochs, optimizer [default: head and fine_tune]", max_length=20_000,
    )  # fmt: skip
    optimizer: OptimizerName = _phases(
        "adam", "adam, sgd (with Nesterov's momentum of 0.9), or lion; each has a learning rate of its own size"
    )
    schedule: Schedule = _phases(
        "constant", "of the learning rate in each phase: constant, linear, cosine, or plateau (lower when validation "
        "stops improving)",
    )  # fmt: skip
    warmup_epochs: float = _phases(
        0.0, "epochs at the beginning of each phase in which the learning rate rises from 0; a fraction is allowed",
        ge=0, le=10_000,
    )  # fmt: skip
    end_factor: float = _phases(
        0.0, "what linear and cosine end at, as a fraction of the phase's learning rate", ge=0, le=1
    )
    plateau_patience: int = _phases(2, "epochs without improvement before plateau lowers the rate", ge=1, le=10_000)
    plateau_factor: float = _phases(0.1, "what plateau multiplies the rate by", gt=0, lt=1)
    patience: int | None = _phases(
        None, "a phase ends early after so many epochs without improvement [default: never]", ge=1, le=10_000
    )
    monitor: Monitor = _phases(
        "loss",
        "what improves: loss or accuracy of validation, or its balanced accuracy, in which every class counts the same",
    )
    keep: Keep = _phases("last", "the result of a phase: its last epoch, or its best one")

    class_weights: Literal["none", "balanced"] = _regularization(
        "none", "of the training loss: balanced gives every class the same part in it, however few its examples"
    )
    weight_decay: float = _regularization(
        0.0, "the fraction of each kernel that a step takes off, times the learning rate: AdamW; 0 = off", ge=0, le=10
    )
    clip_norm: float = _regularization(
        0.0, "largest global norm of a step's gradient, which is scaled down; 0 = off", ge=0
    )
    ema_decay: float = _regularization(
        0.0, "moving average of the weights over the steps of a phase, which is what is validated and shipped: the "
        "part that a step leaves of it, such as 0.99; 0 = off", ge=0, lt=1,
    )  # fmt: skip
    label_smoothing: float = _regularization(
        0.0, "part of each training label that is spread evenly over all classes; 0 = off", ge=0, lt=1
    )
    mixup: float = _regularization(
        0.0, "alpha of mixup, which blends each training image and its label with another: shares are drawn from "
        "Beta(alpha, alpha); 0 = off", ge=0, le=100,
    )  # fmt: skip
    cutmix: float = _regularization(
        0.0, "alpha of CutMix, which pastes a box of another training image into each, and mixes the labels by area; 0 "
        "= off. With mixup too, each image gets one of the two", ge=0, le=100,
    )  # fmt: skip

    calibrate: bool = _answers(
        False, "divide the logits of the exported model by the temperature that fits the validation split best"
    )
    threshold: Threshold = _answers(
        "0.5", "of two classes: probability above which the answer is the second one, above 0 and below 1; auto is the "
        "one with the greatest balanced accuracy on the validation split",
    )  # fmt: skip

    seed: int = _numerics(0, "of data order, augmentation, dropout and new weights", ge=0, lt=2**31)
    precision: Literal["auto", "float32", "bfloat16", "float16"] = _numerics(
        "auto",
        "arithmetic of the network: auto is mixed bfloat16 on GPUs from compute capability 8.0 on, and on CPUs "
        "that are faster in it, else float32; float16, with a loss scale, is for GPUs before that, such as a T4",
    )
    xla: Literal["auto", "on", "off"] = _numerics(
        "auto", "compile the train step with XLA: auto is off (depthwise convolutions are slower with it)"
    )
    deterministic: bool = _numerics(False, "only operations that give the same bits every time; slower")

    @field_validator("randaugment_magnitude")
    @classmethod
    def _of_some_operations(cls, magnitude: float, info: ValidationInfo) -> float:
        is_default = magnitude == cls.model_fields["randaugment_magnitude"].default
        if info.data.get("randaugment_operations") == 0 and not is_default:
            raise ValueError(f"it is of no use: {variable('randaugment_operations')} is 0")
        return magnitude

    @field_validator("phases")
    @classmethod
    def _instead_of_the_two(cls, text: str | None, info: ValidationInfo) -> str | None:
        if text is None:
            return None
        rows = phase_rows(text)
        others = [f"{name}_{quantity}" for name in PHASE_NAMES for quantity in ("epochs", "learning_rate")]
        for field in (*others, "unfreeze"):
            if info.data.get(field) != cls.model_fields[field].default:
                raise ValueError(f"lists all phases, so {variable(field)} has no place: leave one of the two out")
        return canonical(rows)

    @field_validator("fine_tune_epochs")
    @classmethod
    def _something_trains(cls, epochs: int, info: ValidationInfo) -> int:
        if epochs == 0 and info.data.get("head_epochs") == 0:
            raise ValueError(f"nothing would train: {variable('head_epochs')} is 0 too")
        return epochs
