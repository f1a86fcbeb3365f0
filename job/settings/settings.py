"""Every THAW_* variable: its type, bound, unit and default; the fingerprint; the phases.

Read once, in `__main__`. Below the pipeline, functions take values, not `Settings`. Importing this module must stay
cheap: a wrong variable is reported in under half a second, before TensorFlow and before any network call.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from job.data import split_spec
from job.data.files.listing import FilesRequest, Labels
from job.data.files.names import is_place
from job.model.backbones import BACKBONES
from job.paths import expanded
from job.phases import PHASE_NAMES, PHASES, Phase
from job.redaction import redacted_value
from job.settings.fields import (
    KUBERNETES_NAME,
    TFDS_NAME,
    Backbone,
    Devices,
    ImageSize,
    LocalPath,
    Split,
    StoreUri,
    Weights,
    Worker,
    WorkerHost,
    WorkerPort,
    class_list,
    setting_group,
)
from job.storage import cache_folder
from job.storage.uri import PLACES, checked_bucket, checked_store, local_folder
from job.workers.addresses import Addresses
from job.workers.share import Share

PREFIX = "THAW_"
RECIPE_VERSION = 3
"""Part of the fingerprint: raised when the code itself changes what the same settings produce.

The default of a setting that changes the result is part of the recipe: another default is another recipe, and raises
this number too. A new setting does not, if its default produces what the code produced before.
"""


_run = setting_group("run", changes_result=False)
_data = setting_group("data", changes_result=True)
_augmentation = setting_group("augmentation", changes_result=True)
_model = setting_group("model", changes_result=True)
_phases = setting_group("phases", changes_result=True)
_numerics = setting_group("numerics", changes_result=True)
_workers = setting_group("workers", changes_result=False)
_operation = setting_group("operation", changes_result=False)


class Settings(BaseSettings):
    """The settings of one run. The defaults are the recipe: nothing needs to be set to get it."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True
    )

    run_id: str | None = _run(
        None, "name of the run, one path segment; the same name continues it [default: <dataset>-<fingerprint>]",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$",
    )  # fmt: skip
    storage_uri: StoreUri = _run("./runs", f"where runs are kept: {PLACES}")

    dataset: str = _data(
        "cats_vs_dogs", "TFDS data set (name, name/config or name:version), or a place of own images: a folder, an "
        "archive (.zip, .tar, .tar.gz) or a table (.csv, .jsonl, .parquet), local or gs://",
    )  # fmt: skip
    data_dir: str | None = _data(
        None, "folder of prepared TFDS data, local or gs:// [default: TFDS's own, ~/tensorflow_datasets]",
        changes_result=False,
    )  # fmt: skip
    labels: Labels = _data(
        "auto", "own images: labels from folders, from what begins a name (cat.0.jpg), or from a table in the folder"
    )
    classes: str | None = _data(
        None, "own images: the classes to learn, in this order, separated by commas or as a JSON list [default: all, "
        "sorted by name]", min_length=1,
    )  # fmt: skip
    stratify: bool = _data(True, "own images: each slice of a split gets its share of every class")
    on_unreadable: Literal["fail", "skip"] = _data(
        "fail", "images that cannot be decoded: fail names them all; skip leaves them out, and decodes all images first"
    )
    train_split: Split = _data(
        split_spec.DEFAULT_SPECS[0], "examples to train on; own images in folders train, validation and test: those"
    )
    validation_split: Split = _data(split_spec.DEFAULT_SPECS[1], "examples to validate on after each epoch")
    test_split: Split = _data(split_spec.DEFAULT_SPECS[2], "examples of the final evaluation")
    backbone: Backbone = _model("Xception", f"pre-trained network: {', '.join(BACKBONES)}")
    image_size: ImageSize = _data(150, "side of the square input in pixels", ge=16, le=1024)
    batch_size: int = _data(32, "examples a step, over all devices together", ge=1, le=65536)
    cache: Literal["memory", "disk", "none"] = _data(
        "memory", "where decoded images are kept as uint8: memory, disk (CACHE_DIR), or none", changes_result=False
    )

    flip: Literal["horizontal", "vertical", "horizontal_and_vertical", "none"] = _augmentation(
        "horizontal", "random flip of training images"
    )
    rotation: float = _augmentation(
        0.1, "largest random rotation of training images either way, as a fraction of a full turn; 0 = off", ge=0, le=1
    )

    weights: Weights = _model(
        "imagenet", "of the backbone: imagenet, a path or gs:// object (.h5, .weights.h5, .keras), or none"
    )
    dropout: float = _model(0.2, "fraction of the pooled features dropped in training", ge=0, lt=1)

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

    workers: int = _workers(
        1, "pods or machines that share the run; each runs a process for each of its DEVICES", ge=1, le=1024
    )
    worker: Worker = _workers(
        None, "which of them this is, from 0 [default: the index of the pod in an Indexed Job, else 0]", ge=0, le=1023
    )
    worker_host: WorkerHost = _workers(
        "localhost",
        "host of each worker: a name with {worker} in it, or a list separated by commas",
        pattern=r"^[\w.:{}$()-]+(, ?[\w.:{}$()-]+)*$",
    )
    worker_port: WorkerPort = _workers(
        2222, "first of the ports by which workers meet, one more for each process; on one machine free ones",
        ge=1024, le=65535,
    )  # fmt: skip
    worker_wait_seconds: float = _workers(600, "seconds to wait for the other workers to come", ge=1, le=86_400)
    devices: Devices = _workers(
        "auto", "processes of each worker, one for each device: auto is one a GPU, and one without a GPU",
        pattern=r"^(auto|[1-9][0-9]?)$",
    )  # fmt: skip

    checkpoint_every_seconds: float = _operation(120, "seconds between commits inside an epoch", ge=0, le=86_400)
    keep_checkpoints: int = _operation(2, "newest checkpoints kept, at least 1", ge=1, le=1000)
    lease_seconds: float = _operation(60, "seconds an attempt holds a run without renewing", ge=5, le=3600)
    grace_seconds: float = _operation(15, "seconds from SIGTERM until the process must be gone", gt=0, le=3600)
    job_uid: str | None = _operation(
        None, "uid of the Kubernetes Job (downward API): its next pod takes over at once [default: none]",
        pattern=KUBERNETES_NAME,
    )  # fmt: skip
    job_name: str | None = _operation(
        None, "name of the Kubernetes Job (downward API), recorded with the holder of the run [default: none]",
        pattern=KUBERNETES_NAME,
    )  # fmt: skip
    node_name: str | None = _operation(
        None, "name of the Kubernetes node (downward API), recorded likewise [default: none]", pattern=KUBERNETES_NAME
    )
    cache_dir: LocalPath | None = _operation(
        None, "folder for temporary files and mirrored data; each user has a part of their own "
        "[default: thaw in the user's cache folder]",
    )  # fmt: skip
    termination_log: LocalPath | None = _operation(
        None, "file for the termination message [default: /dev/termination-log where it exists]"
    )
    min_test_accuracy: float | None = _operation(
        None, "quality gate, 0 to 1: below it the exit code is 6 [default: no gate]", ge=0, le=1
    )
    metrics_port: int = _operation(9090, "port of /metrics; 0 = off", ge=0, le=65535)
    pushgateway_url: str | None = _operation(
        None, "Pushgateway for the outcome metrics, without user, password or query [default: no push]",
        pattern=r"^https?://[^\s@?#]+$",
    )  # fmt: skip
    log_format: Literal["auto", "console", "json"] = _operation(
        "auto", "console, json, or auto: console on a terminal, json elsewhere"
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What the caller gives, and never the process's own environment."""
        return (init_settings,)

    @field_validator("dataset")
    @classmethod
    def _name_or_place(cls, dataset: str) -> str:
        if is_place(dataset):
            return checked_store(dataset)
        if not TFDS_NAME.fullmatch(dataset):
            raise ValueError(
                "is neither a TFDS data set (name, name/config or name:version) nor a place of images, which begins "
                "with /, ./, ../, ~ or gs://, or ends as an archive or a table does; a folder here is "
                f"./{dataset}"
            )
        return dataset

    @field_validator("classes")
    @classmethod
    def _two_classes_or_more(cls, classes: str | None) -> str | None:
        names = class_list(classes)
        if classes is not None and (len(names) < 2 or len(set(names)) < len(names)):
            raise ValueError("expected two class names or more, none of them twice")
        return classes

    @field_validator("labels", "classes")
    @classmethod
    def _only_of_own_images(cls, value: str | None, info: ValidationInfo) -> str | None:
        assert info.field_name is not None
        is_set = value != cls.model_fields[info.field_name].default
        if is_set and "dataset" in info.data and not is_place(info.data["dataset"]):
            raise ValueError(f"is for own images, and {PREFIX}DATASET={info.data['dataset']!r} names a TFDS data set")
        return value

    @field_validator("data_dir")
    @classmethod
    def _data_without_tilde(cls, place: str | None) -> str | None:
        if place is None or "://" in place:
            return checked_bucket(place) if place else None
        return str(expanded(place))

    @field_validator("train_split", "validation_split", "test_split")
    @classmethod
    def _disjoint_and_not_empty(cls, split: str, info: ValidationInfo) -> str:
        if split_spec.is_empty(split):
            raise ValueError("has no examples: FROM must be below TO")
        for other in ("train_split", "validation_split"):
            if other != info.field_name and other in info.data and split_spec.overlap(split, info.data[other]):
                raise ValueError(
                    f"overlaps {PREFIX}{other.upper()}={info.data[other]!r}: the three splits must be disjoint"
                )
        return split

    @field_validator(f"{PHASE_NAMES[-1]}_epochs")
    @classmethod
    def _something_trains(cls, epochs: int, info: ValidationInfo) -> int:
        others = [f"{name}_epochs" for name in PHASE_NAMES[:-1]]
        if epochs == 0 and all(info.data.get(field) == 0 for field in others):
            raise ValueError(f"nothing would train: {', '.join(map(variable, others))} is 0 too")
        return epochs

    @classmethod
    def recipe(cls) -> dict[str, Any]:
        """The defaults of the settings that change the result, by variable name without the prefix; JSON values."""
        return {name.upper(): info.default for name, info in cls.model_fields.items() if _is_of_result(info)}

    def result_settings(self) -> dict[str, Any]:
        """The settings that change the result, by variable name without the prefix; JSON values."""
        values = self.model_dump(mode="json")
        return {name: values[name.lower()] for name in self.recipe()}

    def shown(self) -> dict[str, Any]:
        """Every setting by field, as it may be shown; JSON values."""
        values = self.model_dump(mode="json")
        return {field: redacted_value(value) if isinstance(value, str) else value for field, value in values.items()}

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits over all that changes the result and nothing else.

        Only what differs from the recipe enters it, so that a new setting leaves the runs under way what they are.
        """
        recipe = self.recipe()
        differing = {name: value for name, value in self.result_settings().items() if value != recipe[name]}
        # -0.0 is 0.0.
        differing = {name: value + 0 if isinstance(value, float) else value for name, value in differing.items()}
        text = json.dumps([RECIPE_VERSION, differing], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def resolved_run_id(self) -> str:
        """The run's name: RUN_ID, or a name made of the data set and the fingerprint."""
        name = self.dataset
        if is_place(name):
            name = name.rpartition("/")[2].partition(".")[0].lower()
        return self.run_id or f"{re.sub(r'[^a-z0-9_]+', '-', name).strip('-') or 'images'}-{self.fingerprint()}"

    def specs(self) -> tuple[str, str, str]:
        """The split specs of train, validation and test."""
        return self.train_split, self.validation_split, self.test_split

    def files_request(self) -> FilesRequest:
        """How own images are understood."""
        return FilesRequest(
            shown=self.dataset, labels=self.labels, classes=class_list(self.classes), stratify=self.stratify
        )

    def share(self) -> Share:
        """Which of the workers this process is, where each has one device."""
        return Share(self.worker or 0, self.workers)

    def addresses(self) -> Addresses:
        """Where the workers are. Raises ValueError."""
        return Addresses.of(self.worker_host, self.worker_port, num_workers=self.workers)

    def run_uri(self) -> str:
        """The place of the run in its store."""
        return f"{self.storage_uri}/{self.resolved_run_id()}"

    def local_folders(self) -> list[Path]:
        """Where on this machine the run writes: temporary files, and the runs if they are kept in a folder."""
        folders = [cache_folder.place(self.cache_dir)]
        store = local_folder(self.storage_uri)
        return folders if store is None else [*folders, store]

    def phases(self) -> tuple[Phase, ...]:
        """The phases that train, in order."""
        phases = (
            Phase(
                name=phase.name,
                trainable=phase.trainable,
                learning_rate=getattr(self, f"{phase.name}_learning_rate"),
                epochs=getattr(self, f"{phase.name}_epochs"),
            )
            for phase in PHASES
        )
        return tuple(phase for phase in phases if phase.epochs > 0)


def variable(field: str) -> str:
    """The environment variable of a field: `batch_size` -> `THAW_BATCH_SIZE`."""
    return PREFIX + field.upper()


def changes_result(field: str) -> bool:
    """Whether a field is part of the fingerprint."""
    return _is_of_result(Settings.model_fields[field])


def group_of(field: str) -> str:
    """The group under which a field is shown in the help, the report and docs/reference."""
    return str(_extra(Settings.model_fields[field])["group"])


def _is_of_result(info: FieldInfo) -> bool:
    return bool(_extra(info)["changes_result"])


def _extra(info: FieldInfo) -> dict[str, Any]:
    extra = info.json_schema_extra
    if not isinstance(extra, dict):
        raise TypeError(f"{info} was not declared by a group of settings")
    return extra
