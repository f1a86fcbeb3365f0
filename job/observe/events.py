"""What is told of a run while it goes on, and who reads it.

Every line of the log is one of the events named here; the README lists them. A step is told too, and is never a line.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

WAITING = "waiting"
RUN_CLAIMED = "run_claimed"
RUN_ALREADY_DONE = "run_already_done"
DATA_LOADED = "data_loaded"
CLASS_MISSING = "class_missing"
CLASS_RARE = "class_rare"
DUPLICATES = "duplicates"
MODEL_BUILT = "model_built"
RESTORED = "restored"
FETCHING = "fetching"
FETCHED = "fetched"
MIRRORED = "mirrored"
MIRROR_FILLED = "mirror_filled"
MIRROR_SETTINGS = "mirror_settings"
CHECKPOINT_DAMAGED = "checkpoint_damaged"
PHASE_STARTED = "phase_started"
STEP_COMPILED = "step_compiled"
EPOCH_FINISHED = "epoch_finished"
COMMITTED = "committed"
COMMIT_FAILED = "commit_failed"
EVALUATED = "evaluated"
EXPORTED = "exported"
RUN_FINISHED = "run_finished"
RUN_FAILED = "run_failed"
METRICS_UNAVAILABLE = "metrics_unavailable"
PUSH_FAILED = "push_failed"
REPORTING_FAILED = "reporting_failed"


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
"""Loss and accuracy of the epoch so far; asking waits for the device."""


class Reader(Protocol):
    """What the pipeline tells of a run."""

    def event(self, name: str, **facts: Any) -> None:
        """Something that happens once in a while."""
        ...

    def warning(self, name: str, **facts: Any) -> None:
        """Something that a person should look at."""
        ...

    def step(self, done: StepDone, running_means: RunningMeans) -> None:
        """A step of the epoch under way; must cost next to nothing."""
        ...

    def closing(self, title: str, rows: dict[str, str]) -> None:
        """The end of a run as a table; only a terminal shows it."""
        ...


class Readers:
    """Several readers as one: each is told everything, in order."""

    def __init__(self, *readers: Reader) -> None:
        self._readers = readers

    def event(self, name: str, **facts: Any) -> None:
        for reader in self._readers:
            reader.event(name, **facts)

    def warning(self, name: str, **facts: Any) -> None:
        for reader in self._readers:
            reader.warning(name, **facts)

    def step(self, done: StepDone, running_means: RunningMeans) -> None:
        for reader in self._readers:
            reader.step(done, running_means)

    def closing(self, title: str, rows: dict[str, str]) -> None:
        for reader in self._readers:
            reader.closing(title, rows)
