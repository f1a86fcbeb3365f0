"""What `auto` means on this machine, and the process-wide switches of TensorFlow's arithmetic.

A run decides once: the choice of the first attempt goes into the record, and later attempts follow it on any machine.
"""

from typing import Any

import keras
import tensorflow as tf

from job import nvidia, processor
from job.errors import InvalidSettings
from job.settings.fields import Precision
from job.train import device


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
    if deterministic and xla and device.gpu() is not None:
        raise InvalidSettings(
            "THAW_DETERMINISTIC=true and THAW_XLA=on: on a GPU TensorFlow has no deterministic gradient of max pooling "
            "with XLA",
            hint="set THAW_XLA=off, or THAW_DEVICE=cpu",
        )
    # Keras shows progress on standard output, which belongs to the log.
    keras.config.disable_interactive_logging()
    if deterministic:
        tf.config.experimental.enable_op_determinism()


def policy_of(precision: Precision) -> str:
    """The Keras policy of a precision; variables are float32 in each."""
    return precision if precision == "float32" else f"mixed_{precision}"


def _has_fast_bfloat16() -> bool:
    gpu = device.gpu()
    if gpu is None:
        return processor.has_fast_bfloat16()
    details = tf.config.experimental.get_device_details(gpu)
    return bool(details.get("compute_capability", (0, 0)) >= nvidia.BFLOAT16_CAPABILITY)
