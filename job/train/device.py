"""The device of this process: which one it takes, its name, and what TensorFlow holds of its memory."""

from typing import Literal

import tensorflow as tf

from job import nvidia, processor
from job.errors import DeviceFailed, DeviceMissing, DeviceUnavailable


def use(device: Literal["auto", "cpu", "gpu"]) -> DeviceUnavailable | DeviceFailed | None:
    """Take one GPU, the first, or none: a process has one device. Call it before TensorFlow has used any.

    With `gpu`, raises DeviceUnavailable or DeviceFailed with what the driver says, or TensorFlow, which may have no
    CUDA or not find its libraries. With `auto` the processor is used then; returns the error if a GPU is there at all.
    """
    gpus, problem = [], None
    try:
        gpus = [] if device == "cpu" else _gpus(device)
    except (DeviceUnavailable, DeviceFailed) as error:
        if device == "gpu":
            raise
        problem = None if isinstance(error, DeviceMissing) else error
    tf.config.set_visible_devices(gpus[:1], "GPU")
    return problem


def gpu() -> tf.config.PhysicalDevice | None:
    """The GPU of this process, which `use` has chosen; None where the processor computes."""
    return next(iter(tf.config.get_visible_devices("GPU")), None)


def name() -> str:
    """The processor that the network runs on, for the report."""
    found = gpu()
    if found is None:
        return processor.name()
    return str(tf.config.experimental.get_device_details(found).get("device_name", found.name))


def gpu_memory() -> dict[str, dict[str, int]] | None:
    """Bytes that TensorFlow holds of the GPU, by its name, "current" and "peak"; None without a GPU."""
    found = gpu()
    if found is None:
        return None
    device = found.name.removeprefix("/physical_device:")
    return {device: dict(tf.config.experimental.get_memory_info(device))}


def _gpus(device: str) -> list[tf.config.PhysicalDevice]:
    is_for_cuda = tf.test.is_built_with_cuda()
    if not is_for_cuda and (gpus := tf.config.list_physical_devices("GPU")):
        # Of another maker, by a plugin of TensorFlow.
        return list(gpus)
    nvidia.check_gpu(device)
    if not is_for_cuda:
        raise DeviceUnavailable(
            f"THAW_DEVICE={device}: there is a GPU, and this TensorFlow {tf.__version__} is built for processors alone",
            hint="take the image for GPUs, or install the extra `gpu`",
        )
    nvidia.load_cusolver()
    if gpus := tf.config.list_physical_devices("GPU"):
        return list(gpus)
    raise DeviceUnavailable(
        f"THAW_DEVICE={device}: the driver has a GPU, and TensorFlow cannot use it; its warnings in this log say why",
        hint="often a library of CUDA is missing",
    )
