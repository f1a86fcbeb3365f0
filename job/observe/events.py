"""The events of a run, which are the lines of its log."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from typing import Any, ClassVar, dataclass_transform

GpuMemory = Mapping[str, Mapping[str, int]]  # bytes that TensorFlow holds of each GPU, "current" and "peak"


@dataclass_transform(frozen_default=True)
class Event:
    """Something that happens once in a while; each kind is a frozen dataclass. `name` and `level` go into the log."""

    name: ClassVar[str]
    level: ClassVar[str]

    def __init_subclass__(cls, *, name: str, level: str = "info") -> None:
        cls.name, cls.level = name, level
        dataclass(frozen=True)(cls)

    def fields(self) -> dict[str, Any]:
        """What the log shows, in order; a field that has its default value is left out."""
        return {name: value for name, value in vars(self).items() if value != getattr(type(self), name, MISSING)}


class WaitingForRun(Event, name="waiting"):
    """Another attempt holds the run; this is said again every five minutes, with how far the run is."""

    held_by: str
    attempt: int
    since: str
    at_most_seconds: float
    state: str | None = None
    steps_done: int | None = None
    num_steps: int | None = None


class WaitingForLock(Event, name="waiting"):
    """Another process holds a lock of the store."""

    lock: str
    at_most_seconds: float


class WaitingForStore(Event, name="waiting", level="warning"):
    """The object store does not answer; what was asked of it is tried again."""

    reason: str
    at_most_seconds: float


class WaitingForWorkers(Event, name="waiting"):
    """Other workers of the run, by number, have not come yet, or are not ready."""

    workers: Sequence[int]
    at_most_seconds: float


class WorkersMet(Event, name="workers_met"):
    """All workers of the run are there, and reach each other."""

    num_workers: int
    seconds: float


class RunClaimed(Event, name="run_claimed"):
    """This attempt holds the run from now on."""

    at: str
    attempt: int
    state: str


class PreviousKilled(Event, name="previous_attempt_killed", level="warning"):
    """The last attempt has no end in the record; where it was, and how many in a row since the last commit had none.

    From two on, memory is the likely cause. `needed_bytes` is an estimate, `memory_limit_bytes` that of this container.
    """

    attempt: int
    holder: str
    stage: str
    reason: str
    hint: str
    in_a_row: int
    last_step: int | None = None
    memory_limit_bytes: int | None = None
    needed_bytes: int | None = None
    oom_kills: int = 0


class Joined(Event, name="joined"):
    """This worker follows worker 0, which holds the run."""

    at: str
    attempt: int


class RunAlreadyDone(Event, name="run_already_done"):
    """An earlier attempt completed the run; nothing is done."""

    at: str
    attempts: int
    ended: str
    test_accuracy: float
    test_accuracy_interval: tuple[float, float]
    test_loss: float
    model_sha256: str
    test_balanced_accuracy: float | None = None


class GpuNotUsed(Event, name="gpu_not_used", level="warning"):
    """There is a GPU on which TensorFlow cannot work. The processor is used, as THAW_DEVICE=auto allows."""

    reason: str
    hint: str


class DataLoaded(Event, name="data_loaded"):
    """The splits are known: examples of each split, training steps of each phase, examples and weight of each class."""

    dataset: str
    cache: str
    train: int
    validation: int
    test: int
    steps: Mapping[str, int]
    classes: Mapping[str, Mapping[str, int]]
    class_weights: Mapping[str, float] | None = None
    relative_costs: Mapping[str, float] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        fields = super().fields()
        steps, classes = fields.pop("steps"), fields.pop("classes")
        fields.pop("relative_costs")
        return fields | {f"{phase}_steps": count for phase, count in steps.items()} | {"classes": classes}


class ModelBuilt(Event, name="model_built"):
    """The classifier has its weights; `xla` says whether its train step is compiled by XLA."""

    backbone: str
    weights: str
    precision: str
    xla: bool
    device: str


class SeenBefore(Event, name="seen_before", level="warning"):
    """The run with which this one begins has trained on images of these splits, which makes their results too good.

    By split how many, or, of a data set whose images have no names, the split that it trained on.
    """

    run: str
    images: dict[str, int | str]


class HeadTaken(Event, name="head_taken"):
    """The head is that of the finished run with which this one begins, for the classes that both have."""

    run: str
    num_known: int
    new_classes: list[str]


class CheckpointDamaged(Event, name="checkpoint_damaged", level="warning"):
    """A checkpoint cannot be used; the one before it is tried."""

    checkpoint: str
    reason: str


class Restored(Event, name="restored"):
    """Training goes on from this checkpoint."""

    checkpoint: str | None
    phase: str
    step: int


class NothingRestored(Restored, name="restored", level="warning"):
    """No checkpoint of the run can be used; training begins anew."""


class PhaseStarted(Event, name="phase_started"):
    """A phase begins, or goes on, with `epoch` epochs and `step` steps done."""

    phase: str
    epoch: int
    step: int
    learning_rate: float


class StepCompiled(Event, name="step_compiled"):
    """The first step of this attempt in a phase is done, which was traced and compiled."""

    phase: str
    seconds: float
    gpu_memory: GpuMemory | None = None


class EpochFinished(Event, name="epoch_finished"):
    """An epoch is trained and validated: mean losses in nats, that of training with class weights; accuracies in 0..1.

    Seconds and images a second are of this attempt; the rate leaves out the step that was compiled. `learning_rate` is
    that of the last step.
    """

    phase: str
    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    validation_balanced_accuracy: float
    train_seconds: float
    validation_seconds: float
    images_per_second: float
    learning_rate: float
    gpu_memory: GpuMemory | None = None


class StoppedEarly(Event, name="stopped_early"):
    """A phase ends before its last epoch: validation has not improved since `best_epoch`, counted from 0."""

    phase: str
    step: int
    best_epoch: int


class BestRestored(Event, name="best_restored"):
    """The model is again as it was after the best epoch of the phase, counted from 0."""

    phase: str
    epoch: int
    checkpoint: str
    validation_loss: float
    validation_accuracy: float
    validation_balanced_accuracy: float | None = None


class Committed(Event, name="committed"):
    """A checkpoint is in the store; `blocking_seconds` are those that training stood still for it."""

    reason: str
    phase: str
    step: int
    bytes: int
    seconds: float
    blocking_seconds: float
    checkpoint: str


class CommitFailed(Event, name="commit_failed", level="warning"):
    """A checkpoint could not be written; training goes on, and the next one has a newer state.

    `reason` says why, `error` is the class of the failure, which the metrics count by.
    """

    phase: str
    step: int
    reason: str
    error: str


class Evaluated(Event, name="evaluated"):
    """The exported model was measured over the test split: accuracies in 0..1, mean loss in nats."""

    accuracy: float
    balanced_accuracy: float
    loss: float
    num_examples: int


class Exported(Event, name="exported"):
    """Model, report and logs are in the store."""

    model: str


class RunFinished(Event, name="run_finished"):
    """The run is complete and its outcome committed."""

    at: str
    test_accuracy: float
    test_accuracy_interval: tuple[float, float]
    test_loss: float
    model_sha256: str
    test_balanced_accuracy: float | None = None


class Stopping(Event, name="stopping", level="warning"):
    """A signal asks the process to stop; a second one, or the end of the time, ends it at once.

    While it trains, the step under way is finished and the state committed; `uncommitted_steps` are done so far.
    """

    signal: str
    within_seconds: float
    uncommitted_steps: int | None = None

    def __str__(self) -> str:
        again = "Ctrl-C" if self.signal == "SIGINT" else self.signal
        under_way, price = "it ends as soon as it can", ""
        if self.uncommitted_steps is not None:
            under_way = "the step under way is finished, then the state is committed"
            price = f" (steps lost: at most {self.uncommitted_steps + 1})"
        return (
            f"stopping, on {self.signal}: {under_way}, within {self.within_seconds:g} s; "
            f"a second {again} ends at once{price}"
        )


class RunFailed(Event, name="run_failed", level="error"):
    """Why the process ends with this exit code, and what to do about it."""

    exit_code: int
    reason: str
    hint: str
    traceback: str | None = None

    def __str__(self) -> str:
        rest = {"hint": self.hint, "traceback": self.traceback}
        return "\n".join([f"error: {self.reason}", *(f"{name}: {value}" for name, value in rest.items() if value)])


class MetricsUnavailable(Event, name="metrics_unavailable", level="warning"):
    """/metrics is not served; the run goes on without."""

    port: int
    reason: str
    hint: str


class PushFailed(Event, name="push_failed", level="warning"):
    """The Pushgateway did not take the outcome."""

    url: str
    reason: str
    hint: str


class ReportingFailed(Event, name="reporting_failed", level="warning"):
    """Kubeflow Trainer did not take the progress; this is said once, until it does again."""

    url: str
    reason: str


@dataclass(frozen=True)
class StepDone:
    """`step` steps of the phase are done, of `num_steps`; `batch` of them in epoch `epoch`.

    The last call did `num_steps_done` of them, with `num_examples`, in `seconds`; `data_wait_seconds`, the wait for
    their images, is not in these. The first step of an attempt is compiled.
    """

    phase: str
    epoch: int
    step: int
    num_steps: int
    batch: int
    num_batches: int
    num_examples: int
    seconds: float
    data_wait_seconds: float
    is_first: bool
    num_steps_done: int = 1
