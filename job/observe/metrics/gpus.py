"""What a GPU of this process does, by NVIDIA's management library (NVML), which comes with the driver.

It is called through ctypes: so few functions need no package, and CUDA's must be called too. Written from NVIDIA's
reference of both libraries; not tried on a GPU yet.
"""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

CUDA, NVML = "libcuda.so.1", "libnvidia-ml.so.1"
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


def read(index: int) -> Reading:
    """The GPU that CUDA, and so TensorFlow, has at this index in this process. Never raises.

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
