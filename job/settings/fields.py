"""What the fields of `Settings` are declared with: groups, types, and how THAW_PHASES and THAW_CLASSES are parsed."""

import json
import math
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo

from job.model.backbones import BACKBONES, CUSTOM
from job.paths import expanded
from job.phases import ROWS, PhaseRow
from job.storage.uri import checked_object, checked_store, is_bucket
from job.workers.addresses import Addresses

PREFIX = "THAW_"
TFDS_NAME = re.compile(r"[a-z][a-z0-9_]*(/[\w-][\w.-]*)?(:\d+\.\d+\.\d+|:\d+\.\*\.\*)?")

Precision = Literal["float32", "bfloat16", "float16"]


def _local(path: Any) -> Any:
    if isinstance(path, str) and "://" in path:
        raise ValueError("expected a path on this machine, not a URL")
    return path


def _known(name: str) -> str:
    if name not in BACKBONES:
        raise ValueError(f"must be one of {', '.join(BACKBONES)}")
    return name


def _large_enough(size: int, info: ValidationInfo) -> int:
    backbone = info.data.get("backbone")
    if backbone and size < BACKBONES[backbone].min_image_size:
        raise ValueError(f"{backbone} needs at least {BACKBONES[backbone].min_image_size} pixels")
    return size


def names_a_run(weights: str) -> bool:
    """Whether THAW_WEIGHTS is the place of a finished run, and neither a word nor a file."""
    return weights not in ("imagenet", "none") and not weights.endswith((".h5", ".keras"))


def _there_for_the_backbone(weights: str, info: ValidationInfo) -> str:
    backbone = info.data.get("backbone")
    is_run = names_a_run(weights)
    if backbone == CUSTOM and not (is_run or weights.endswith(".keras")):
        raise ValueError(f"{CUSTOM} is the network of a .keras file: give the path of one, or the place of a run")
    if is_run and not is_bucket(weights):
        return checked_store(weights)
    if "://" in weights:
        return checked_object(weights)
    if weights == "imagenet" and backbone and not BACKBONES[backbone].has_imagenet_weights:
        raise ValueError(f"there are no ImageNet weights of {backbone}: give a path, or none")
    expanded(weights)
    return weights


def _auto_or_probability(threshold: str) -> str:
    """As it is shown and enters the fingerprint, however the number was written."""
    if threshold == "auto":
        return threshold
    try:
        probability = float(threshold)
    except ValueError:
        probability = math.nan
    if not 0 < probability < 1:
        raise ValueError("must be auto, or a number above 0 and below 1")
    return str(probability)


def _one_of_the_workers(worker: int | None, info: ValidationInfo) -> int | None:
    workers = info.data.get("workers")
    if worker is not None and workers is not None and worker >= workers:
        raise ValueError(f"must be below THAW_WORKERS={workers}: workers are counted from 0")
    return worker


def _of_each_worker(host: str, info: ValidationInfo) -> str:
    if "workers" in info.data:
        Addresses.of(host, 0, num_workers=info.data["workers"])
    return host


def _with_ports_for_all(port: int, info: ValidationInfo) -> int:
    if "worker_host" in info.data and "workers" in info.data:
        Addresses.of(info.data["worker_host"], port, num_workers=info.data["workers"])
    return port


def _with_work_for_each(devices: str, info: ValidationInfo) -> str:
    workers, batch_size = info.data.get("workers", 1), info.data.get("batch_size")
    num_processes = workers * (1 if devices == "auto" else int(devices))
    if batch_size is not None and num_processes > batch_size:
        raise ValueError(
            f"with THAW_WORKERS={workers} these are {num_processes} processes, and one would have no examples: "
            f"THAW_BATCH_SIZE={batch_size} is over all of them"
        )
    return devices


def _num_bytes(size: Any) -> Any:
    """A quantity as Kubernetes has it, such as 20Gi or 500M; a plain number is bytes."""
    if not isinstance(size, str):
        return size
    parts = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(?:([kKMGTP])(i?))?", size.strip())
    if parts is None:
        raise ValueError("must be bytes as a whole number, or a size such as 20Gi or 500M")
    number, letter, is_binary = parts.groups()
    factor = (1024 if is_binary else 1000) ** ("kmgtp".index(letter.lower()) + 1) if letter else 1
    return int(Decimal(number) * factor)


StoreUri = Annotated[str, AfterValidator(checked_store)]
NumBytes = Annotated[int, BeforeValidator(_num_bytes)]
LocalPath = Annotated[Path, BeforeValidator(_local), AfterValidator(expanded)]
BackboneName = Annotated[str, AfterValidator(_known)]
ImageSize = Annotated[int, AfterValidator(_large_enough)]
Weights = Annotated[str, AfterValidator(_there_for_the_backbone)]
Threshold = Annotated[str, AfterValidator(_auto_or_probability)]
Worker = Annotated[int | None, AfterValidator(_one_of_the_workers)]
WorkerHost = Annotated[str, AfterValidator(_of_each_worker)]
WorkerPort = Annotated[int, AfterValidator(_with_ports_for_all)]
Devices = Annotated[str, AfterValidator(_with_work_for_each)]
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


def variable(field: str) -> str:
    """The environment variable of a field: `batch_size` -> `THAW_BATCH_SIZE`."""
    return PREFIX + field.upper()


def phase_rows(text: str) -> list[PhaseRow]:
    """The phases in THAW_PHASES, which is JSON or YAML. Raises ValueError, which names the row."""
    import yaml  # Only here: few runs have such a list, and every start would wait for the import.

    try:
        # JSON is YAML, but for numbers such as 1e-3, which YAML 1.1 takes as text; pydantic reads that as a number.
        rows = ROWS.validate_python(yaml.safe_load(text))
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"is neither JSON nor YAML: {' '.join(str(error).split())[:200]}") from error
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        number, *field = problem["loc"] or ("",)
        place = f"phase {number + 1}: {'.'.join(map(str, field))}" if isinstance(number, int) else "expected a list"
        raise ValueError(f"{place}: {problem['msg'].removeprefix('Value error, ')}") from error
    names = [row.name for row in rows]
    if len(set(names)) < len(names):
        raise ValueError(f"two phases have the same name: {', '.join(names)}")
    return rows


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
