"""NVIDIA's libraries: which GPUs this process has, whether TensorFlow can work on them, what they do.

Those of the driver are called through ctypes: so few functions need no package, and they answer without TensorFlow.
Written from NVIDIA's reference of CUDA's driver API and of its management library (NVML); not tried on a GPU yet.
"""

import contextlib
import ctypes
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from job.errors import DeviceFailed, DeviceMissing, DeviceUnavailable

CUDA, NVML, CUSOLVER = "libcuda.so.1", "libnvidia-ml.so.1", "libcusolver.so.11"
ERRORS = {
    3: " (not initialized)", 34: " (only a stub of the driver is here)", 46: " (device unavailable)",
    100: " (no device)", 802: " (system not yet initialized)", 803: " (driver and its library do not fit)",
    804: " (driver is too old for this CUDA)", 999: " (unknown)",
}  # fmt: skip
"""Of CUresult in cuda.h, those that a container meets."""
NO_GPU, LASTING, NOT_READY = (0, 34, 100), (803, 804), 802
"""None is there; the driver is the wrong one; its services are still starting. All else is taken as of one node."""
READY_LOOKS, READY_LOOK_SECONDS = 60, 2.0
LEAST_CAPABILITY = (7, 5)
"""Compute capability; of cuDNN from 9.11 on, which has no code for older GPUs (fat binaries of nvidia-cudnn-cu12)."""
LEAST_CUDA = (12, 0), "R525"
"""Of the driver, and its name: by NVIDIA's rules of compatibility the least that runs what was built for CUDA 12."""
PTX_CAPABILITY, LEAST_CUDA_OF_PTX = (9, 0), ((12, 5), "R555")
"""From this one on TensorFlow 2.21 has most kernels only as PTX 8.5, which drivers know since CUDA 12.5."""
BFLOAT16_CAPABILITY = (8, 0)
"""From this one on GPUs multiply bfloat16."""
COMPUTE_CAPABILITY = 75, 76
"""Major and minor, of CUdevice_attribute in cuda.h."""
NO_GPU_HINT = (
    "in Kubernetes the pod must ask for nvidia.com/gpu (components/gpu); elsewhere the container needs --gpus all and "
    "the machine NVIDIA's driver; CUDA_VISIBLE_DEVICES may hide a GPU; THAW_DEVICE=auto trains without a GPU"
)
UNFIT_HINT = (
    "take a machine with a newer driver, or a newer GPU; CUDA_VISIBLE_DEVICES chooses one of several GPUs, and "
    "THAW_DEVICE=cpu leaves all alone"
)
FAILED_HINT = (
    "another start may find it working, or another machine: look at this one with `nvidia-smi` and `dmesg | grep Xid`; "
    "error 802 is that of NVIDIA's Fabric Manager, if it is not running"
)
KINDS_OF_UUID = ("GPU", "MIG")


@dataclass(frozen=True)
class Reading:
    """Of one moment; what the driver does not say is left out."""

    utilization: float | None = None
    """Share of the driver's last sample, of a sixth of a second to a second, in which the GPU ran anything; 0 to 1."""
    memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes: "used" by all processes, and "total"."""


@dataclass(frozen=True)
class _Answer:
    """Of the driver: how many GPUs this process has; if none, why, and CUDA's error if that is the reason."""

    num_gpus: int = 0
    reason: str = ""
    code: int = 0


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


def visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """The GPUs that a process with this environment can use, by what CUDA_VISIBLE_DEVICES calls them.

    The driver counts them; where it is not, or fails, there are none.
    """
    count = _ask().num_gpus
    named = [name.strip() for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    gpus = (named or [str(index) for index in range(count)])[:count]
    return [gpu for index, gpu in enumerate(gpus) if not _unfitness(index)]


def wait_until_ready(pause: Callable[[float], None], say: Callable[[str], None]) -> None:
    """Wait while the driver's services are still starting, as after the start of a machine with NVSwitch.

    For two minutes at most; `check_gpu` says how it is then. `pause` waits for so many seconds, and may raise; `say`
    is called once, with the reason, if there is a wait.
    """
    for look in range(READY_LOOKS):
        answer = _ask()
        if answer.code != NOT_READY:
            return
        if look == 0:
            say(f"waiting, at most {READY_LOOKS * READY_LOOK_SECONDS:.0f} s: {answer.reason}")
        pause(READY_LOOK_SECONDS)


def check_gpu(device: str = "gpu") -> None:
    """Raise an error, with what was found and what is needed, where TensorFlow cannot work on the first GPU.

    DeviceMissing if there is none, DeviceFailed if its driver cannot start it now, else DeviceUnavailable. `device` is
    the setting.
    """
    answer = _ask()
    reason = answer.reason or _unfitness(0)
    if not reason:
        return
    message = f"THAW_DEVICE={device}: {reason}"
    if answer.num_gpus or answer.code in LASTING:
        raise DeviceUnavailable(message, hint=UNFIT_HINT)
    if answer.code in NO_GPU:
        raise DeviceMissing(message, hint=NO_GPU_HINT)
    raise DeviceFailed(message, hint=FAILED_HINT)


def load_cusolver() -> None:
    """Load NVIDIA's package cuSOLVER, if it is installed. Call it before TensorFlow looks for GPUs.

    TensorFlow (2.21) refuses all GPUs unless it can load this library, and does not look into that one of NVIDIA's
    packages (`tests/test_cuda.py` shows it); what the process has already, it finds. Its own warning says if it cannot.
    """
    for folder in cusolver_folders():
        with contextlib.suppress(OSError):
            ctypes.CDLL(f"{folder}/{CUSOLVER}")


def cusolver_folders() -> list[str]:
    """Where NVIDIA's package cuSOLVER has its libraries, if it is installed."""
    spec = importlib.util.find_spec("nvidia")
    return [str(Path(folder, "cusolver", "lib")) for folder in (spec and spec.submodule_search_locations) or ()]


def memory_bytes() -> int | None:
    """Memory of the first GPU that the driver gives this process, all of it; None without one that can be used."""
    if not _is_usable():
        return None
    cuda, device, size = ctypes.CDLL(CUDA), ctypes.c_int(), ctypes.c_size_t()
    code = cuda.cuDeviceGet(ctypes.byref(device), 0) or cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    return None if code else size.value


def has_bfloat16() -> bool | None:
    """Whether that GPU multiplies bfloat16; None without one that can be used."""
    if not _is_usable():
        return None
    facts = _versions(0)
    return facts is not None and facts[1] >= BFLOAT16_CAPABILITY


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


def _ask() -> _Answer:
    try:
        cuda, count = ctypes.CDLL(CUDA), ctypes.c_int()
    except OSError:
        return _Answer(reason=f"NVIDIA's driver is not here: {CUDA} cannot be loaded")
    try:
        # The driver itself follows CUDA_VISIBLE_DEVICES.
        code = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    except AttributeError:
        return _Answer(reason=f"{CUDA} is not NVIDIA's driver")
    if code == 0 and count.value:
        return _Answer(count.value)
    error = f": error {code}{ERRORS.get(code, '')}" if code else ""
    return _Answer(reason=f"NVIDIA's driver gives this process no GPU{error}", code=code)


def _is_usable() -> bool:
    return _ask().num_gpus > 0 and not _unfitness(0)


def _versions(index: int) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """CUDA's version of the driver, and the compute capability of a GPU; None where the driver does not say."""
    cuda, version, device = ctypes.CDLL(CUDA), ctypes.c_int(), ctypes.c_int()
    numbers = [ctypes.c_int() for _ in COMPUTE_CAPABILITY]
    try:
        code = cuda.cuDriverGetVersion(ctypes.byref(version)) or cuda.cuDeviceGet(ctypes.byref(device), index)
        for number, attribute in zip(numbers, COMPUTE_CAPABILITY, strict=True):
            code = code or cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
    except AttributeError:
        return None
    # As CUDA writes it: 12050 is 12.5.
    return None if code else (divmod(version.value // 10, 100), (numbers[0].value, numbers[1].value))


def _unfitness(index: int) -> str:
    """Why TensorFlow cannot work on the GPU with this index; nothing where it can, or the driver does not say."""
    if (versions := _versions(index)) is None:
        return ""
    found, capability = versions
    needed, name = LEAST_CUDA_OF_PTX if capability >= PTX_CAPABILITY else LEAST_CUDA
    if capability < LEAST_CAPABILITY:
        return f"the GPU has compute capability {_dotted(capability)}, and cuDNN needs {_dotted(LEAST_CAPABILITY)}"
    if found < needed:
        return (
            f"NVIDIA's driver is for CUDA {_dotted(found)}, and TensorFlow needs one for {_dotted(needed)} ({name}) or "
            f"newer on a GPU of compute capability {_dotted(capability)}"
        )
    return ""


def _dotted(numbers: tuple[int, int]) -> str:
    return ".".join(map(str, numbers))


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
