"""Series that are read at the moment of a scrape: the phase, the ledger's seconds, free space, GPUs."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from job import nvidia
from job.observe.events import GpuMemory
from job.observe.ledger import by_category, by_stage, goodput
from job.observe.metrics.table import BY_NAME
from job.observe.progress import Progress


class Live(Collector):
    """`disks` are the folders whose free space is shown.

    `gpu_memory` is what TensorFlow has said last. It names the GPUs, so without one the driver is not asked, and the
    first to ask it is TensorFlow.
    """

    def __init__(self, progress: Progress, disks: Sequence[Path]) -> None:
        self._progress = progress
        self._disks = disks
        self.gpu_memory: GpuMemory = {}

    def collect(self) -> Iterator[Metric]:
        # Read once, so that the series of one scrape add up.
        seconds = self._progress.ledger.of_run()
        stages = by_stage(seconds)
        states = self._progress.states
        current = self._progress.stage if self._progress.stage in states else states[0]
        phase_seconds = dict.fromkeys(states, 0.0)
        for stage, value in stages.items():
            phase_seconds[stage if stage in states else states[0]] += value
        yield _family("thaw_phase", {phase: float(phase == current) for phase in states})
        yield _family("thaw_phase_duration_seconds", phase_seconds)
        yield _family("thaw_run_duration_seconds", sum(stages.values()))
        yield _family("thaw_goodput_ratio", goodput(seconds))
        yield _family("thaw_time_seconds_total", by_category(seconds[-1:]))
        yield _family("thaw_disk_free_bytes", dict(self._free()))
        yield from self._gpus()

    def _free(self) -> Iterator[tuple[str, float]]:
        for folder in self._disks:
            with contextlib.suppress(OSError):
                yield str(folder), float(shutil.disk_usage(folder).free)

    def _gpus(self) -> Iterator[Metric]:
        memory: dict[tuple[str, ...], float] = {}
        utilization: dict[str, float] = {}
        for device, held in self.gpu_memory.items():
            reading = nvidia.read(int(device.rpartition(":")[2]))
            memory |= {(device, stat): float(size) for stat, size in {**held, **reading.memory}.items()}
            if reading.utilization is not None:
                utilization[device] = reading.utilization
        yield _family("thaw_gpu_memory_bytes", memory)
        yield _family("thaw_gpu_utilization_ratio", utilization)


def _family(name: str, values: float | Mapping[str, float] | Mapping[tuple[str, ...], float]) -> Metric:
    """A row of the table with its value, or with its values by label, or by labels."""
    row = BY_NAME[name]
    kind = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
    family = kind(name, row.help, labels=row.labels)
    for labels, value in (values if isinstance(values, Mapping) else {(): values}).items():
        family.add_metric([labels] if isinstance(labels, str) else labels, value)
    return family
