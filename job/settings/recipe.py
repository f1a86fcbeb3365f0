"""The settings of the recipe: the model, what is done to its images, how it is trained, with which arithmetic."""

from typing import Literal

from pydantic import BaseModel, ValidationInfo, field_validator

from job.model.augmentation_policy import Flip
from job.model.backbones import BACKBONES
from job.phases import PHASE_NAMES
from job.settings.fields import Backbone, ImageSize, Weights, setting_group, variable

_model = setting_group("model", changes_result=True)
_augmentation = setting_group("augmentation", changes_result=True)
_phases = setting_group("phases", changes_result=True)
_numerics = setting_group("numerics", changes_result=True)


class RecipeSettings(BaseModel):
    """What is trained, and how. The defaults are the article's."""

    backbone: Backbone = _model("Xception", f"pre-trained network: {', '.join(BACKBONES)}")
    image_size: ImageSize = _model(150, "side of the square input in pixels", ge=16, le=1024)
    weights: Weights = _model(
        "imagenet", "of the backbone: imagenet, a path or gs:// object (.h5, .weights.h5, .keras), or none"
    )
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
    head_learning_rate: float = _phases(1e-3, "Adam's learning rate with the backbone frozen", gt=0, le=10)
    fine_tune_epochs: int = _phases(5, "epochs with every weight trained", ge=0, le=10_000)
    fine_tune_learning_rate: float = _phases(1e-5, "Adam's learning rate with every weight trained", gt=0, le=10)
    class_weights: Literal["none", "balanced"] = _phases(
        "none", "of the training loss: balanced gives every class the same part in it, however few its examples"
    )

    seed: int = _numerics(0, "of data order, augmentation, dropout and new weights", ge=0, lt=2**31)
    precision: Literal["auto", "float32", "bfloat16"] = _numerics(
        "auto", "arithmetic of the network: auto is bfloat16 where the processor has it natively, else float32"
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

    @field_validator(f"{PHASE_NAMES[-1]}_epochs")
    @classmethod
    def _something_trains(cls, epochs: int, info: ValidationInfo) -> int:
        others = [f"{name}_epochs" for name in PHASE_NAMES[:-1]]
        if epochs == 0 and all(info.data.get(field) == 0 for field in others):
            raise ValueError(f"nothing would train: {', '.join(map(variable, others))} is 0 too")
        return epochs
