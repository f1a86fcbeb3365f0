"""The model of a finished run, as questions and later runs read it; imports TensorFlow."""

from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, TypeAdapter, ValidationError

from job.data.resizing import Resizing
from job.errors import InputError
from job.model import networks
from job.model.answers import DEFAULT_THRESHOLD
from job.report.files import LABELS, MODEL, THRESHOLD
from job.run.artefacts import content_of, verified_file
from job.schema import Record, recorded_setting
from job.storage import ObjectStore

Probability = Annotated[float, Field(gt=0, lt=1)]


class FinishedModel(NamedTuple):
    """The Keras model of a finished run, names of its classes, of two the threshold of the second, and its resizing."""

    network: Any
    class_names: list[str]
    threshold: float
    resizing: Resizing


def read_model(store: ObjectStore, record: Record, folder: Path) -> FinishedModel:
    """The files are verified before anything looks inside; `folder` holds them meanwhile. Raises InputError."""

    def content(name: str, kind: Any, expected: str) -> Any:
        data = content_of(store, record, name, folder)
        try:
            return TypeAdapter(kind).validate_json(data, strict=True)
        except ValidationError as error:
            raise InputError(f"{name} is {expected}: {error.errors()[0]['msg']}") from error

    model_file = verified_file(store, record, MODEL, folder / Path(MODEL).name)
    class_names = content(LABELS, list[str], "not a list of names")
    threshold = content(THRESHOLD, Probability, "no threshold") if THRESHOLD in record.files else DEFAULT_THRESHOLD
    network = networks.load_exported(model_file)
    num_classes = max(2, network.output_shape[-1])
    if len(class_names) != num_classes:
        raise InputError(f"{LABELS} has {len(class_names)} names, and the model has {num_classes} classes")
    resizing = Resizing(int(network.input_shape[1]), recorded_setting(record.settings, "RESIZE"))
    return FinishedModel(network, class_names, threshold, resizing)
