"""Every THAW_* variable, in one class; the fingerprint; what the settings mean together.

`data`, `recipe` and `operation` declare them: type, bound, unit and default. Read once, in `__main__`. Below the
pipeline, functions take values, not `Settings`. Importing this module must stay cheap: a wrong variable is reported in
under half a second, before TensorFlow and before any network call.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from job.data.files.listing import FilesRequest
from job.data.files.names import is_place
from job.data.resizing import Resizing
from job.data.split_spec import Specs
from job.errors import InvalidSettings
from job.model.augmentation_policy import Augmentation
from job.phases import Phase, phases_of
from job.redaction import redacted_value
from job.settings.data import DataSettings
from job.settings.fields import PREFIX, class_list, names_a_run
from job.settings.operation import OperationSettings, RunSettings
from job.settings.recipe import RecipeSettings
from job.storage import cache_folder
from job.storage.uri import local_folder
from job.workers.addresses import Addresses

RECIPE_VERSION = 3
"""Part of the fingerprint: raised when the code itself changes what the same settings produce.

The default of a setting that changes the result is part of the recipe: another default is another recipe, and raises
this number too. A new setting does not, if its default produces what the code produced before.
"""


class Settings(OperationSettings, RecipeSettings, DataSettings, RunSettings, BaseSettings):
    """The settings of one run. The defaults are the recipe: nothing needs to be set to get it."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What the caller gives, and never the process's own environment."""
        return (init_settings,)

    @classmethod
    def result_defaults(cls) -> dict[str, Any]:
        """The defaults of the settings that change the result, by variable name without the prefix; JSON values."""
        return {name.upper(): info.default for name, info in cls.model_fields.items() if _extra(info)["changes_result"]}

    def result_settings(self) -> dict[str, Any]:
        """The settings that change the result, by variable name without the prefix; JSON values."""
        values = self.model_dump(mode="json")
        return {name: values[name.lower()] for name in self.result_defaults()}

    def shown(self) -> dict[str, Any]:
        """Every setting by field, as it may be shown; JSON values."""
        values = self.model_dump(mode="json")
        return {field: redacted_value(value) if isinstance(value, str) else value for field, value in values.items()}

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits over all that changes the result and nothing else.

        Only what differs from the recipe enters it, so that a new setting leaves the runs under way what they are.
        """
        defaults = self.result_defaults()
        differing = {name: value for name, value in self.result_settings().items() if value != defaults[name]}
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

    def specs(self) -> Specs:
        """The split specs of train, validation and test."""
        return {"train": self.train_split, "validation": self.validation_split, "test": self.test_split}

    def files_request(self) -> FilesRequest:
        """How own images are understood."""
        return FilesRequest(
            shown=self.dataset, labels=self.labels, classes=class_list(self.classes), stratify=self.stratify
        )

    def resizing(self) -> Resizing:
        """What every image becomes before the network sees it."""
        return Resizing(self.image_size, self.resize)

    def begins_with_run(self) -> bool:
        """Whether the model begins with that of a finished run, whose place is `weights`."""
        return names_a_run(self.weights)

    def augmentation(self) -> Augmentation:
        """What is done to training images at random."""
        return Augmentation(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Augmentation)})

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

    def gates(self) -> dict[str, float]:
        """The quality gates, by the number of the outcome that each is of."""
        found = {"test_accuracy": self.min_test_accuracy, "test_balanced_accuracy": self.min_test_balanced_accuracy}
        return {name: gate for name, gate in found.items() if gate is not None}

    def check_classes(self, class_names: Sequence[str]) -> None:
        """Raise InvalidSettings when a setting does not fit the number of classes, which only the data has."""
        if len(class_names) > 2 and self.threshold != Settings.model_fields["threshold"].default:
            raise InvalidSettings(
                f"{PREFIX}THRESHOLD={self.threshold} is for two classes, and the data has {len(class_names)}",
                hint=f"leave {PREFIX}THRESHOLD out: of more classes the most probable one is the answer",
            )

    def training_phases(self) -> tuple[Phase, ...]:
        """The phases that train, in order."""
        return phases_of(self.result_settings())


def changes_result(field: str) -> bool:
    """Whether a field is part of the fingerprint."""
    return bool(_extra(Settings.model_fields[field])["changes_result"])


def group_of(field: str) -> str:
    """The group under which a field is shown in the help, the report and docs/reference."""
    return str(_extra(Settings.model_fields[field])["group"])


def _extra(info: FieldInfo) -> dict[str, Any]:
    assert isinstance(info.json_schema_extra, dict), f"{info} was not declared by a group of settings"
    return info.json_schema_extra
