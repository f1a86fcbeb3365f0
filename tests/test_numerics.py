"""What `auto` means, by the facts of a processor."""

import os
import platform
from pathlib import Path
from types import SimpleNamespace

import keras
import pytest
import tensorflow as tf

from job import processor
from job.__main__ import set_up_tensorflow
from job.train import device, numerics

INTEL = "vendor_id\t: GenuineIntel\nmodel name\t: Some Xeon\nflags\t\t: fpu avx512f avx512_bf16 amx_bf16\n"
WITHOUT_AMX = INTEL.replace(" amx_bf16", "")
AMD = WITHOUT_AMX.replace("GenuineIntel", "AuthenticAMD")
OLD = "model name\t: Some Core\nflags\t\t: fpu avx2 avx512f\n"
ARM = "Features\t: fp asimd bf16 i8mm\n"


@pytest.mark.parametrize(
    ("cpu", "precision"),
    [
        (INTEL, "bfloat16"), (WITHOUT_AMX, "float32"), (AMD, "bfloat16"), (ARM, "bfloat16"), (OLD, "float32"),
        ("", "float32"),
    ],
)  # fmt: skip
def test_auto_is_bfloat16_where_it_is_faster(monkeypatch: pytest.MonkeyPatch, cpu: str, precision: str) -> None:
    """By vendor and flags; an unknown processor gets float32."""
    monkeypatch.setattr(processor, "cpu_info", cpu.splitlines)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda _: [])
    assert numerics.choose(precision="auto", xla="auto") == {"precision": precision, "xla": False}


@pytest.mark.parametrize(("capability", "precision"), [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float32")])
def test_auto_is_bfloat16_on_a_gpu_that_has_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], precision: str
) -> None:
    """From compute capability 8.0 on, whatever the processor beside it."""
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda _: [SimpleNamespace(name="gpu:0")])
    details = {"compute_capability": capability, "device_name": "Some GPU"}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda _: details)
    assert numerics.choose(precision="auto", xla="auto")["precision"] == precision
    assert device.name() == "Some GPU"


def test_what_is_asked_for_is_not_second_guessed() -> None:
    """A setting that is not `auto` is an order."""
    assert numerics.choose(precision="float32", xla="on") == {"precision": "float32", "xla": True}
    assert numerics.choose(precision="bfloat16", xla="off") == {"precision": "bfloat16", "xla": False}


@pytest.mark.parametrize(
    ("processor", "given", "found"), [("x86_64", None, "1"), ("x86_64", "0", "0"), ("aarch64", None, None)]
)
def test_x86_uses_onednn(monkeypatch: pytest.MonkeyPatch, processor: str, given: str | None, found: str | None) -> None:
    """On every such processor, unless the environment says otherwise; on Arm TensorFlow decides."""
    monkeypatch.setattr(os, "environ", {} if given is None else {"TF_ENABLE_ONEDNN_OPTS": given})
    monkeypatch.setattr(platform, "machine", lambda: processor)
    set_up_tensorflow(log_level="3")
    assert os.environ.get("TF_ENABLE_ONEDNN_OPTS") == found
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3"


@pytest.mark.parametrize(("given", "found"), [(None, "true"), ("false", "false")])
def test_a_gpu_is_shared(monkeypatch: pytest.MonkeyPatch, given: str | None, found: str) -> None:
    """A process takes the memory that it needs, unless the environment says otherwise."""
    monkeypatch.setattr(os, "environ", {} if given is None else {"TF_FORCE_GPU_ALLOW_GROWTH": given})
    set_up_tensorflow(log_level="3")
    assert os.environ["TF_FORCE_GPU_ALLOW_GROWTH"] == found


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_variables_are_float32_in_each_precision(precision: str) -> None:
    """Small updates would be lost in 16 bits."""
    policy = keras.dtype_policies.DTypePolicy(numerics.policy_of(precision))  # type: ignore[arg-type]
    assert (policy.variable_dtype, policy.compute_dtype) == ("float32", precision)


def test_the_processor_has_a_name() -> None:
    """For the report, on this very machine."""
    assert device.name()
    assert not Path("/proc/cpuinfo").exists() or device.name() in Path("/proc/cpuinfo").read_text()
