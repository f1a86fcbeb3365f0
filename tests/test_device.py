"""THAW_DEVICE: what a run that wants a GPU does where it has none, and what one does that wants none."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tensorflow as tf

from job import nvidia, processor
from job.cli import checks, devices, plan
from job.errors import DeviceFailed, DeviceMissing, DeviceUnavailable, ExitCode, Interrupted, InvalidSettings
from job.nvidia import check_gpu
from job.settings.fields import Precision
from job.settings.resources import estimate
from job.settings.settings import Settings
from job.train import device, numerics
from tests.conftest import job
from tests.manifests import OVERLAYS, needs_kustomize, overlay
from tests.processes import Environment

HIDDEN = {"CUDA_VISIBLE_DEVICES": "-1"}


def driver(
    *,
    init: int = 0,
    num_gpus: int = 0,
    cuda: int = 12090,
    capabilities: Sequence[tuple[int, int]] = ((8, 0),),
) -> type:
    """NVIDIA's library with so many GPUs, of 40 GiB, 41 GiB and so on, or one that answers with an error.

    Further GPUs have the last of the compute capabilities.
    """

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

        def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
            version._obj.value = cuda
            return 0

        def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:  # noqa: N802
            value._obj.value = capabilities[min(device.value - 40, len(capabilities) - 1)][{75: 0, 76: 1}[attribute]]
            return 0

    return Driver


NO_GPU = "NVIDIA's driver gives this process no GPU"
OF = "or newer on a GPU of compute capability "


@pytest.mark.parametrize(
    ("library", "kind", "reason"),
    [
        (driver(), DeviceMissing, NO_GPU),
        (driver(init=100), DeviceMissing, f"{NO_GPU}: error 100 (no device)"),
        (driver(init=34), DeviceMissing, f"{NO_GPU}: error 34 (only a stub of the driver is here)"),
        (driver(init=803), DeviceUnavailable, f"{NO_GPU}: error 803 (driver and its library do not fit)"),
        (driver(init=802), DeviceFailed, f"{NO_GPU}: error 802 (system not yet initialized)"),
        (driver(init=999), DeviceFailed, f"{NO_GPU}: error 999 (unknown)"),
        (driver(init=7), DeviceFailed, f"{NO_GPU}: error 7"),
        (lambda name: object(), DeviceMissing, "/no/driver is not NVIDIA's driver"),
    ],
)  # fmt: skip
def test_the_driver_says_why_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, library: type, kind: type[DeviceUnavailable | DeviceFailed], reason: str
) -> None:
    """What passes, or is of one node, is tried again; the rest ends a Job."""
    monkeypatch.setattr("job.nvidia.CUDA", "/no/driver")
    monkeypatch.setattr("ctypes.CDLL", library)
    with pytest.raises(kind) as caught:
        check_gpu("gpu")
    assert (type(caught.value), caught.value.message) == (kind, f"THAW_DEVICE=gpu: {reason}")
    assert caught.value.exit_code == (ExitCode.UNEXPECTED if kind is DeviceFailed else ExitCode.BAD_INPUT)


def test_without_a_driver_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("job.nvidia.CUDA", "/no/driver")
    with pytest.raises(DeviceMissing, match=r"^THAW_DEVICE=gpu: NVIDIA's driver is not here: /no/driver") as caught:
        check_gpu("gpu")
    assert "nvidia.com/gpu" in caught.value.hint


@pytest.mark.parametrize(
    ("cuda", "capability", "reason"),
    [
        (12000, (7, 5), ""), (12000, (8, 9), ""), (12050, (9, 0), ""), (13000, (12, 0), ""),
        (11080, (8, 0), f"11.8, and TensorFlow needs one for 12.0 (R525) {OF}8.0"),
        (12040, (9, 0), f"12.4, and TensorFlow needs one for 12.5 (R555) {OF}9.0"),
        (12090, (7, 0), "the GPU has compute capability 7.0, and cuDNN needs 7.5"),
    ],
)  # fmt: skip
def test_a_gpu_has_a_least_age_and_its_driver_too(
    monkeypatch: pytest.MonkeyPatch, cuda: int, capability: tuple[int, int], reason: str
) -> None:
    """Otherwise the first kernel would fail, on each retry. `plan` and a start say the same."""
    monkeypatch.setattr("ctypes.CDLL", driver(num_gpus=1, cuda=cuda, capabilities=[capability]))
    monkeypatch.setattr(tf.test, "is_built_with_cuda", lambda: True)
    if not reason:
        check_gpu("gpu")
        return
    for look in (lambda: check_gpu("gpu"), lambda: checks.device(Settings(device="gpu"))):
        with pytest.raises(DeviceUnavailable) as caught:
            look()
        assert caught.value.message.endswith(reason)
    check = checks.device(Settings(device="auto"))
    assert check.outcome == "warning"
    assert "THAW_DEVICE=auto: " in check.text
    assert check.text.endswith(reason)
    unused = device.use("auto")
    assert unused is not None
    assert unused.message.endswith(reason)
    assert nvidia.memory_bytes() is None


def test_only_gpus_that_work_have_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """An old one beside a new one has none, by the name that CUDA_VISIBLE_DEVICES has for it."""
    monkeypatch.setattr("ctypes.CDLL", driver(num_gpus=3, capabilities=[(8, 0), (6, 1), (8, 6)]))
    assert nvidia.visible_gpus({}) == ["0", "2"]
    assert nvidia.visible_gpus({"CUDA_VISIBLE_DEVICES": "5,4,3"}) == ["5", "3"]


def test_a_driver_that_still_starts_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two minutes at most; nothing else is waited for, and a signal ends it."""
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            monkeypatch.setattr("ctypes.CDLL", driver(num_gpus=1))

    def interrupt(seconds: float) -> None:
        raise Interrupted("stopped")

    said: list[str] = []
    for init in (0, 100, 999):
        monkeypatch.setattr("ctypes.CDLL", driver(init=init))
        nvidia.wait_until_ready(interrupt, said.append)
    assert said == []
    monkeypatch.setattr("ctypes.CDLL", driver(init=802))
    with pytest.raises(Interrupted):
        nvidia.wait_until_ready(interrupt, said.append)
    assert said == [f"waiting, at most 120 s: {NO_GPU}: error 802 (system not yet initialized)"]
    nvidia.wait_until_ready(pause, said.append)
    assert (len(pauses), len(said)) == (3, 2)
    monkeypatch.setattr("ctypes.CDLL", driver(init=802))
    nvidia.wait_until_ready(pause, said.append)
    assert (sum(pauses[3:]), len(said)) == (120, 3)


