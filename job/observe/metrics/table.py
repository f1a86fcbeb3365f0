"""Every series that a run exports, in one table: name, type, labels, help.

Names follow Prometheus' rules: base units, `_total` on counters, `_timestamp_seconds` for instants, never "seconds
since". Dashboard and alert rules are tested against this table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from job.observe.ledger import CATEGORIES

OPERATIONS = ("read", "write", "list", "delete")

STEP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
COMMIT_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
REQUEST_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


@dataclass(frozen=True)
class Series:
    """One metric.

    The values in `known`, of its only label, are exported from the start, at 0, so that a rate misses no first
    increase; of one that `is_of_phase` they are the phases of the run. An `is_live` series is read at the moment of a
    scrape.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    known: Sequence[str] = ()
    buckets: tuple[float, ...] = ()
    is_live: bool = False
    is_of_phase: bool = False


OUTCOME = (
    Series("thaw_last_success_timestamp_seconds", "gauge", "When a run was last completed."),
    Series("thaw_last_completion_timestamp_seconds", "gauge", "When an attempt last ended, however it did."),
    Series("thaw_run_duration_seconds", "gauge", "Seconds that all attempts at the run have taken together.",
           is_live=True),
    Series("thaw_exit_code", "gauge", "Exit code of the last attempt; only pushed."),
    Series("thaw_test_accuracy_ratio", "gauge", "Share of the test split that is classified correctly, 0 to 1."),
    Series("thaw_test_balanced_accuracy_ratio", "gauge", "Mean over the classes of the share of each that is found."),
    Series("thaw_test_loss", "gauge", "Mean cross-entropy over the test split in nats."),
    Series("thaw_attempts", "gauge", "Attempts at the run so far, this one included."),
    Series("thaw_goodput_ratio", "gauge", "Share of all attempts' seconds that went into new steps, 0 to 1.",
           is_live=True),
)  # fmt: skip
"""These are also pushed when an attempt ends."""

SERIES = (
    *OUTCOME,
    Series("thaw_info", "gauge", "1; its labels identify the run.",
           ("run_id", "fingerprint", "version", "dataset", "backbone", "precision", "device")),
    Series("thaw_phase", "gauge", "1 for the phase that the run is in, 0 for the others.", ("phase",), is_live=True),
    Series("thaw_phase_duration_seconds", "gauge", "Seconds that all attempts have spent in a phase.",
           ("phase",), is_live=True),
    Series("thaw_attempts_killed", "gauge", "Attempts in a row, since the last commit, that ended without a word."),
    Series("thaw_restores_total", "counter", "Checkpoints that an attempt read at its start, by result.",
           ("result",), known=("good", "damaged", "none")),
    Series("thaw_interrupted_total", "counter", "Signals that asked the attempt to stop.",
           ("signal",), known=("SIGTERM", "SIGINT")),
    Series("thaw_epoch", "gauge", "Epochs of a phase that are finished.", ("phase",)),
    Series("thaw_steps_total", "counter", "Steps of a phase that this attempt has done.",
           ("phase",), is_of_phase=True),
    Series("thaw_steps_expected", "gauge", "Steps of a phase in all.", ("phase",)),
    Series("thaw_examples_total", "counter", "Examples that this attempt has trained on.",
           ("phase",), is_of_phase=True),
    Series("thaw_progress_ratio", "gauge", "Share of the training that is done, 0 to 1, by expected time."),
    Series("thaw_eta_timestamp_seconds", "gauge", "When training and final evaluation are expected to end."),
    Series("thaw_last_step_timestamp_seconds", "gauge", "When a step was last done."),
    Series("thaw_loss", "gauge", "Mean cross-entropy of the last epoch in nats.", ("phase", "split")),
    Series("thaw_accuracy_ratio", "gauge", "Share of correct answers in the last epoch, 0 to 1.", ("phase", "split")),
    Series("thaw_balanced_accuracy_ratio", "gauge",
           "The same in validation after the last epoch: mean over the classes of the share of each that is found.",
           ("phase",)),
    Series("thaw_learning_rate", "gauge", "Learning rate in a phase.", ("phase",)),
    Series("thaw_step_duration_seconds", "histogram", "From one step to the next, without waiting for data.",
           ("phase",), is_of_phase=True, buckets=STEP_BUCKETS),
    Series("thaw_data_wait_seconds_total", "counter", "Seconds that the train step has waited for its images."),
    Series("thaw_compile_duration_seconds", "gauge",
           "Seconds of the first step of a phase, which is traced and compiled.", ("phase",)),
    Series("thaw_time_seconds_total", "counter", "Seconds of this attempt by category; each second is in exactly one.",
           ("category",), known=CATEGORIES, is_live=True),
    Series("thaw_checkpoint_commits_total", "counter", "Checkpoints committed, by occasion.",
           ("reason",), known=("epoch", "interval", "stop")),
    Series("thaw_checkpoint_failures_total", "counter", "Checkpoints that could not be committed, by error.",
           ("reason",), known=("StorageError", "StorageRefused", "ScratchUnavailable")),
    Series("thaw_checkpoint_blocking_duration_seconds", "histogram", "Time that training waited for a commit.",
           buckets=COMMIT_BUCKETS),
    Series("thaw_checkpoint_upload_duration_seconds", "histogram", "Time that a commit took in the background.",
           buckets=COMMIT_BUCKETS),
    Series("thaw_checkpoint_bytes_total", "counter", "Bytes of checkpoints committed."),
    Series("thaw_checkpoint_last_commit_timestamp_seconds", "gauge", "When a checkpoint was last committed."),
    Series("thaw_storage_requests_total", "counter", "Calls to the store: ok, or of a failure the HTTP status or kind.",
           ("operation", "code")),
    Series("thaw_storage_request_duration_seconds", "histogram", "Time until the store answered a request.",
           ("operation",), known=OPERATIONS, buckets=REQUEST_BUCKETS),
    Series("thaw_storage_retries_total", "counter", "Requests to the store that were sent again.",
           ("operation",), known=OPERATIONS),
    Series("thaw_precondition_failures_total", "counter",
           "Writes refused because another process had written the object.",
           ("object",), known=("record", "checkpoint", "artefact")),
    Series("thaw_gpu_memory_bytes", "gauge",
           "Memory of a GPU: current and peak of what TensorFlow's arrays take; used by all processes, and total.",
           ("device", "stat"), is_live=True),
    Series("thaw_gpu_utilization_ratio", "gauge",
           "Share of the last moment, at most a second, in which a GPU ran anything, 0 to 1.",
           ("device",), is_live=True),
    Series("thaw_disk_free_bytes", "gauge", "Free space where temporary files and runs are kept.",
           ("path",), is_live=True),
)  # fmt: skip
"""Besides these there are the process metrics of the Prometheus client: memory, processor time, open files."""

BY_NAME = {series.name: series for series in SERIES}
