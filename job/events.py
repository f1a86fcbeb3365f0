"""The names of the events of a run, and what reads them.

Every line of the log is one of these; the README lists them.
"""

from typing import Any, Protocol

WAITING = "waiting"
RUN_CLAIMED = "run_claimed"
RUN_ALREADY_DONE = "run_already_done"
DATA_LOADED = "data_loaded"
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


class Reader(Protocol):
    """What the pipeline tells of a run."""

    def event(self, name: str, **facts: Any) -> None:
        """Something that happens once in a while."""
        ...

    def warning(self, name: str, **facts: Any) -> None:
        """Something that a person should look at."""
        ...

    def step(self, *, title: str, done: int, total: int, batch_size: int, loss: float, accuracy: float) -> None:
        """A step of the epoch under way; only a terminal shows it."""
        ...

    def closing(self, title: str, rows: dict[str, str]) -> None:
        """The end of a run as a table; only a terminal shows it."""
        ...

    @property
    def wants_steps(self) -> bool:
        """Whether `step` shows anything; reading the loss for it costs a wait for the device."""
        ...
