"""What a start needs from outside, tried without starting: storage, data, weights, device, memory, disk.

A check changes nothing and loads nothing. It says what it found, or raises what a start would raise. TensorFlow
Datasets is imported only where files do not tell: when data is not prepared.
"""

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from job import machine, mirror, splits
from job.errors import DataUnavailable, InvalidSettings, ObjectMissing, ThawError, WeightsUnusable
from job.need import VALUE_BYTES, Need, estimate
from job.settings import PREFIX, Settings
from job.storage import MISSING, LocalStore, ObjectStore, open_store, probe

DEFAULT_DATA_DIR = Path("~/tensorflow_datasets")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Check:
    """What was found: well, doubtful (`warning`), in the way of a start (`failed`), or not tried (`skipped`)."""

    name: str
    outcome: Literal["ok", "warning", "failed", "skipped"]
    text: str
    hint: str = ""
    exit_code: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)


def attempted(name: str, look: Callable[[], Check]) -> Check:
    """A check, or the error that it met as one."""
    try:
        return look()
    except ThawError as error:
        return Check(name, "failed", error.message, error.hint, int(error.exit_code))


def storage(store: ObjectStore) -> Check:
    """Whether the run's place can be written. Raises StorageError."""
    probe(store)
    return Check("storage", "ok", f"an object was created, read and deleted at {store.uri}")


def data(settings: Settings) -> Check:
    """Whether the data is here, in a mirror, or to be had; `facts` has the sizes of the three splits that are known.

    Raises DataUnavailable, InvalidSettings when the splits do not fit the data.
    """
    place = settings.data_dir or str(DEFAULT_DATA_DIR.expanduser())
    sizes = _sizes_of_named_splits(open_store(place), settings.dataset)
    if sizes is not None:
        kind = "a mirror, to be fetched" if mirror.is_remote(place) else "prepared"
        facts = {"examples": _sizes(settings, sizes)}
        text = ", ".join(f"{name} {count:,}" for name, count in facts["examples"].items() if count is not None)
        return Check("data", "ok", f"{kind}: {settings.dataset} in {place} ({text or 'sizes not known'})", facts=facts)
    if mirror.is_remote(place):
        raise DataUnavailable(
            f"there is no prepared data of {settings.dataset!r} under {place}",
            hint=f"fill it from a machine with a network: python -m job mirror --to URI --dataset {settings.dataset}",
        )
    from job.dataset import find_builder

    _, is_prepared = find_builder(settings.dataset, settings.data_dir)
    todo = "prepared" if is_prepared else "not here; a start would download or make it"
    return Check("data", "ok", f"{settings.dataset}: {todo}", facts={"examples": {}})


def weights(settings: Settings) -> Check:
    """Whether the pre-trained weights are here. Raises WeightsUnusable."""
    place = settings.weights
    if place == "none":
        return Check("weights", "ok", "none: the backbone begins at random")
    if place == "imagenet":
        return Check("weights", "ok", "imagenet: from Keras's cache, or downloaded at the start, which was not tried")
    if mirror.is_remote(place):
        parent, _, name = place.rpartition("/")
        if open_store(parent).generation(name) == MISSING:
            raise WeightsUnusable(f"THAW_WEIGHTS={place!r}: there is no such object", hint="python -m job mirror")
        return Check("weights", "ok", f"an object, to be fetched: {place}")
    path = Path(place).expanduser()
    if not path.is_file():
        raise WeightsUnusable(f"THAW_WEIGHTS={place!r}: there is no such file", hint="name one, or imagenet")
    return Check("weights", "ok", f"a file of {path.stat().st_size / 1e6:.1f} MB: {path}")


def device() -> Check:
    """What the network would run on."""
    found = machine.accelerators()
    return Check("device", "ok", ", ".join(found) or f"{machine.processor()}, no GPU", facts={"accelerators": found})


def need_of(settings: Settings, *, num_examples: int, precision: str) -> Need:
    """What a run of these settings needs, on so many examples in its three splits, at a precision that is decided."""
    return estimate(
        backbone=settings.backbone,
        num_examples=num_examples,
        image_size=settings.image_size,
        batch_size=settings.batch_size,
        cache=settings.cache,
        value_bytes=VALUE_BYTES[precision],
        fine_tunes=settings.fine_tune_epochs > 0,
        keep_checkpoints=settings.keep_checkpoints,
    )


def memory(need: Need | None) -> Check:
    """Whether the estimate fits into what is free."""
    free = machine.available_memory_bytes()
    return _compared(
        "memory", need.memory if need else None, free, "free here", "a smaller THAW_BATCH_SIZE, or a larger limit"
    )


def disks(settings: Settings, need: Need | None, store: ObjectStore) -> list[Check]:
    """The same of the disk for temporary files, and of the store where it is a disk."""
    scratch = settings.cache_dir or Path(tempfile.gettempdir())
    found = [
        _compared(
            "scratch disk", need.scratch if need else None, machine.free_disk_bytes(scratch), f"free in {scratch}",
            "point THAW_CACHE_DIR at a larger volume",
        )
    ]  # fmt: skip
    if isinstance(store, LocalStore):
        found.append(
            _compared(
                "storage disk", need.storage if need else None, machine.free_disk_bytes(store.root),
                f"free in {store.uri}", "point THAW_STORAGE_URI at a larger volume",
            )
        )  # fmt: skip
    return found


def _compared(name: str, needed: int | None, free: int, where: str, way_out: str) -> Check:
    facts = {"needed_bytes": needed, "free_bytes": free}
    if needed is None:
        return Check(name, "skipped", f"not known before the data is here; {free / 1e9:.1f} GB {where}", facts=facts)
    text = f"about {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB {where}"
    return Check(name, "ok" if needed <= free else "warning", text, "" if needed <= free else way_out, facts=facts)


def _sizes_of_named_splits(store: ObjectStore, dataset: str) -> dict[str, int] | None:
    """The number of examples by split, from the description beside prepared data; None when there is none."""
    try:
        names = mirror.files_of_dataset(store.list(f"{re.split('[/:]', dataset)[0]}/"), dataset)
    except ObjectMissing:
        return None
    descriptions = [name for name in names if name.endswith("/dataset_info.json")]
    if not descriptions:
        return None
    try:
        content = json.loads(store.read(descriptions[0]).data)
        return {split["name"]: sum(map(int, split["shardLengths"])) for split in content["splits"]}
    except (ValueError, KeyError, TypeError) as error:
        raise DataUnavailable(
            f"{store.uri}/{descriptions[0]} does not describe a data set: {error}", hint="prepare or copy it again"
        ) from error


def _sizes(settings: Settings, sizes: Mapping[str, int]) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    problems = []
    for name in SPLITS:
        spec = getattr(settings, f"{name}_split")
        try:
            found[name] = splits.num_examples(spec, sizes)
        except ValueError as error:
            problems.append(f"{PREFIX}{name.upper()}_SPLIT={spec!r}: {error}")
    if problems:
        raise InvalidSettings("the splits do not fit the data.\n" + "\n".join(f"  {line}" for line in problems))
    return found
