"""What the fields of `Settings` are declared with: groups, types, and what texts are names of."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from job.paths import expanded
from job.storage.uri import checked_store

TFDS_NAME = re.compile(r"[a-z][a-z0-9_]*(/[\w-][\w.-]*)?(:\d+\.\d+\.\d+|:\d+\.\*\.\*)?")

Split = Annotated[str, Field(min_length=1)]


def _local(path: Any) -> Any:
    if isinstance(path, str) and "://" in path:
        raise ValueError("expected a path on this machine, not a URL")
    return path


StoreUri = Annotated[str, AfterValidator(checked_store)]
LocalPath = Annotated[Path, BeforeValidator(_local), AfterValidator(expanded)]
KUBERNETES_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$"


def setting_group(name: str, *, changes_result: bool) -> Callable[..., Any]:
    """The function that declares a setting of a group: default, description, bounds, and whether it changes the result.

    The group is where a person finds the setting in the help and the report. `changes_result` is that of its settings,
    unless one says otherwise.
    """

    def setting(default: Any, description: str, *, changes_result: bool = changes_result, **bounds: Any) -> Any:
        extra = {"group": name, "changes_result": changes_result}
        return Field(default, description=description, json_schema_extra=extra, **bounds)  # type: ignore[arg-type]

    return setting


def class_list(classes: str | None) -> tuple[str, ...]:
    """The names in THAW_CLASSES. Raises ValueError."""
    if classes is None:
        return ()
    if not classes.lstrip().startswith("["):
        names = [name.strip() for name in classes.split(",")]
    else:
        try:
            names = json.loads(classes)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"begins with [ and is no JSON list of names: {error}") from error
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError('expected names separated by commas, or as a JSON list such as ["cat", "dog"]; one is no name')
    return tuple(names)
