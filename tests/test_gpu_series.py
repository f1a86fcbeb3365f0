"""What a scrape says of the GPUs of a run, from a stand-in for NVIDIA's libraries: no GPU is needed.

The stand-in is called as C is, by pointers. It lays out what it answers as NVIDIA's reference says, on its own.
"""

import ctypes
from collections.abc import Callable, Mapping
from ctypes import CFUNCTYPE, c_char_p, c_int, c_uint, c_ulonglong, c_void_p
from dataclasses import dataclass
from types import SimpleNamespace
from uuid import UUID

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from job.observe import events
from job.observe.metrics import Metrics
from job.observe.progress import Progress

HELD = {"current": 5, "peak": 7}
NOT_SUPPORTED, NOT_FOUND, LIBRARY_MISMATCH, GPU_IS_LOST = 3, 6, 18, 15
"""Of nvmlReturn_t."""


@dataclass
class Card:
    """A GPU, or with `kind` MIG a part of one, of which NVML does not know the utilization."""

    number: int
    percent: int = 0
    kind: str = "GPU"
    used: int = 30 << 30
    total: int = 80 << 30

    @property
    def uuid(self) -> UUID:
        return UUID(int=0xABCDEF << 96 | self.number)


class Nvidia:
    """Both libraries: CUDA with the GPUs that this process may use, NVML with all; `codes` are errors of functions."""

    def __init__(self, *, visible: list[Card], installed: list[Card], codes: Mapping[str, int] | None = None) -> None:
        functions = {
            "cuInit": (self.ok, c_uint),
            "cuDeviceGet": (lambda out, index: self.put(c_int, out, 40 + index), c_void_p, c_int),
            "cuDeviceGetUuid_v2": (self.uuid, c_void_p, c_int),
            "nvmlInit_v2": (self.ok,),
            "nvmlDeviceGetHandleByUUID": (self.handle, c_char_p, c_void_p),
            "nvmlDeviceGetUtilizationRates": (self.utilization, c_void_p, c_void_p),
            "nvmlDeviceGetMemoryInfo": (self.memory, c_void_p, c_void_p),
        }
        self.visible = visible
        # As pointers are, above what an int can be.
        self.installed = {0x7F00_0000_0000 + 16 * index: card for index, card in enumerate(installed)}
        self.codes = codes or {}
        self.libraries = {"libcuda.so.1": SimpleNamespace(), "libnvidia-ml.so.1": SimpleNamespace()}
        for name, (answer, *arguments) in functions.items():
            library = self.libraries["libcuda.so.1" if name.startswith("cu") else "libnvidia-ml.so.1"]
            setattr(library, name, CFUNCTYPE(c_int, *arguments)(self.failing(name, answer)))

    def load(self, name: str) -> SimpleNamespace:
        """In place of ctypes.CDLL."""
        if name not in self.libraries:
            raise OSError(f"{name}: cannot open shared object file")
        return self.libraries[name]

    def failing(self, name: str, answer: Callable[..., int]) -> Callable[..., int]:
        return lambda *arguments: self.codes.get(name, 0) or answer(*arguments)

    def ok(self, *_: int) -> int:
        return 0

    def put(self, kind: type, address: int, *values: int) -> int:
        (kind * len(values)).from_address(address)[:] = values  # type: ignore[operator]
        return 0

    def uuid(self, out: int, device: int) -> int:
        ctypes.memmove(out, self.visible[device - 40].uuid.bytes, 16)
        return 0

    def handle(self, name: bytes, out: int) -> int:
        for address, card in self.installed.items():
            if name == f"{card.kind}-{card.uuid}".encode():
                return self.put(c_void_p, out, address)
        return NOT_FOUND

    def utilization(self, handle: int, out: int) -> int:
        card = self.installed[handle]
        return NOT_SUPPORTED if card.kind == "MIG" else self.put(c_uint, out, card.percent, 99)

    def memory(self, handle: int, out: int) -> int:
        card = self.installed[handle]
        return self.put(c_ulonglong, out, card.total, card.total - card.used, card.used)


def metrics_with(memory: events.GpuMemory | None) -> Metrics:
    """Of a run that has done its first step."""
    metrics = Metrics(
        Progress(), constants=dict.fromkeys(("run_id", "fingerprint", "dataset", "backbone"), ""), disks=()
    )
    metrics.event(events.StepCompiled("head", seconds=2.0, gpu_memory=memory))
    return metrics


