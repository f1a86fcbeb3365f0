"""What this machine has: processor, accelerators, memory, disk; read without TensorFlow.

In a container memory is what its control group leaves, not what the host has.
"""

import ctypes
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from job.errors import DeviceUnavailable

# The CPU flags that mean a processor multiplies bfloat16 itself; elsewhere it is emulated, and slower than float32.
NATIVE_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
INTEL = "GenuineIntel"
INTEL_FAST_FLAG = "amx_bf16"
"""With AVX512-BF16 alone, AMD's processors train about twice as fast in bfloat16, and Intel's more slowly."""

CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
"""Limit and use of this container, of version 2 and 1 of the interface."""


def processor() -> str:
    """The name of the processor."""
    return next((line.partition(":")[2].strip() for line in _cpu_info() if line.startswith("model name")), "CPU")


def has_native_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself."""
    return bool(_words("flags", "Features") & NATIVE_BFLOAT16_FLAGS)


def has_fast_bfloat16() -> bool:
    """Whether it does so faster than it multiplies float32."""
    if INTEL in _words("vendor_id"):
        return INTEL_FAST_FLAG in _words("flags")
    return has_native_bfloat16()


def accelerators(root: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """The names of the NVIDIA GPUs that the driver shows."""
    names = []
    for path in sorted(root.glob("*/information")):
        lines = path.read_text(errors="replace").splitlines()
        names += [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]
    return names


DRIVER = "libcuda.so.1"
"""NVIDIA's library, which comes with the driver and not with an image."""


def visible_gpus(environ: Mapping[str, str], driver: str = DRIVER) -> list[str]:
    """The GPUs that a process with this environment may use, by what CUDA_VISIBLE_DEVICES calls them.

    `driver` counts them; where it is not, or fails, there are none.
    """
    count, _ = _counted_gpus(driver)
    named = [name.strip() for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(index) for index in range(count)])[:count]


def _counted_gpus(driver: str) -> tuple[int, str]:
    """How many GPUs the driver gives this process, and why there is none."""
    try:
        cuda, count = ctypes.CDLL(driver), ctypes.c_int()
    except OSError:
        return 0, f"NVIDIA's driver is not here: {driver} cannot be loaded"
    try:
        # The driver itself follows CUDA_VISIBLE_DEVICES.
        code = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    except AttributeError:
        return 0, f"{driver} is not NVIDIA's driver"
    if code:
        return 0, f"NVIDIA's driver gives this process no GPU: error {code}{_NAMES_OF_ERRORS.get(code, '')}"
    return count.value, "" if count.value else "NVIDIA's driver gives this process no GPU"


_NAMES_OF_ERRORS = {
    34: " (only a stub of the driver is here)", 100: " (no device)", 802: " (system not yet initialized)",
    803: " (driver and its library do not fit)", 804: " (driver is too old for this CUDA)", 999: " (unknown)",
}  # fmt: skip
"""Of CUresult in cuda.h, those that a container meets."""


def gpu_memory_bytes(driver: str = DRIVER) -> int | None:
    """Memory of the first GPU that the driver gives this process, all of it; None where it gives none."""
    if _counted_gpus(driver)[0] == 0:
        return None
    cuda, device, size = ctypes.CDLL(driver), ctypes.c_int(), ctypes.c_size_t()
    code = cuda.cuDeviceGet(ctypes.byref(device), 0) or cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    return None if code else size.value


def check_gpu(driver: str = DRIVER) -> None:
    """Raise DeviceUnavailable, with what the driver says, where it gives this process no GPU."""
    _, reason = _counted_gpus(driver)
    if reason:
        raise DeviceUnavailable(f"THAW_DEVICE=gpu: {reason}", hint=NO_GPU_HINT)


NO_GPU_HINT = (
    "in Kubernetes the pod must ask for nvidia.com/gpu (components/gpu); elsewhere the container needs --gpus all and "
    "the machine NVIDIA's driver; CUDA_VISIBLE_DEVICES may hide a GPU; THAW_DEVICE=auto trains without a GPU"
)


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
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def _words(*names: str) -> set[str]:
    """In the lines of these names, for all cores."""
    return {word for line in _cpu_info() if line.startswith(names) for word in line.split()}


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
