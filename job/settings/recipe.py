"""The settings of the recipe: the model, what is done to its images, how it is trained, with which arithmetic."""

from typing import Literal

from pydantic import BaseModel, ValidationInfo, field_validator

from job.model.backbones import BACKBONES
from job.phases import PHASE_NAMES
from job.settings.fields import Backbone, ImageSize, Threshold, Weights, setting_group, variable

_model = setting_group("model", changes_result=True)
_augmentation = setting_group("augmentation", changes_result=True)
_phases = setting_group("phases", changes_result=True)
_answers = setting_group("answers", changes_result=True)
_numerics = setting_group("numerics", changes_result=True)


class RecipeSettings(BaseModel):
    """What is trained, and how. The defaults are the article's."""

    backbone: Backbone = _model("Xception", f"pre-trained network: {', '.join(BACKBONES)}")
    image_size: ImageSize = _model(150, "side of the square input in pixels", ge=16, le=1024)
    weights: Weights = _model(
        "imagenet", "of the backbone: imagenet, a path or gs:// object (.h5, .weights.h5, .keras), or none"
    )
    dropout: float = _model(0.2, "fraction of the pooled features dropped in training", ge=0, lt=1)

    flip: Literal["horizontal", "vertical", "horizontal_and_vertical", "none"] = _augmentation(
        "horizontal", "random flip of training images"
    )
    rotation: float = _augmentation(
        0.1, "largest random rotation of training images either way, as a fraction of a full turn; 0 = off", ge=0, le=1
    )

    head_epochs: int = _phases(5, "epochs with the backbone frozen", ge=0, le=10_000)
    head_learning_rate: float = _phases(1e-3, "Adam's learning rate with the backbone frozen", gt=0, le=10)
    fine_tune_epochs: int = _phases(5, "epochs with every weight trained", ge=0, le=10_000)
    fine_tune_learning_rate: float = _phases(1e-5, "Adam's learning rate with every weight trained", gt=0, le=10)
    class_weights: Literal["none", "balanced"] = _phases(
        "none", "of the training loss: balanced gives every class the same part in it, however few its examples"
    )

    calibrate: bool = _answers(
        False, "divide the logits of the exported model by the temperature that fits the validation split best"
    )
    threshold: Threshold = _answers(
        "0.5", "of two classes: probability above which the answer is the second one, above 0 and below 1; auto is the "
        "one with the greatest balanced accuracy on the validation split",
    )  # fmt: skip

    seed: int = _numerics(0, "of data order, augmentation, dropout and new weights", ge=0, lt=2**31)
    precision: Literal["auto", "float32", "bfloat16"] = _numerics(
        "auto", "arithmetic of the network: auto is bfloat16 where the processor has it natively, else float32"
    )
    xla: Literal["auto", "on", "off"] = _numerics(
        "auto", "compile the train step with XLA: auto is off (depthwise convolutions are slower with it)"
    )
    deterministic: bool = _numerics(False, "only operations that give the same bits every time; slower")

    @field_validator(f"{PHASE_NAMES[-1]}_epochs")
    @classmethod
    def _something_trains(cls, epochs: int, info: ValidationInfo) -> int:
        others = [f"{name}_epochs" for name in PHASE_NAMES[:-1]]
        if epochs == 0 and all(info.data.get(field) == 0 for field in others):
            raise ValueError(f"nothing would train: {', '.join(map(variable, others))} is 0 too")
        return epochs
