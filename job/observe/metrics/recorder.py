"""What is told of a run -> series. A reader of events and steps, and an observer of requests to the store.

A gauge without a value yet is absent, never 0: an alert on it stays silent.
"""

import time
from collections.abc import Callable, Mapping, Sequence
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
from job.observe.progress import Progress

KINDS = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}


class Metrics:
    """The series of one attempt. `constants` are labels of thaw_info; `disks` are folders whose free space counts."""

    def __init__(self, progress: Progress, *, constants: dict[str, str], disks: Sequence[Path]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self._progress = progress
        self._constants = {"version": __version__} | constants
        self._metrics: dict[tuple[str, ...], Any] = {}
        self._estimate = Estimate({})
        self._outcome: dict[str, float] = {}
        self._completed_at: float | None = None
        for series in SERIES:
            if series.kind != "gauge" and not series.is_live:
                self._series(series.name)
                for values in series.known:
                    self._series(series.name, *values)
        self._tell_info(precision="", device="")
        ProcessCollector(registry=self.registry)
        self.registry.register(Live(progress, disks))
        self._handlers: dict[str, Callable[..., None]] = {
            events.RUN_CLAIMED: self._claimed,
            events.RUN_ALREADY_DONE: self._already_done,
            events.DATA_LOADED: self._data_loaded,
            events.MODEL_BUILT: self._model_built,
            events.RESTORED: self._restored,
            events.CHECKPOINT_DAMAGED: lambda **_: self._series("thaw_restores_total", "damaged").inc(),
            events.PHASE_STARTED: self._phase_started,
            events.STEP_COMPILED: self._step_compiled,
            events.EPOCH_FINISHED: self._epoch_finished,
            events.COMMITTED: self._committed,
            events.COMMIT_FAILED: self._commit_failed,
            events.EVALUATED: self._evaluated,
        }

    def event(self, name: str, **facts: Any) -> None:
        handler = self._handlers.get(name)
        if handler is not None:
            handler(**facts)

    def warning(self, name: str, **facts: Any) -> None:
        self.event(name, **facts)

    def step(self, done: events.StepDone, running_means: events.RunningMeans) -> None:
        """Costs some microseconds; the loss is not read."""
        self._series("thaw_steps_total", done.phase).inc()
        self._series("thaw_examples_total", done.phase).inc(done.num_examples)
        self._series("thaw_data_wait_seconds_total").inc(done.data_wait_seconds)
        self._series("thaw_last_step_timestamp_seconds").set_to_current_time()
        if not done.is_first:
            self._series("thaw_step_duration_seconds", done.phase).observe(done.seconds)
        self._estimate.done(done.step)
        self._estimated()

    def closing(self, title: str, rows: dict[str, str]) -> None:
        """Nothing to count."""

    def interrupted(self, signal_name: str) -> None:
        """The attempt was told to stop."""
        self._series("thaw_interrupted_total", signal_name).inc()

    def request(self, operation: str, code: str, seconds: float) -> None:
        """The store has answered, or has not; called from several threads, as the two below."""
        self._series("thaw_storage_requests_total", operation, code).inc()
        self._series("thaw_storage_request_seconds", operation).observe(seconds)

    def retry(self, operation: str) -> None:
        """A request is sent again."""
        self._series("thaw_storage_retries_total", operation).inc()

    def conflict(self, name: str) -> None:
        """A write of this object was refused: another process had written it."""
        kinds = {"run.json": "record", "checkpoints": "checkpoint"}
        self._series("thaw_precondition_failures_total", kinds.get(name.split("/")[0], "artefact")).inc()

    def outcome(self, exit_code: int) -> CollectorRegistry:
        """What is pushed when the attempt ends: what is known of the outcome, and of nothing else."""
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

    def _claimed(self, *, attempt: int, **_: Any) -> None:
        self._told("thaw_attempts", attempt)

    def _already_done(self, *, attempts: int, ended: str, test_accuracy: float, test_loss: float, **_: Any) -> None:
        self._told("thaw_attempts", attempts)
        self._completed_at = datetime.fromisoformat(ended).timestamp()
        self._evaluated(accuracy=test_accuracy, loss=test_loss)

    def _data_loaded(self, **facts: Any) -> None:
        self._estimate = Estimate.of(facts)
        for phase, count in self._estimate.num_steps.items():
            self._series("thaw_steps_expected", phase).set(count)
        self._estimated()

    def _model_built(self, *, precision: str, device: str, **_: Any) -> None:
        self._tell_info(precision=precision, device=device)

    def _tell_info(self, *, precision: str, device: str) -> None:
        """What a run computes with is known only once its model is built; until then those labels are empty."""
        info = self._series("thaw_info")
        info.clear()
        info.labels(**self._constants, precision=precision, device=device).set(1)

    def _restored(self, *, checkpoint: str | None, **_: Any) -> None:
        self._series("thaw_restores_total", "good" if checkpoint else "none").inc()

    def _phase_started(self, *, phase: str, epoch: int, step: int, learning_rate: float, **_: Any) -> None:
        self._series("thaw_epoch", phase).set(epoch)
        self._series("thaw_learning_rate", phase).set(learning_rate)
        self._estimate.begin(phase, step)
        self._estimated()

    def _step_compiled(self, *, phase: str, seconds: float, **facts: Any) -> None:
        self._series("thaw_compile_duration_seconds", phase).set(seconds)
        self._gpu_memory(**facts)

    def _epoch_finished(self, *, phase: str, epoch: int, **facts: Any) -> None:
        self._series("thaw_epoch", phase).set(epoch + 1)
        for split in ("train", "validation"):
            self._series("thaw_loss", phase, split).set(facts[f"{split}_loss"])
            self._series("thaw_accuracy_ratio", phase, split).set(facts[f"{split}_accuracy"])
        self._gpu_memory(**facts)

    def _gpu_memory(self, *, gpu_memory: Mapping[str, Mapping[str, int]] | None = None, **_: Any) -> None:
        for device, stats in (gpu_memory or {}).items():
            for stat, size in stats.items():
                self._series("thaw_gpu_memory_bytes", device, stat).set(size)

    def _committed(self, *, reason: str, bytes: int, seconds: float, blocking_seconds: float, **_: Any) -> None:
        self._series("thaw_checkpoint_commits_total", reason).inc()
        self._series("thaw_checkpoint_bytes_total").inc(bytes)
        self._series("thaw_checkpoint_upload_seconds").observe(seconds)
        self._series("thaw_checkpoint_blocking_seconds").observe(blocking_seconds)
        self._series("thaw_checkpoint_last_commit_timestamp_seconds").set_to_current_time()

    def _commit_failed(self, *, error: str, **_: Any) -> None:
        self._series("thaw_checkpoint_failures_total", error).inc()

    def _evaluated(self, *, accuracy: float, loss: float, **_: Any) -> None:
        self._told("thaw_test_accuracy_ratio", accuracy)
        self._told("thaw_test_loss", loss)

    def _estimated(self) -> None:
        self._series("thaw_progress_ratio").set(self._estimate.ratio())
        left = self._estimate.seconds_left()
        if left is not None:
            self._series("thaw_eta_timestamp_seconds").set(time.time() + left)

    def _told(self, name: str, value: float) -> None:
        self._outcome[name] = float(value)
        self._series(name).set(value)

    def _series(self, name: str, *labels: str) -> Any:
        """The metric of a row of the table, or its child with these labels, made when it is first asked for."""
        key = (name, *labels)
        if key not in self._metrics:
            row = BY_NAME[name]
            if labels:
                self._metrics[key] = self._series(name).labels(*labels)
            else:
                options = {"buckets": row.buckets} if row.buckets else {}
                self._metrics[key] = KINDS[row.kind](name, row.help, row.labels, registry=self.registry, **options)
        return self._metrics[key]
