"""What this machine has of memory and disk; read without TensorFlow.

In a container memory is what its control group leaves, not what the host has.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import psutil

from job.paths import nearest_existing

CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
"""Limit and use of this container, of version 2 and 1 of the interface."""


def available_memory_bytes(cgroups: Sequence[tuple[Path, Path]] = CGROUPS) -> int:
    """Memory that this process may still take; `cgroups` are files with limit and use of its container."""
    available = psutil.virtual_memory().available
    for limit, used in cgroups:
        try:
            left = int(limit.read_text()) - int(used.read_text())
        except (OSError, ValueError):
            # No such control group, or no limit, which version 2 writes as a word.
            continue
        available = min(available, max(0, left))
    return int(available)


def memory_limit_bytes(cgroups: Sequence[tuple[Path, Path]] = CGROUPS) -> int | None:
    """Memory that the container of this process may take; None where nothing limits it but the machine."""
    for limit, _ in cgroups:
        try:
            found = int(limit.read_text())
        except (OSError, ValueError):
            continue
        # Version 1 writes a huge number where there is no limit.
        return found if found < psutil.virtual_memory().total else None
    return None


def oom_kills(events: Path = Path("/sys/fs/cgroup/memory.events")) -> int:
    """How many processes of this container were killed for memory since it began; 0 where that is not known."""
    try:
        counts = dict(line.split() for line in events.read_text().splitlines())
        return int(counts.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0


def free_disk_bytes(place: Path) -> int:
    """Space on the disk of a folder, which need not be there yet."""
    return shutil.disk_usage(nearest_existing(place)).free