def pretend(monkeypatch: pytest.MonkeyPatch, names: Sequence[str]) -> list[Any]:
    """A TensorFlow with CUDA that lists GPUs of these names; returns what of them is made visible."""
    visible: list[Any] = []
    monkeypatch.setattr(tf.test, "is_built_with_cuda", lambda: True)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: list(names))
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda gpus, _: visible.append(gpus))
    return visible


def test_a_process_takes_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On others it would have a context, and its report and series would name them."""
    monkeypatch.setattr("ctypes.CDLL", driver(num_gpus=2))
    visible = pretend(monkeypatch, ["first", "second"])
    assert [device.use(kind) for kind in ("auto", "gpu", "cpu")] == [None, None, None]
    assert visible == [["first"], ["first"], []]


@pytest.mark.parametrize("init", [0, 999])
def test_a_gpu_that_cannot_be_used_is_an_error_or_said(monkeypatch: pytest.MonkeyPatch, init: int) -> None:
    """Here TensorFlow finds no library, or the driver fails. That there is no GPU at all, `auto` does not say."""
    monkeypatch.setattr("ctypes.CDLL", driver(num_gpus=1, init=init))
    visible = pretend(monkeypatch, [] if init == 0 else ["first"])
    with pytest.raises((DeviceUnavailable, DeviceFailed), match="THAW_DEVICE=gpu: "):
        device.use("gpu")
    unused = device.use("auto")
    assert unused is not None
    assert unused.message.startswith("THAW_DEVICE=auto: ")
    monkeypatch.setattr("ctypes.CDLL", driver(init=100))
    assert device.use("auto") is None
    assert visible == [[], []]


def test_a_tensorflow_for_processors_says_so_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes what a plugin of TensorFlow brings, whatever NVIDIA's driver is."""
    monkeypatch.setattr("ctypes.CDLL", driver(num_gpus=1))
    visible = pretend(monkeypatch, [])
    monkeypatch.setattr(tf.test, "is_built_with_cuda", lambda: False)
    with pytest.raises(DeviceUnavailable, match="built for processors alone"):
        device.use("gpu")
    monkeypatch.setattr("ctypes.CDLL", driver())
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: ["of a plugin"])
    assert device.use("gpu") is None
    assert visible == [["of a plugin"]]


def test_determinism_with_xla_is_refused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor it is not, and neither is one alone."""
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: None)
    for gpus in ([], [SimpleNamespace(name="gpu:0")]):
        monkeypatch.setattr(tf.config, "get_visible_devices", lambda _, gpus=gpus: gpus)
        numerics.prepare_process(deterministic=True, xla=False)
        numerics.prepare_process(deterministic=False, xla=True)
        if not gpus:
            numerics.prepare_process(deterministic=True, xla=True)
    with pytest.raises(InvalidSettings, match="THAW_DETERMINISTIC=true and THAW_XLA=on: on a GPU"):
        numerics.prepare_process(deterministic=True, xla=True)


def test_a_library_of_nvidias_package_is_loaded_if_it_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the package nothing is loaded, and a file that is no library is for TensorFlow to say."""
    loaded: list[str] = []
    monkeypatch.setattr("ctypes.CDLL", loaded.append)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    nvidia.load_cusolver()
    assert loaded == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace(submodule_search_locations=[tmp_path]))
    nvidia.load_cusolver()
    assert loaded == [str(tmp_path / "cusolver/lib/libcusolver.so.11")]

    def fail(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", fail)
    nvidia.load_cusolver()


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


@pytest.mark.parametrize(
    ("library", "of_gpu", "precision"),
    [
        (driver(num_gpus=1, capabilities=[(8, 0)]), True, "bfloat16"),
        (driver(num_gpus=1, capabilities=[(7, 5)]), False, "float32"),
        # One that is not used, or none: the processor decides.
        (driver(num_gpus=1, capabilities=[(6, 1)]), None, "float32"),
        (driver(), None, "float32"),
    ],
)
def test_plan_reckons_with_the_precision_that_a_start_would_choose(
    monkeypatch: pytest.MonkeyPatch, library: type, of_gpu: bool | None, precision: Precision
) -> None:
    """On a GPU that of the GPU, whatever the processor is."""
    monkeypatch.setattr("ctypes.CDLL", library)
    monkeypatch.setattr(processor, "has_fast_bfloat16", lambda: False)
    assert nvidia.has_bfloat16() is of_gpu
    settings = Settings()
    assert plan.need_of(settings, {"train": 1000}, None) == estimate(settings, num_examples=1000, precision=precision)
    assert plan.need_of(Settings(device="cpu"), {"train": 1000}, None) == estimate(
        settings, num_examples=1000, precision="float32"
    )
