"""The events of a run, and the observers that get them.

Every line of the log is one of these events, with its fields. A finished step is reported too, but is never a line.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol


@dataclass(frozen=True)
class Event:
    """Something that happens once in a while. `name` and `level` are those of its line in the log."""

    name: ClassVar[str]
    level: ClassVar[Literal["info", "warning", "error"]] = "info"

    def fields(self) -> dict[str, Any]:
        """What the log shows, in order; a field that has its default value is left out."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }


@dataclass(frozen=True)
class WaitingForRun(Event):
    """Another attempt holds the run."""

    name = "waiting"

    held_by: str
    attempt: int
    since: str
    at_most_seconds: float


@dataclass(frozen=True)
class WaitingForLock(Event):
    """Another process holds a lock of the store."""

    name = "waiting"

    lock: str
    at_most_seconds: float


@dataclass(frozen=True)
class RunClaimed(Event):
    """This attempt holds the run from now on."""

    name = "run_claimed"

    at: str
    attempt: int
    state: str


@dataclass(frozen=True)
class RunAlreadyDone(Event):
    """An earlier attempt completed the run; nothing is done."""

    name = "run_already_done"

    at: str
    attempts: int
    ended: str
    test_accuracy: float
    test_accuracy_interval: tuple[float, float]
    test_loss: float
    model_sha256: str


@dataclass(frozen=True)
class Fetching(Event):
    """Files are being copied from a mirror."""

    name = "fetching"

    place: str
    num_left: int
    num_files: int
    bytes: int


@dataclass(frozen=True)
class Fetched(Event):
    """The files of a mirror are on this disk; the numbers are of those that were not there before."""

    name = "fetched"

    place: str
    num_files: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class DataLoaded(Event):
    """The splits are known: examples of each split, training steps of each phase, examples of each class."""

    name = "data_loaded"

    dataset: str
    cache: str
    train: int
    validation: int
    test: int
    steps: Mapping[str, int]
    classes: Mapping[str, Mapping[str, int]]

    def fields(self) -> dict[str, Any]:
        fields = super().fields()
        steps, classes = fields.pop("steps"), fields.pop("classes")
        return fields | {f"{phase}_steps": count for phase, count in steps.items()} | {"classes": classes}


@dataclass(frozen=True)
class ClassMissing(Event):
    """A split has no example of some classes."""

    name, level = "class_missing", "warning"

    split: str
    num_classes: int
    classes: list[str]


@dataclass(frozen=True)
class ClassRare(Event):
    """Some classes have few training examples: their results mean little."""

    name, level = "class_rare", "warning"

    fewer_than: int
    num_classes: int
    classes: list[str]


@dataclass(frozen=True)
class Duplicates(Event):
    """The same image is in two splits: how many examples of the second split are in the first one too."""

    name, level = "duplicates", "warning"

    train_validation: int
    train_test: int
    validation_test: int


@dataclass(frozen=True)
class ModelBuilt(Event):
    """The classifier has its weights; `xla` says whether its train step is compiled by XLA."""

    name = "model_built"

    backbone: str
    weights: str
    precision: str
    xla: bool
    device: str


@dataclass(frozen=True)
class CheckpointDamaged(Event):
    """A checkpoint cannot be used; the one before it is tried."""

    name, level = "checkpoint_damaged", "warning"

    checkpoint: str
    reason: str


@dataclass(frozen=True)
class Restored(Event):
    """Training goes on from this checkpoint."""

    name = "restored"

    checkpoint: str | None
    phase: str
    step: int


@dataclass(frozen=True)
class NothingRestored(Restored):
    """No checkpoint of the run can be used; training begins anew."""

    level = "warning"


@dataclass(frozen=True)
class PhaseStarted(Event):
    """A phase begins, or goes on, with `epoch` epochs and `step` steps done."""

    name = "phase_started"

    phase: str
    epoch: int
    step: int
    learning_rate: float


GpuMemory = Mapping[str, Mapping[str, int]]
"""Bytes that TensorFlow holds of each GPU: "current" and "peak"."""


@dataclass(frozen=True)
class StepCompiled(Event):
    """The first step of this attempt in a phase is done, which was traced and compiled."""

    name = "step_compiled"

    phase: str
    seconds: float
    gpu_memory: GpuMemory | None = None


