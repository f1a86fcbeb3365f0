"""Every series of the table, as a run would export it: for tests of what reads them.

A `SeriesOfARun` is well: it trains, steps, commits and asks the store. A sick one has what alerts are for.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from job.observe.metrics.table import OUTCOME, SERIES, Series
from job.phases import PHASE_NAMES, STATES_AFTER, STATES_BEFORE

KINDS: dict[str, Any] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}
DAY = 86400.0
LABELS = {
    "phase": PHASE_NAMES,
    "split": ("train", "validation"),
    "operation": ("read", "write"),
    "code": ("ok", "503"),
    "device": ("GPU:0",),
    "stat": ("current", "peak", "used", "total"),
    "path": ("/work",),
}
"""Values of labels whose values are not known from the start; others have their own name as the value."""

VALUES = {"thaw_info": 1.0, "thaw_exit_code": 0.0, "thaw_attempts": 2.0, "thaw_attempts_killed": 0.0}
"""Gauges that are not 0.5."""

AGES = {
    "thaw_last_success_timestamp_seconds": 3600.0,
    "thaw_last_completion_timestamp_seconds": 3600.0,
    "thaw_eta_timestamp_seconds": -60.0,
    "thaw_last_step_timestamp_seconds": 1.0,
    "thaw_checkpoint_last_commit_timestamp_seconds": 60.0,
}
"""How many seconds ago a timestamp is."""

SICK_VALUES = {"thaw_loss": math.nan, "thaw_exit_code": 5.0, "thaw_attempts_killed": 2.0}
SICK_AGES = {
    "thaw_last_success_timestamp_seconds": 9 * DAY,
    "thaw_eta_timestamp_seconds": -DAY,
    "thaw_last_step_timestamp_seconds": 2000.0,
    "thaw_checkpoint_last_commit_timestamp_seconds": 4000.0,
}


class SeriesOfARun(Collector):
    """Answers each scrape with counters that have gone on, as fast as `speeds` say for each second, else 0.1."""

    def __init__(self, *, sick: bool = False) -> None:
        self._registry = CollectorRegistry()
        self._values = VALUES | (SICK_VALUES if sick else {})
        self._ages = AGES | (SICK_AGES if sick else {})
        self._sick = sick
        shown = [series for series in SERIES if not (sick and "_gpu_" in series.name)]
        self._metrics = {series: _metric(series, self._registry) for series in shown}
        ProcessCollector(registry=self._registry)
        self._before = time.monotonic()

    def collect(self) -> Iterator[Metric]:
        now = time.monotonic()
        seconds, self._before = now - self._before, now
        for series, metric in self._metrics.items():
            for labels in _label_values(series):
                child = metric.labels(*labels) if series.labels else metric
                if series.kind == "counter":
                    child.inc(seconds * self._speed(series.name, labels))
                elif series.kind == "histogram":
                    child.observe(0.2)
                else:
                    child.set(self._value(series.name, labels))
        yield from self._registry.collect()

    def _value(self, name: str, labels: tuple[str, ...]) -> float:
        if name == "thaw_phase":
            return float(labels == ("head",))
        if name in self._ages:
            return time.time() - self._ages[name]
        return self._values.get(name, 0.5)

    def _speed(self, name: str, labels: tuple[str, ...]) -> float:
        if name == "thaw_time_seconds_total":
            return float(labels == ("recompute" if self._sick else "productive",))
        if name in ("thaw_checkpoint_failures_total", "thaw_restores_total"):
            return 10.0 * self._sick
        if name == "thaw_data_wait_seconds_total":
            # More than there can be: its alert looks at ten minutes, and a test has only seconds for them.
            return 100.0 if self._sick else 0.01
        return 0.1


def series_of_a_job(*, namespace: str, failed: str, late: str, pods: Sequence[str]) -> CollectorRegistry:
    """What kube-state-metrics has of a Job that has failed, of one whose deadline is near, and of pods with a GPU."""
    registry = CollectorRegistry()
    failure = Gauge("kube_job_failed", "", ("namespace", "job_name", "condition"), registry=registry)
    failure.labels(namespace, failed, "true").set(1)
    of_late = {
        "kube_job_status_start_time": time.time() - 3300,
        "kube_job_spec_active_deadline_seconds": 3600.0,
        "kube_job_status_active": 1.0,
    }
    for name, value in of_late.items():
        Gauge(name, "", ("namespace", "job_name"), registry=registry).labels(namespace, late).set(value)
    limits = Gauge("kube_pod_container_resource_limits", "", ("namespace", "pod", "resource"), registry=registry)
    for pod in pods:
        limits.labels(namespace, pod, "nvidia_com_gpu").set(1)
    return registry


@contextlib.contextmanager
def exported(collector: Collector) -> Iterator[str]:
    """Serve a collector on a free port of this machine; gives the URL."""
    server, thread = start_http_server(0, "127.0.0.1", collector)
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def outcome(**values: float) -> CollectorRegistry:
    """What an attempt pushes at its end; keywords replace values."""
    registry = CollectorRegistry()
    for series in OUTCOME:
        age = AGES.get(series.name)
        usual = VALUES.get(series.name, 0.5) if age is None else time.time() - age
        Gauge(series.name, series.help, registry=registry).set(values.get(series.name, usual))
    return registry


def _metric(series: Series, registry: CollectorRegistry) -> Any:
    options = {"buckets": series.buckets} if series.buckets else {}
    return KINDS[series.kind](series.name, series.help, series.labels, registry=registry, **options)


def _label_values(series: Series) -> list[tuple[str, ...]]:
    if series.name == "thaw_phase":
        return [(phase,) for phase in (*STATES_BEFORE, *PHASE_NAMES, *STATES_AFTER)]
    if series.known or not series.labels:
        return [(value,) for value in series.known] or [()]
    return list(itertools.product(*(LABELS.get(label, (label,)) for label in series.labels)))
