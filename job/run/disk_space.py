"""Whether what a run has still to write fits: on its disks, into the volume that a cluster gives it, and on its GPU.

A pod whose volume outgrows its limit is evicted, and the next one begins with an empty one, again and again. So a start
compares before it writes, and ends with an error that no retry helps. `plan` asks the same.
"""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

import psutil

from job import nvidia
from job.errors import DiskTooSmall, MemoryExhausted
from job.settings import machine
from job.settings.resources import Need, with_smaller_parts
from job.settings.settings import Settings
from job.storage import cache_folder
from job.storage.uri import local_folder
from job.wording import either, size

BLOCK_BYTES = 512


class Space(NamedTuple):
    """`needed` bytes are to be written, None while that is not known, and `left` fit; `where` says what limits them."""

    name: str
    needed: int | None
    left: int
    where: str
    hint: str

    def __str__(self) -> str:
        left = f"{size(max(0, self.left))} {self.where}"
        if self.needed is None:
            return f"{'not known before the data is here' if self.left >= 0 else 'it is over its limit'}; {left}"
        return f"about {size(self.needed)} needed, {left}"

    @property
    def is_enough(self) -> bool:
        return (self.needed or 0) <= self.left


def spaces(settings: Settings, need: Need | None, *, to_fetch: int = 0) -> list[Space]:
    """Of the disk for temporary files, of the store where it is a folder, and of the volume that has a limit.

    `to_fetch` are bytes of data and weights that go to the first.
    """
    cache, run = cache_folder.place(settings.cache_dir).absolute(), local_folder(settings.run_uri())
    worker = settings.worker or 0

    def known(num_bytes: int) -> int | None:
        return num_bytes if need or to_fetch else None

    scratch = _written(need, [worker]) + to_fetch
    hint = "point THAW_CACHE_DIR at a larger volume"
    found = [Space("scratch disk", known(scratch), machine.free_disk_bytes(cache), f"free in {cache}", hint)]
    storage = 0
    if run is not None:
        run = run.absolute()
        # What the run has kept so far is a part of what it will keep.
        storage = max(0, need.storage - used_bytes(run)) if need else 0
        needed = storage if need else None
        hint = "point THAW_STORAGE_URI at a larger volume"
        found.append(Space("storage disk", needed, machine.free_disk_bytes(run), f"free in {run}", hint))
    if settings.work_bytes is not None:
        mount = _mount(cache)
        # Of the root file system only the cache is meant.
        volume = cache.parent if mount == mount.parent else mount
        # Of free space the other processes of this host take their part; of a limit nothing says what they will take.
        scratch = _written(need, settings.addresses().beside(worker)) + to_fetch
        if run is not None and _followed(run).is_relative_to(_followed(volume)) and _mount(run) == mount:
            scratch += storage
        left = settings.work_bytes - used_bytes(volume)
        where = f"left in {volume} of the {size(settings.work_bytes)} that THAW_WORK_BYTES allows"
        hint = (
            "raise the sizeLimit of the volume (`make render` gives it to THAW_WORK_BYTES) and the limit of "
            "ephemeral-storage; or set THAW_CACHE=none, or a smaller THAW_KEEP_CHECKPOINTS"
        )
        found.append(Space("work volume", known(scratch), left, where, hint))
    return found


def _written(need: Need | None, workers: list[int]) -> int:
    """Bytes of the temporary files of these workers. Each keeps images and a checkpoint; worker 0 alone exports."""
    return need.scratch * len(workers) + (need.model if 0 in workers else 0) if need else 0


def check(settings: Settings, need: Need | None, *, to_fetch: int = 0) -> None:
    """Raise DiskTooSmall when what is still to be written does not fit."""
    for space in spaces(settings, need, to_fetch=to_fetch):
        if not space.is_enough:
            raise DiskTooSmall(f"the {space.name} is too small: {space}", hint=space.hint)


def of_device(settings: Settings, need: Need | None) -> Space | None:
    """Of the GPU that would train; None where there is none."""
    if settings.device == "cpu" or (total := nvidia.memory_bytes()) is None:
        return None
    parts = with_smaller_parts(need.at_once) if need else ""
    hint = (
        "set THAW_CACHE=memory, which keeps only the images of a call on the GPU" if settings.cache == "device"
        else either(parts, "take a GPU with more memory")
    )  # fmt: skip
    return Space("device memory", need.device if need else None, total, "on the GPU", hint)


def check_device(settings: Settings, need: Need) -> None:
    """Raise MemoryExhausted when images that are to be kept on a GPU do not fit there, beside the training."""
    if settings.cache == "device" and (found := of_device(settings, need)) is not None and not found.is_enough:
        raise MemoryExhausted(f"THAW_CACHE=device: the GPU is too small: {found}", hint=found.hint)


def memory_of_host(settings: Settings, need: Need, num_processes: int) -> int:
    """Bytes of memory that so many processes of one host need together.

    Images that are kept on a device are in memory too; without a GPU the device is the memory, which has them twice.
    """
    images_again = need.images if settings.cache == "device" and of_device(settings, need) is None else 0
    return (need.memory + images_again) * num_processes


def is_with_the_cache(settings: Settings, folder: Path) -> bool:
    """Whether a folder is on the volume of the temporary files."""
    return _mount(folder.expanduser()) == _mount(cache_folder.place(settings.cache_dir))


def used_bytes(folder: Path) -> int:
    """What is stored under a folder, without what is mounted there; 0 where there is none."""
    total, mounts = 0, _mounts()
    for above, folders, files in os.walk(_followed(folder)):
        folders[:] = [name for name in folders if Path(above, name) not in mounts]
        for name in files:
            # Another process may remove it now.
            with contextlib.suppress(OSError):
                total += Path(above, name).lstat().st_blocks * BLOCK_BYTES
    return total


def _mounts() -> set[Path]:
    # A volume of Kubernetes may be a folder of the same file system, so the numbers of devices do not tell.
    return {Path(partition.mountpoint) for partition in psutil.disk_partitions(all=True)}


def _mount(path: Path) -> Path:
    """Where the volume of a path is mounted."""
    path, mounts = _followed(path), _mounts()
    return next((folder for folder in (path, *path.parents) if folder in mounts), path.parents[-1])


def _followed(path: Path) -> Path:
    """Without links. Unlike `Path.resolve` this raises for no loop of them, which others report."""
    return Path(os.path.realpath(path))
