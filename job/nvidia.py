"""NVIDIA's libraries, which come with the driver and not with an image: which GPUs this process has, what they do.

They are called through ctypes: so few functions need no package, and they answer without TensorFlow. Written from
NVIDIA's reference of CUDA's driver API and of its management library (NVML); not tried on a GPU yet.
"""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from job.errors import DeviceUnavailable

CUDA, NVML = "libcuda.so.1", "libnvidia-ml.so.1"
ERRORS = {
    34: " (only a stub of the driver is here)", 100: " (no device)", 802: " (system not yet initialized)",
    803: " (driver and its library do not fit)", 804: " (driver is too old for this CUDA)", 999: " (unknown)",
}  # fmt: skip
"""Of CUresult in cuda.h, those that a container meets."""
NO_GPU_HINT = (
    "in Kubernetes the pod must ask for nvidia.com/gpu (components/gpu); elsewhere the container needs --gpus all and "
    "the machine NVIDIA's driver; CUDA_VISIBLE_DEVICES may hide a GPU; THAW_DEVICE=auto trains without a GPU"
)
KINDS_OF_UUID = ("GPU", "MIG")


@dataclass(frozen=True)
class Reading:
    """Of one moment; what the driver does not say is left out."""

    utilization: float | None = None
    """Share of the driver's last sample, of a sixth of a second to a second, in which the GPU ran anything; 0 to 1."""
    memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes: "used" by all processes, and "total"."""


class _Utilization(ctypes.Structure):
    """nvmlUtilization_t, in percent."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Memory(ctypes.Structure):
    """nvmlMemory_t, in bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def models(root: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """The names of the GPUs of this machine, as the driver shows them to any process."""
    names = []
    for path in sorted(root.glob("*/information")):
        lines = path.read_text(errors="replace").splitlines()
        names += [line.partition(":")[2].strip() for line in lines if line.startswith("Model")]
    return names


def visible_gpus(environ: Mapping[str, str], driver: str = CUDA) -> list[str]:
    """The GPUs that a process with this environment may use, by what CUDA_VISIBLE_DEVICES calls them.

    `driver` counts them; where it is not, or fails, there are none.
    """
    count, _ = _counted_gpus(driver)
    named = [name.strip() for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(index) for index in range(count)])[:count]


def check_gpu(driver: str = CUDA) -> None:
    """Raise DeviceUnavailable, with what the driver says, where it gives this process no GPU."""
    _, reason = _counted_gpus(driver)
    if reason:
        raise DeviceUnavailable(f"THAW_DEVICE=gpu: {reason}", hint=NO_GPU_HINT)


def memory_bytes(driver: str = CUDA) -> int | None:
    """Memory of the first GPU that the driver gives this process, all of it; None where it gives none."""
    if _counted_gpus(driver)[0] == 0:
        return None
    cuda, device, size = ctypes.CDLL(driver), ctypes.c_int(), ctypes.c_size_t()
    code = cuda.cuDeviceGet(ctypes.byref(device), 0) or cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    return None if code else size.value


def read(index: int) -> Reading:
    """What the GPU does that CUDA, and so TensorFlow, has at this index in this process. Never raises.

    Of a part of a GPU (MIG) NVML says only the memory.
    """
    try:
        cuda, nvml = ctypes.CDLL(CUDA), ctypes.CDLL(NVML)
        gpu, utilization, memory = _handle(cuda, nvml, index), _Utilization(), _Memory()
        if gpu is None:
            return Reading()
        is_busy_known = nvml.nvmlDeviceGetUtilizationRates(gpu, ctypes.byref(utilization)) == 0
        is_memory_known = nvml.nvmlDeviceGetMemoryInfo(gpu, ctypes.byref(memory)) == 0
    except (OSError, AttributeError):
        # A library is not here, or has not all functions.
        return Reading()
    return Reading(
        utilization.gpu / 100 if is_busy_known else None,
        {"used": memory.used, "total": memory.total} if is_memory_known else {},
    )


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
        return 0, f"NVIDIA's driver gives this process no GPU: error {code}{ERRORS.get(code, '')}"
    return count.value, "" if count.value else "NVIDIA's driver gives this process no GPU"


def _handle(cuda: ctypes.CDLL, nvml: ctypes.CDLL, index: int) -> ctypes.c_void_p | None:
    """NVML's handle of the GPU.

    CUDA has its own order of GPUs, and only those of CUDA_VISIBLE_DEVICES; NVML has all. Both know a GPU by its UUID,
    and a part of one by that of the part.
    """
    device, identity, handle = ctypes.c_int(), (ctypes.c_ubyte * 16)(), ctypes.c_void_p()
    code = (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), index)
        or cuda.cuDeviceGetUuid_v2(ctypes.byref(identity), device)
        or nvml.nvmlInit_v2()
    )
    if code:
        return None
    for kind in KINDS_OF_UUID:
        name = f"{kind}-{UUID(bytes=bytes(identity))}".encode()
        if nvml.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)) == 0:
            return handle
    return None
