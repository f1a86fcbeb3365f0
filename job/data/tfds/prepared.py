"""The files of a prepared TFDS data set: which they are, and whether TFDS may open them.

TFDS 4.9 imports the class of every feature under the name that `features.json` or `dataset_info.json` has for it,
which can be any module that Python finds, and joins the names of record files to the folder as they are. So a data set
from elsewhere could run code. Here only TFDS's own features pass. This module knows no TensorFlow.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from job.errors import InputError
from job.paths import UnsafeName, checked_name

DEFAULT_DATA_DIR = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
"""As `tensorflow_datasets.core.constants` has it, which takes half a second to import."""

DESCRIPTION = "dataset_info.json"
FEATURES = "features.json"
TRUSTED_CLASSES = "tensorflow_datasets.core.features."

_NEEDED = re.compile(r"LICENSE|.+\.(json|txt)|.+\.(tfrecord|array_record|riegeli|parquet)(-\d+-of-\d+)?")


def family(dataset: str) -> str:
    """The name of a data set without configuration and version, which is that of its folder."""
    return re.split("[/:]", dataset)[0]


def files_of_dataset(names: Iterable[str], dataset: str) -> list[str]:
    """The names that belong to `dataset`, which is name, name/config or either with :version.

    Of several versions the highest; of several configurations, when none is asked for, all.
    """
    match = re.match(r"^([^/:]+)(?:/([^:]+))?(?::(.+))?$", dataset)
    assert match is not None, dataset
    name, config, version = match.groups()
    paths = {entry: PurePosixPath(entry) for entry in names}
    newest: dict[PurePosixPath, PurePosixPath] = {}
    for path in paths.values():
        if path.name != DESCRIPTION or path.parts[0] != name or len(path.parts) not in (3, 4):
            continue
        folder, parent = path.parent, path.parent.parent
        is_config = config is None or parent.parts[1:] == tuple(config.split("/"))
        is_version = version is None or re.fullmatch(version.replace(".", r"\.").replace("*", r"\d+"), folder.name)
        if is_config and is_version and _version(folder) >= _version(newest.get(parent)):
            newest[parent] = folder
    return [entry for entry, path in paths.items() if path.parent in newest.values()]


def _version(folder: PurePosixPath | None) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", folder.name)) if folder else ()


def is_needed(name: str) -> bool:
    """Whether a file is a description, a list of labels, a licence or one with examples; TFDS reads no other."""
    return _NEEDED.fullmatch(PurePosixPath(name).name) is not None


def is_description(name: str) -> bool:
    """Whether a needed file is one of those that say what the others hold."""
    return name.endswith((".json", ".txt"))


def versions(data_dir: Path, dataset: str) -> list[str]:
    """The folders of what is prepared of a data set, whatever version or configuration is asked for."""
    return sorted(path.parent.relative_to(data_dir).as_posix() for path in _files(data_dir, family(dataset)))


def families(data_dir: Path) -> set[str]:
    """The names of the data sets that are prepared in a folder, which need not be there."""
    return {path.relative_to(data_dir).parts[0] for path in _files(data_dir, "*")}


def check(data_dir: Path, dataset: str) -> None:
    """Judge every description of a data set, which need not be there. Raises InputError."""
    for name in (DESCRIPTION, FEATURES):
        for path in _files(data_dir, family(dataset), name):
            _check_description(path)


def _files(data_dir: Path, family: str, name: str = DESCRIPTION) -> list[Path]:
    """The files of a name in name/version and name/config/version, where TFDS looks; `**` would not follow links."""
    patterns = (f"{family}/*/{name}", f"{family}/*/*/{name}")
    return [path for pattern in patterns for path in sorted(data_dir.glob(pattern))]


def _check_description(path: Path) -> None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        # TFDS cannot read it either, and says so.
        return
    hint = "prepare the data set with TFDS's own features, or take it from a source that you trust"
    for key, value in _texts(content):
        if key == "class" and not value.startswith(TRUSTED_CLASSES):
            raise InputError(
                f"{path} names {value!r} as the class of a feature, and TFDS would import it: expected one of "
                f"{TRUSTED_CLASSES[:-1]}",
                hint=hint,
            )
        if key == "template" and value:
            try:
                checked_name(value)
            except UnsafeName as error:
                raise InputError(
                    f"{path} has a place of record files outside of its folder: {error}", hint=hint
                ) from error


def _texts(content: Any) -> Iterator[tuple[str, str]]:
    """The names of classes (`class`) and of record files (`template`) in a description, at any depth."""
    pending = [content]
    while pending:
        item = pending.pop()
        if isinstance(item, list):
            pending += item
        if not isinstance(item, dict):
            continue
        for key, value in item.items():
            if not isinstance(value, str):
                pending.append(value)
            elif key in ("pythonClassName", "python_class_name") or (key == "type" and "content" in item):
                yield "class", value
            elif key in ("filepathTemplate", "filepath_template"):
                yield "template", value
            elif key in ("json", "content"):
                # Descriptions of features of TFDS before 4.5 are JSON inside JSON.
                try:
                    pending.append(json.loads(value))
                except (ValueError, RecursionError):
                    continue
