"""What a start needs from outside, tried without starting: storage, data, weights, device, memory, disk.

A check changes nothing and loads nothing. It says what it found, or raises what a start would raise. TensorFlow
Datasets is imported to look at data, which takes half a second; TensorFlow is not.
"""

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from job import nvidia, processor
from job.cli.asked import open_asked
from job.data import mirror
from job.data.files.names import is_archive, is_place
from job.data.tfds import prepared
from job.errors import (
    DeviceFailed,
    DeviceMissing,
    DeviceUnavailable,
    DiskTooSmall,
    MemoryExhausted,
    ThawError,
    WeightsUnusable,
)
from job.model.backbones import TINY
from job.run import disk_space
from job.run.disk_space import Space
from job.run.finished import begun_with
from job.settings import machine
from job.settings.resources import Need, with_other_cache, with_smaller_parts
from job.settings.settings import Settings
from job.storage import MISSING, ObjectStore, check_conditional_writes, probe, scratch
from job.storage.uri import is_bucket
from job.wording import counts, either, size
from job.workers.share import Share


@dataclass(frozen=True)
class Check:
    """What was found: good, doubtful (`warning`), what would stop a start (`failed`), or not tried (`skipped`)."""

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
    check_conditional_writes(store)
    return Check("storage", "ok", f"an object was created, read and deleted at {store.uri}")


def data(settings: Settings) -> Check:
    """Whether the data is here, in a mirror, or can be downloaded; `facts` has the sizes of the three splits, if known.

    The function that a start uses judges it. Raises DataUnavailable, InputError, DataCorrupt, InvalidSettings.
    """
    if is_place(settings.dataset):
        return _own_images(settings)
    place = settings.data_dir or prepared.DEFAULT_DATA_DIR
    if is_bucket(place):
        return _data_in_mirror(settings, place)
    from job.data.tfds.builders import download_bytes, find_builder

    builder, is_prepared = find_builder(settings.dataset, settings.data_dir)
    if not is_prepared:
        text = f"{settings.dataset}: not here; a start would download or make it"
        is_near = disk_space.is_with_the_cache(settings, Path(builder.data_dir_root))
        facts = {"examples": {}, "fetch_bytes": download_bytes(builder) if is_near else 0}
        return Check("data", "ok", text, facts=facts)
    return _judged(settings, builder, f"prepared: {settings.dataset} in {place}", Path.is_file)


def _own_images(settings: Settings) -> Check:
    """Whether own images are there, by their names alone; of an archive or table in a bucket, only that it is there."""
    from job.data.files import places, remote
    from job.data.files.judge import check_whole_splits, judge

    to_fetch = 0
    place, request = settings.dataset, settings.files_request()
    with scratch.folder(settings.cache_dir) as folder:
        if is_bucket(place):
            store, name, files = remote.look(place, open_asked)
            to_fetch = mirror.missing_bytes(mirror.folder_of_images(settings.cache_dir, place), files)
            if name or any(map(is_archive, files)):
                return Check("data", "ok", f"to be fetched: {place}", facts={"examples": {}, "fetch_bytes": to_fetch})
            listing = places.listing_of(place, remote.RemoteFiles(store, files, scratch=folder), request)
        else:
            listing = places.open_place(place, request, scratch=folder)
        judged = judge(listing, settings.specs())
        check_whole_splits(listing, judged)
    sizes = {name: sum(part.stop - part.start for part in parts) for name, parts in judged[1].items()}
    text = f"{len(listing.images):,} images of {len(listing.class_names):,} classes, read as {listing.layout}"
    return _of_splits(text, sizes, fetch_bytes=to_fetch)


def _data_in_mirror(settings: Settings, place: str) -> Check:
    """Whether a mirror has the data set, from its description alone."""
    from job.data.tfds.builders import find_builder

    store = open_asked(place)
    names = mirror.files_of_dataset(store, settings.dataset)
    with scratch.folder(settings.cache_dir) as folder:
        for name in names:
            if prepared.is_description(name):
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(store.read(name).data)
        builder, is_prepared = find_builder(settings.dataset, str(folder), place=place)
        if not is_prepared:
            text = f"{settings.dataset}: not in {place} as it is asked for; a start would download or make it"
            return Check("data", "ok", text, facts={"examples": {}})
        text = f"a mirror, to be fetched: {settings.dataset} in {place}"
        found = _judged(settings, builder, text, lambda path: path.relative_to(folder).as_posix() in names)
        to_fetch = mirror.missing_bytes(mirror.folder_of_copies(settings.cache_dir, place), names)
        return replace(found, facts={**found.facts, "fetch_bytes": to_fetch})


def _judged(settings: Settings, builder: Any, text: str, is_there: Callable[[Path], bool]) -> Check:
    from job.data.tfds.description import judge

    specs = settings.specs()
    judge(builder, specs, cache=settings.cache, is_there=is_there)
    sizes = {name: builder.info.splits[spec].num_examples for name, spec in specs.items()}
    return _of_splits(text, sizes)


def _of_splits(text: str, sizes: Mapping[str, int], **facts: int) -> Check:
    return Check("data", "ok", f"{text} ({counts(sizes)})", facts={"examples": sizes, **facts})


