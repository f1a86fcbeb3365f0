"""Series that are read at the moment of a scrape: the phase, the ledger's seconds, free space."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from job.observe.ledger import by_category, by_stage, goodput
from job.observe.metrics.table import BY_NAME
from job.observe.progress import Progress
from job.phases import STATES


class Live(Collector):
    """`disks` are folders whose free space is told."""

    def __init__(self, progress: Progress, disks: Sequence[Path]) -> None:
        self._progress = progress
        self._disks = disks

    def collect(self) -> Iterator[Metric]:
        # Read once, so that the series of one scrape add up.
        seconds = self._progress.ledger.of_run()
        stage = self._progress.stage
        current = stage if stage in STATES else "prepare"
        yield _gauges("thaw_phase", {phase: float(phase == current) for phase in STATES})
        yield _gauges("thaw_phase_duration_seconds", _by_phase(by_stage(seconds)))
        yield _gauge("thaw_run_duration_seconds", sum(by_stage(seconds).values()))
        yield _gauge("thaw_goodput_ratio", goodput(seconds))
        yield _gauges("thaw_disk_free_bytes", dict(self._free()))
        time_seconds = CounterMetricFamily(
            "thaw_time_seconds_total", BY_NAME["thaw_time_seconds_total"].help, labels=["category"]
        )
        for category, value in by_category(seconds[-1:]).items():
            time_seconds.add_metric([category], value)
        yield time_seconds

    def _free(self) -> Iterator[tuple[str, float]]:
        for folder in self._disks:
            with contextlib.suppress(OSError):
                yield str(folder), float(shutil.disk_usage(folder).free)


def _by_phase(stages: Mapping[str, float]) -> dict[str, float]:
    phases = dict.fromkeys(STATES, 0.0)
    for stage, seconds in stages.items():
        phases[stage if stage in STATES else "prepare"] += seconds
    return phases


def _gauge(name: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, BY_NAME[name].help, value=value)


def _gauges(name: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, BY_NAME[name].help, labels=BY_NAME[name].labels)
    for label, value in values.items():
        family.add_metric([label], value)
    return family
