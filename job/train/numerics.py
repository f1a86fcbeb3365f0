"""What `auto` means on this machine, and the process-wide switches of TensorFlow's arithmetic.

A run decides once: the choice of the first attempt goes into the record, and later attempts follow it on any machine.
"""

from typing import Any, Literal

import keras
import tensorflow as tf

from job import nvidia, processor
from job.errors import DeviceFailed, DeviceMissing, DeviceUnavailable, InvalidSettings
from job.settings.fields import Precision


def choose(*, precision: str, xla: str) -> dict[str, Any]:
    """The arithmetic that settings ask for, with `auto` decided for this machine; JSON values."""
    if precision == "auto":
        precision = "bfloat16" if _has_fast_bfloat16() else "float32"
    # XLA was slower on every processor measured: it has its own depthwise convolutions.
    return {"precision": precision, "xla": xla == "on"}


def prepare_process(*, deterministic: bool, xla: bool) -> None:
    """Silence Keras; if `deterministic`, refuse operations without a deterministic implementation.

    Raises InvalidSettings where a phase would meet one after hours.
    """
    if deterministic and xla and tf.config.get_visible_devices("GPU"):
        raise InvalidSettings(
            "THAW_DETERMINISTIC=true and THAW_XLA=on: on a GPU TensorFlow has no deterministic gradient of max pooling "
            "with XLA",
            hint="set THAW_XLA=off, or THAW_DEVICE=cpu",
        )
    # Keras shows progress on standard output, which belongs to the log.
    keras.config.disable_interactive_logging()
    if deterministic:
        tf.config.experimental.enable_op_determinism()


def use_device(device: Literal["auto", "cpu", "gpu"]) -> DeviceUnavailable | DeviceFailed | None:
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


def dtype_policy(precision: Precision) -> str:
    """The Keras policy of a precision; variables are float32 in each."""
    return precision if precision == "float32" else f"mixed_{precision}"


def device_name() -> str:
    """The processor that the network runs on, for the report."""
    for gpu in tf.config.get_visible_devices("GPU"):
        return str(tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name))
    return processor.name()


def gpu_memory() -> dict[str, dict[str, int]] | None:
    """Bytes that TensorFlow holds of each GPU, "current" and "peak"; None without a GPU."""
    devices = [gpu.name.removeprefix("/physical_device:") for gpu in tf.config.get_visible_devices("GPU")]
    return {device: dict(tf.config.experimental.get_memory_info(device)) for device in devices} or None


def _has_fast_bfloat16() -> bool:
    gpus = tf.config.get_visible_devices("GPU")
    if gpus:
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        return all(detail.get("compute_capability", (0, 0)) >= nvidia.BFLOAT16_CAPABILITY for detail in details)
    return processor.has_fast_bfloat16()