def weights(settings: Settings) -> Check:
    """Whether the pre-trained weights are here. Raises WeightsUnusable."""
    place = settings.weights
    if place == "none":
        if settings.backbone == TINY:
            return Check("weights", "ok", "none: the backbone begins at random")
        text = "none: the backbone begins at random, and statistics of BatchNorm that it has stay as they are then"
        return Check("weights", "warning", text, "for a result that is of use, name a file of weights, or imagenet")
    if place == "imagenet":
        return Check("weights", "ok", "imagenet: from Keras's cache, or downloaded at the start, which was not tried")
    if settings.begins_with_run():
        record = begun_with(settings, open_asked(place))
        return Check("weights", "ok", f"the model of the finished run {record.run_id}, backbone and head: {place}")
    if is_bucket(place):
        parent, _, name = place.rpartition("/")
        if open_asked(parent).version(name) == MISSING:
            raise WeightsUnusable(f"THAW_WEIGHTS={place!r}: there is no such object", hint="thaw mirror")
        return Check("weights", "ok", f"an object, to be fetched: {place}")
    path = Path(place).expanduser()
    if not path.is_file():
        raise WeightsUnusable(f"THAW_WEIGHTS={place!r}: there is no such file", hint="name one, or imagenet")
    return Check("weights", "ok", f"a file of {size(path.stat().st_size)}: {path}")


def device(settings: Settings) -> Check:
    """What the network would run on. TensorFlow is not asked. Raises DeviceUnavailable, DeviceFailed."""
    processor.check()
    try:
        if settings.device != "cpu":
            nvidia.check_gpu(settings.device)
    except (DeviceUnavailable, DeviceFailed) as error:
        if settings.device == "gpu":
            raise
        if not isinstance(error, DeviceMissing):
            return Check("device", "warning", f"{processor.name()}: {error.message}", error.hint)
    found = nvidia.models() if settings.device != "cpu" else []
    if settings.precision == "float16" and not found:
        hint = "set THAW_PRECISION=auto: on a processor fine-tuning in float16 takes many times as long"
        text = f"{processor.name()}, no GPU, and THAW_PRECISION=float16"
        return Check("device", "warning", text, hint, facts={"accelerators": found})
    return Check("device", "ok", ", ".join(found) or f"{processor.name()}, no GPU", facts={"accelerators": found})


def workers(settings: Settings, num_devices: int) -> Check:
    """Who would share the run, and where they would meet. No other worker is asked."""
    num_processes = settings.workers * num_devices
    addresses, first = settings.addresses(), settings.worker_port
    rows = Share(0, num_processes).of(settings.batch_size).stop
    facts = {"workers": settings.workers, "devices": num_devices, "hosts": addresses.hosts, "port": first}
    text = f"{num_processes:,} processes, with at most {rows:,} rows of a batch each"
    if settings.workers == 1:
        return Check("workers", "ok", f"1 × {num_devices} devices: {text}, on this machine", facts=facts)
    text = (
        f"{settings.workers:,} × {num_devices} {'device' if num_devices == 1 else 'devices'}: {text}; this is worker "
        f"{settings.worker or 0}, worker 0 is at {addresses.hosts[0]}:{first}, "
        f"tensors at ports {first + 1} to {first + num_processes}"
    )
    own = addresses.hosts[settings.worker or 0]
    try:
        socket.getaddrinfo(own, first)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        hint = "a pod finds it once the headless Service is there; elsewhere see THAW_WORKER_HOST"
        return Check("workers", "warning", f"{text}; {own} has no address here: {reason}", hint, facts=facts)
    return Check("workers", "ok", text, facts=facts)


def memory(settings: Settings, need: Need | None) -> Check:
    """Whether the estimate fits into what is free."""
    parts = with_smaller_parts(need.at_once) if need else ""
    hint = either("give it a larger limit of memory", with_other_cache(settings), parts)
    free = machine.available_memory_bytes()
    return _compared(Space("memory", need.memory if need else None, free, "free here", hint), "warning")


def device_memory(settings: Settings, need: Need | None) -> list[Check]:
    """Whether what one process keeps on its GPU fits there; images to be kept there that do not would stop a start."""
    found = disk_space.of_device(settings, need)
    otherwise: Literal["failed", "warning"] = "failed" if settings.cache == "device" else "warning"
    return [] if found is None else [_compared(found, otherwise, exit_code=int(MemoryExhausted.exit_code))]


def disks(settings: Settings, need: Need | None, to_fetch: int) -> list[Check]:
    """Whether the rest fits where a start would write it. What does not would stop the start."""
    try:
        scratch.check(settings.cache_dir)
    except ThawError as error:
        return [Check("scratch disk", "failed", error.message, error.hint, int(error.exit_code))]
    return [_compared(found, "failed") for found in disk_space.spaces(settings, need, to_fetch=to_fetch)]


def _compared(
    found: Space, otherwise: Literal["failed", "warning"], *, exit_code: int = int(DiskTooSmall.exit_code)
) -> Check:
    facts = {"needed_bytes": found.needed, "free_bytes": found.left}
    if not found.is_enough:
        code = exit_code if otherwise == "failed" else 0
        return Check(found.name, otherwise, str(found), found.hint, code, facts=facts)
    return Check(found.name, "skipped" if found.needed is None else "ok", str(found), facts=facts)
