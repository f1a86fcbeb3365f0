"""Events, steps and requests to the store -> series.

A gauge without a value yet is absent, never 0, so that an alert on it stays silent.
"""

import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

from job import __version__
from job.observe import events
from job.observe.estimate import Estimate
from job.observe.ledger import by_stage, goodput
from job.observe.metrics.live import Live
from job.observe.metrics.table import BY_NAME, OUTCOME, SERIES
from job.observe.observer import Observer, RunningMeans
from job.observe.progress import Progress

KINDS = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}


class Metrics(Observer):
    """The series of one attempt: an observer of the run and of its store.

    `constants` are labels of thaw_info, `disks` the folders whose free space is shown.
    """

    def __init__(self, progress: Progress, *, constants: dict[str, str], disks: Sequence[Path]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._progress = progress
        self._constants = {"version": __version__} | constants
        self._metrics: dict[tuple[str, ...], Any] = {}
        self._estimate = Estimate()
        self._outcome: dict[str, float] = {}
        self._completed_at: float | None = None
        for series in SERIES:
            if series.kind != "gauge" and not series.is_live:
                self._series(series.name)
                for value in progress.phases if series.is_of_phase else series.known:
                    self._series(series.name, value)
        self._set_info(precision="", device="")
        ProcessCollector(registry=self.registry)
        self._live = Live(progress, disks)
        self.registry.register(self._live)

    def event(self, event: events.Event) -> None:
        self._estimate.event(event)
        match event:
            case events.RunClaimed():
                self._set_outcome("thaw_attempts", event.attempt)
                self._series("thaw_attempts_killed").set(0)
            case events.PreviousKilled():
                self._series("thaw_attempts_killed").set(event.in_a_row)
            case events.RunAlreadyDone():
                self._set_outcome("thaw_attempts", event.attempts)
                self._set_outcome("thaw_test_accuracy_ratio", event.test_accuracy)
                if event.test_balanced_accuracy is not None:
                    self._set_outcome("thaw_test_balanced_accuracy_ratio", event.test_balanced_accuracy)
                self._set_outcome("thaw_test_loss", event.test_loss)
                self._completed_at = datetime.fromisoformat(event.ended).timestamp()
            case events.DataLoaded():
                for phase, count in event.steps.items():
                    self._series("thaw_steps_expected", phase).set(count)
                self._set_estimate()
            case events.ModelBuilt():
                self._set_info(precision=event.precision, device=event.device)
            case events.Restored():
                self._series("thaw_restores_total", "good" if event.checkpoint else "none").inc()
                self._set_estimate()
            case events.StoppedEarly():
                self._set_estimate()
            case events.CheckpointDamaged():
                self._series("thaw_restores_total", "damaged").inc()
            case events.PhaseStarted():
                self._series("thaw_epoch", event.phase).set(event.epoch)
                self._series("thaw_learning_rate", event.phase).set(event.learning_rate)
                self._set_estimate()
            case events.StepCompiled():
                self._series("thaw_compile_duration_seconds", event.phase).set(event.seconds)
                self._set_gpu_memory(event.gpu_memory)
            case events.EpochFinished():
                self._series("thaw_epoch", event.phase).set(event.epoch + 1)
                self._series("thaw_loss", event.phase, "train").set(event.train_loss)
                self._series("thaw_loss", event.phase, "validation").set(event.validation_loss)
                self._series("thaw_accuracy_ratio", event.phase, "train").set(event.train_accuracy)
                self._series("thaw_accuracy_ratio", event.phase, "validation").set(event.validation_accuracy)
                self._series("thaw_balanced_accuracy_ratio", event.phase).set(event.validation_balanced_accuracy)
                self._set_gpu_memory(event.gpu_memory)
            case events.Committed():
                self._series("thaw_checkpoint_commits_total", event.reason).inc()
                self._series("thaw_checkpoint_bytes_total").inc(event.bytes)
                self._series("thaw_checkpoint_upload_duration_seconds").observe(event.seconds)
                self._series("thaw_checkpoint_blocking_duration_seconds").observe(event.blocking_seconds)
                self._series("thaw_checkpoint_last_commit_timestamp_seconds").set_to_current_time()
            case events.CommitFailed():
                self._series("thaw_checkpoint_failures_total", event.error).inc()
            case events.Stopping():
                self._series("thaw_interrupted_total", event.signal).inc()
            case events.Evaluated():
                self._set_outcome("thaw_test_accuracy_ratio", event.accuracy)
                self._set_outcome("thaw_test_balanced_accuracy_ratio", event.balanced_accuracy)
                self._set_outcome("thaw_test_loss", event.loss)

    def step(self, done: events.StepDone, running_means: RunningMeans) -> None:
        """Takes some microseconds; does not read the loss."""
        self._series("thaw_steps_total", done.phase).inc(done.num_steps_done)
        self._series("thaw_examples_total", done.phase).inc(done.num_examples)
        self._series("thaw_data_wait_seconds_total").inc(done.data_wait_seconds)
        self._series("thaw_last_step_timestamp_seconds").set_to_current_time()
        if not done.is_first:
            for _ in range(done.num_steps_done):
                self._series("thaw_step_duration_seconds", done.phase).observe(done.seconds / done.num_steps_done)
        self._estimate.step(done)
        self._set_estimate()

    def request(self, operation: str, code: str, seconds: float) -> None:
        """A request to the store has ended, `code` says how; called from several threads, as the two below."""
        self._series("thaw_storage_requests_total", operation, code).inc()
        self._series("thaw_storage_request_duration_seconds", operation).observe(seconds)

    def retry(self, operation: str) -> None:
        """A request is sent again."""
        self._series("thaw_storage_retries_total", operation).inc()

    def conflict(self, name: str) -> None:
        """A write of this object was refused, because another process had written it."""
        kinds = {"run.json": "record", "checkpoints": "checkpoint"}
        self._series("thaw_precondition_failures_total", kinds.get(name.split("/")[0], "artefact")).inc()

    def outcome(self, exit_code: int) -> CollectorRegistry:
        """The series that are pushed when the attempt ends, as far as their values are known."""
        now, seconds = time.time(), self._progress.ledger.of_run()
        values = self._outcome | {
            "thaw_exit_code": float(exit_code),
            "thaw_last_completion_timestamp_seconds": now,
            "thaw_run_duration_seconds": sum(by_stage(seconds).values()),
            "thaw_goodput_ratio": goodput(seconds),
        }
        if exit_code == 0:
            values["thaw_last_success_timestamp_seconds"] = self._completed_at or now
        registry = CollectorRegistry()
        for series in OUTCOME:
            if series.name in values:
                Gauge(series.name, series.help, registry=registry).set(values[series.name])
        return registry

    def _set_info(self, *, precision: str, device: str) -> None:
        """Precision and device are known once the model is built; until then these labels are empty."""
        info = self._series("thaw_info")
        info.clear()
        info.labels(**self._constants, precision=precision, device=device).set(1)

    def _set_gpu_memory(self, memory: events.GpuMemory | None) -> None:
        if memory:
            self._live.gpu_memory = memory

    def _set_estimate(self) -> None:
        self._series("thaw_progress_ratio").set(self._estimate.ratio())
        left = self._estimate.seconds_left()
        if left is not None:
            self._series("thaw_eta_timestamp_seconds").set(time.time() + left)

    def _set_outcome(self, name: str, value: float) -> None:
        self._outcome[name] = float(value)
        self._series(name).set(value)

    def _series(self, name: str, *labels: str) -> Any:
        """The metric of a row of the table, or its child with these labels, created when first used."""
        key = (name, *labels)
        if key not in self._metrics:
            row = BY_NAME[name]
            if labels:
                self._metrics[key] = self._series(name).labels(*labels)
            else:
                options = {"buckets": row.buckets} if row.buckets else {}
                self._metrics[key] = KINDS[row.kind](name, row.help, row.labels, registry=self.registry, **options)
        return self._metrics[key]