@dataclass(frozen=True)
class EpochDone:
    """An epoch is trained and validated: mean losses in nats, accuracies in 0..1.

    Seconds and images a second are of this attempt; the rate leaves out the step that was compiled.
    """

    phase: str
    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    train_seconds: float
    validation_seconds: float
    images_per_second: float


@dataclass(frozen=True)
class EpochFinished(EpochDone, Event):
    """An epoch is trained and validated."""

    name = "epoch_finished"

    gpu_memory: GpuMemory | None = None


@dataclass(frozen=True)
class Committed(Event):
    """A checkpoint is in the store; `blocking_seconds` are those that training stood still for it."""

    name = "committed"

    reason: str
    phase: str
    step: int
    bytes: int
    seconds: float
    blocking_seconds: float
    checkpoint: str


@dataclass(frozen=True)
class CommitFailed(Event):
    """A checkpoint could not be written; training goes on, and the next one has a newer state."""

    name, level = "commit_failed", "warning"

    phase: str
    step: int
    reason: str
    error: str


@dataclass(frozen=True)
class Evaluated(Event):
    """The exported model was measured over the test split: accuracy in 0..1, mean loss in nats."""

    name = "evaluated"

    accuracy: float
    loss: float
    num_examples: int


@dataclass(frozen=True)
class Exported(Event):
    """Model, report and logs are in the store."""

    name = "exported"

    model: str


@dataclass(frozen=True)
class RunFinished(Event):
    """The run is complete and its outcome committed."""

    name = "run_finished"

    at: str
    test_accuracy: float
    test_accuracy_interval: tuple[float, float]
    test_loss: float
    model_sha256: str


@dataclass(frozen=True)
class RunFailed(Event):
    """Why the process ends with this exit code, and what to do about it."""

    name, level = "run_failed", "error"

    exit_code: int
    reason: str
    hint: str
    traceback: str | None = None


@dataclass(frozen=True)
class Mirrored(Event):
    """A file is in the mirror."""

    name = "mirrored"

    file: str
    number: int
    num_files: int
    bytes: int


@dataclass(frozen=True)
class MirrorFilled(Event):
    """All files are in the mirror; `bytes_sent` leaves out those that were there before."""

    name = "mirror_filled"

    place: str
    bytes_sent: int
    seconds: float


@dataclass(frozen=True)
class MirrorSettings(Event):
    """The settings with which a run reads from the mirror."""

    name = "mirror_settings"

    THAW_DATA_DIR: str
    THAW_WEIGHTS: str | None = None


@dataclass(frozen=True)
class MetricsUnavailable(Event):
    """/metrics is not served; the run goes on without."""

    name, level = "metrics_unavailable", "warning"

    port: int
    reason: str
    hint: str


@dataclass(frozen=True)
class PushFailed(Event):
    """The Pushgateway did not take the outcome."""

    name, level = "push_failed", "warning"

    url: str
    reason: str
    hint: str


@dataclass(frozen=True)
class ReportingFailed(Event):
    """Kubeflow Trainer did not take the progress; this is said once, until it does again."""

    name, level = "reporting_failed", "warning"

    url: str
    reason: str


@dataclass(frozen=True)
class StepDone:
    """`step` steps of the phase are done, of `num_steps`; `batch` of them in epoch `epoch`.

    `seconds` are those of the step itself, `data_wait_seconds` those that it waited for its images. `is_first` is the
    first step of an attempt, which is traced and compiled.
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


RunningMeans = Callable[[], tuple[float, float]]
"""Loss and accuracy of the epoch so far; calling it waits for the device."""


class Observer(Protocol):
    """What a run reports to. None of this may change how the run ends."""

    def event(self, event: Event) -> None:
        """Something has happened."""
        ...

    def step(self, done: StepDone, running_means: RunningMeans) -> None:
        """A step is done; must cost next to nothing."""
        ...

    def closing(self, title: str, rows: dict[str, str]) -> None:
        """The end of a run as a table; only a terminal shows it."""
        ...


class Observers:
    """Several observers as one, in order."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def event(self, event: Event) -> None:
        for observer in self._observers:
            observer.event(event)

    def step(self, done: StepDone, running_means: RunningMeans) -> None:
        for observer in self._observers:
            observer.step(done, running_means)

    def closing(self, title: str, rows: dict[str, str]) -> None:
        for observer in self._observers:
            observer.closing(title, rows)
