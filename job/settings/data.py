"""The settings of the data: which images, which of them train, and how they are read."""

from typing import Literal

from pydantic import BaseModel, ValidationInfo, field_validator

from job.data import split_spec
from job.data.files.listing import Labels
from job.data.files.names import is_place
from job.data.resizing import Way
from job.paths import expanded
from job.settings.fields import PREFIX, TFDS_NAME, class_list, setting_group
from job.storage.uri import checked_bucket, checked_store

_data = setting_group("data", changes_result=True)


class DataSettings(BaseModel):
    """Where the images are, and what is made of them."""

    dataset: str = _data(
        "cats_vs_dogs", "TFDS data set (name, name/config or name:version), or a place of own images: a folder, an "
        "archive (.zip, .tar, .tar.gz) or a table (.csv, .jsonl, .parquet), local or in a bucket",
    )  # fmt: skip
    data_dir: str | None = _data(
        None, "folder of prepared TFDS data, local or in a bucket [default: TFDS's own, ~/tensorflow_datasets]",
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
    resize: Way = _data(
        "stretch", "how an image becomes a square of IMAGE_SIZE: stretch, without antialiasing; or with it and the "
        "aspect ratio kept, crop to the largest square in the middle, or pad with black",
    )  # fmt: skip
    train_split: str = _data(
        split_spec.DEFAULT_SPECS[0], "examples to train on; own images in folders train, validation and test: those"
    )
    validation_split: str = _data(split_spec.DEFAULT_SPECS[1], "examples to validate on after each epoch")
    test_split: str = _data(split_spec.DEFAULT_SPECS[2], "examples of the final evaluation")
    batch_size: int = _data(32, "examples a step, over all devices together", ge=1, le=65536)
    cache: Literal["memory", "device", "disk", "none"] = _data(
        "memory", "where decoded images are kept as uint8: memory, device (in memory and on the GPU), disk "
        "(CACHE_DIR), or none", changes_result=False,
    )  # fmt: skip

    @field_validator("dataset")
    @classmethod
    def _name_or_place(cls, dataset: str) -> str:
        if is_place(dataset):
            return checked_store(dataset)
        if not TFDS_NAME.fullmatch(dataset):
            raise ValueError(
                "is neither a TFDS data set (name, name/config or name:version) nor a place of images, which begins "
                "with /, ./, ../, ~, gs://, s3:// or az://, or ends as an archive or a table does; a folder here is "
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
