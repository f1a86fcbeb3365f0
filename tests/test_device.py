"""THAW_DEVICE: what a run that wants a GPU does where it has none, and what one does that wants none."""

import json
from typing import Any

import pytest

from job.cli import devices
from job.errors import DeviceUnavailable, ExitCode
from job.nvidia import check_gpu
from job.settings.settings import Settings
from tests.conftest import job
from tests.manifests import OVERLAYS, needs_kustomize, overlay
from tests.processes import Environment

HIDDEN = {"CUDA_VISIBLE_DEVICES": "-1"}


def driver(*, init: int = 0, num_gpus: int = 0) -> type:
    """NVIDIA's library with so many GPUs, of 40 GiB, 41 GiB and so on, or one that answers with an error."""

    class Driver:
        def __init__(self, name: str) -> None: ...
        def cuInit(self, flags: int) -> int:  # noqa: N802
            return init

        def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
            count._obj.value = num_gpus
            return 0

        def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
            device._obj.value = 40 + index
            return 0

        def cuDeviceTotalMem_v2(self, size: Any, device: Any) -> int:  # noqa: N802
            size._obj.value = device.value << 30
            return 0

    return Driver


@pytest.mark.parametrize(
    ("library", "reason"),
    [
        (driver(num_gpus=1), ""),
        (driver(), "NVIDIA's driver gives this process no GPU"),
        (driver(init=100), "NVIDIA's driver gives this process no GPU: error 100 (no device)"),
        (driver(init=7), "NVIDIA's driver gives this process no GPU: error 7"),
        (object, "/no/driver is not NVIDIA's driver"),
    ],
)  # fmt: skip
def test_the_driver_says_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, library: type, reason: str) -> None:
    monkeypatch.setattr("ctypes.CDLL", library if library is not object else lambda name: object())
    if not reason:
        check_gpu("/no/driver")
        return
    with pytest.raises(DeviceUnavailable) as caught:
        check_gpu("/no/driver")
    assert caught.value.message == f"THAW_DEVICE=gpu: {reason}"


def test_without_a_driver_the_error_says_what_to_do() -> None:
    with pytest.raises(DeviceUnavailable, match=r"^THAW_DEVICE=gpu: NVIDIA's driver is not here: /no/driver") as caught:
        check_gpu("/no/driver")
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    assert "nvidia.com/gpu" in caught.value.hint


def test_a_run_on_the_processor_is_one_process_whatever_gpus_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", driver(num_gpus=4))
    assert devices.num_devices(Settings(), {}) == 4
    assert devices.num_devices(Settings(device="cpu"), {}) == 1
    assert devices.num_devices(Settings(device="cpu", devices="8"), {}) == 8


@pytest.mark.slow
def test_a_run_that_asks_for_a_gpu_and_has_none_ends_at_once(environment: Environment) -> None:
    """Where there is a GPU it is hidden. `plan` knows it too. Another start may take the processor, and finishes.

    What is finished is answered anywhere.
    """
    env = environment(device="gpu") | HIDDEN
    ended = job(env=env)
    assert ended.returncode == ExitCode.BAD_INPUT
    last = json.loads(ended.stdout.splitlines()[-1])
    assert last["reason"].startswith("THAW_DEVICE=gpu: ")
    assert (last["event"], last["phase"]) == ("run_failed", "import")
    plan = job("plan", "--json", env=env)
    assert plan.returncode == ExitCode.BAD_INPUT
    (check,) = (check for check in json.loads(plan.stdout)["checks"] if check["name"] == "device")
    assert (check["outcome"], check["text"]) == ("failed", last["reason"])
    assert job(env=env | {"THAW_DEVICE": "cpu"}).returncode == ExitCode.COMPLETE
    assert job(env=env).returncode == ExitCode.COMPLETE


@needs_kustomize
@pytest.mark.parametrize("name", OVERLAYS)
def test_a_manifest_with_a_gpu_insists_on_it(name: str) -> None:
    """Otherwise a run on a node without a driver would train on its processor for hours."""
    text = json.dumps(overlay(name))
    assert ('"nvidia.com/gpu": "' in text) == ('"THAW_DEVICE"' in text)