def scraped(metrics: Metrics) -> dict[str, float]:
    """The samples about GPUs, by the values of their labels."""
    return {
        " ".join(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
        for sample in family.samples
        if sample.name.startswith("thaw_gpu_")
    }


def test_each_gpu_is_read_at_the_scrape_and_is_the_one_that_tensorflow_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's order is the other way round here, and it has one less."""
    cards = [Card(1, percent=10), Card(2, percent=20, used=2), Card(3, percent=30, used=3)]
    monkeypatch.setattr("ctypes.CDLL", Nvidia(visible=cards[:0:-1], installed=cards).load)
    metrics = metrics_with({"GPU:0": HELD, "GPU:1": {"current": 1, "peak": 2}})
    first = scraped(metrics)
    assert first == {
        "GPU:0": 0.3, "GPU:0 current": 5, "GPU:0 peak": 7, "GPU:0 used": 3, "GPU:0 total": 80 << 30,
        "GPU:1": 0.2, "GPU:1 current": 1, "GPU:1 peak": 2, "GPU:1 used": 2, "GPU:1 total": 80 << 30,
    }  # fmt: skip
    cards[2].percent = 100
    assert scraped(metrics) == first | {"GPU:0": 1.0}


def test_of_a_part_of_a_gpu_there_is_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no utilization, which would be that of no one or of others."""
    part = Card(4, kind="MIG", used=1 << 30, total=10 << 30)
    monkeypatch.setattr("ctypes.CDLL", Nvidia(visible=[part], installed=[Card(1), Card(5, kind="MIG"), part]).load)
    assert scraped(metrics_with({"GPU:0": HELD})) == {
        "GPU:0 current": 5, "GPU:0 peak": 7, "GPU:0 used": 1 << 30, "GPU:0 total": 10 << 30,
    }  # fmt: skip


def test_what_the_driver_does_not_say_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a library, with one that lacks a function, and after each error; what TensorFlow says stays."""
    whole = {"GPU:0": 0.5, "GPU:0 used": 30 << 30, "GPU:0 total": 80 << 30}
    held = {"GPU:0 current": 5, "GPU:0 peak": 7}
    metrics, card = metrics_with({"GPU:0": HELD}), Card(1, percent=50)

    def found(nvidia: Nvidia) -> dict[str, float]:
        monkeypatch.setattr("ctypes.CDLL", nvidia.load)
        values = scraped(metrics)
        assert {name: values.pop(name) for name in held} == held
        return values

    assert found(Nvidia(visible=[card], installed=[card])) == whole
    for library in ("libcuda.so.1", "libnvidia-ml.so.1"):
        without = Nvidia(visible=[card], installed=[card])
        del without.libraries[library]
        assert found(without) == {}
    for name in ("cuDeviceGetUuid_v2", "nvmlDeviceGetMemoryInfo"):
        older = Nvidia(visible=[card], installed=[card])
        for library in older.libraries.values():
            vars(library).pop(name, None)
        assert found(older) == {}
    for name in ("cuInit", "cuDeviceGet", "cuDeviceGetUuid_v2", "nvmlInit_v2", "nvmlDeviceGetHandleByUUID"):
        assert found(Nvidia(visible=[card], installed=[card], codes={name: LIBRARY_MISMATCH})) == {}, name
    for name, rest in (
        ("nvmlDeviceGetUtilizationRates", {name: size for name, size in whole.items() if name != "GPU:0"}),
        ("nvmlDeviceGetMemoryInfo", {"GPU:0": 0.5}),
    ):
        assert found(Nvidia(visible=[card], installed=[card], codes={name: GPU_IS_LOST})) == rest
    assert found(Nvidia(visible=[card], installed=[])) == {}


def test_a_run_without_a_gpu_asks_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is one: THAW_DEVICE=cpu leaves it alone, and the first to start CUDA is TensorFlow."""

    def load(name: str) -> None:
        raise AssertionError(f"{name} was loaded")

    monkeypatch.setattr("ctypes.CDLL", load)
    assert scraped(metrics_with(None)) == {}
