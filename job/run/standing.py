"""How a run stands, as its record tells: its condition, its position in the training, the time that is left.

Pure functions of a record, so every command says the same of a run. This module reads no store and no clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from job.errors import ExitCode
from job.phases import PHASE_NAMES, RELATIVE_COST
from job.schema import CheckpointEntry, Record, recorded_setting

Condition = Literal["done", "running", "stopped", "failed", "killed"]

CARRIES_ON = frozenset({ExitCode.INTERRUPTED, ExitCode.SUPERSEDED, ExitCode.STORAGE_UNAVAILABLE})
"""The exit codes after which another attempt carries on where the last one stopped."""


@dataclass(frozen=True, kw_only=True)
class PhaseProgress:
    """How far a phase is: `step` of `num_steps`, where the latter is None until the size of the data is known."""

    name: str
    step: int
    num_steps: int | None
    num_epochs_done: int
    num_epochs: int


def condition(record: Record, *, held_seconds: float) -> Condition:
    """What became of the newest attempt; `held_seconds` is how long its lease still lives, 0 when it does not."""
    if record.state == "done":
        return "done"
    newest = record.attempts[-1] if record.attempts else None
    if newest is None or newest.end is None:
        return "running" if held_seconds > 0 else "killed"
    return "stopped" if newest.exit_code in CARRIES_ON else "failed"


def newest_checkpoint(record: Record) -> CheckpointEntry | None:
    """The commit that a restart would begin with, if it is whole."""
    return record.checkpoints[-1] if record.checkpoints else None


def phases(record: Record, *, is_running: bool = False) -> list[PhaseProgress]:
    """The phases that train, in order, as far as they are committed; of an attempt that goes on, as far as it got.

    The latter is as of the last write of the record, which a living attempt renews several times in a lease.
    """
    reached: Mapping[Any, int] = record.attempts[-1].reached if is_running else {}
    entry = newest_checkpoint(record)
    found: list[PhaseProgress] = []
    is_ahead = entry is None
    for name in PHASE_NAMES:
        num_epochs = recorded_setting(record.settings, f"{name.upper()}_EPOCHS")
        if num_epochs == 0:
            continue
        num_steps = record.num_steps(name)
        if entry is not None and entry.phase == name:
            step, is_ahead = entry.step, True
        else:
            step = 0 if is_ahead else num_steps or 0
        num_epochs_done = sum(epoch.phase == name for epoch in record.history)
        found.append(
            PhaseProgress(
                name=name,
                step=max(step, reached.get(name, 0)),
                num_steps=num_steps,
                num_epochs_done=num_epochs_done,
                num_epochs=num_epochs,
            )
        )
    return found


def ratio(progress: list[PhaseProgress]) -> float | None:
    """The share of the training that is done, 0 to 1, weighted by what a step of its phase costs; None if unknown."""
    done, whole = 0.0, 0.0
    for phase in progress:
        if phase.num_steps is None:
            return None
        done += phase.step * RELATIVE_COST[phase.name]
        whole += phase.num_steps * RELATIVE_COST[phase.name]
    return done / whole if whole else None


def seconds_left(record: Record, progress: list[PhaseProgress]) -> float | None:
    """About how long the rest takes, from what epochs have taken so far; None before the first one is done.

    Steps still to do at the newest speed of their phase, or of the other one by their relative cost; the validations
    still to come; the test, at the speed of a validation.
    """
    if record.state == "done":
        return 0.0
    if not record.history or not record.inputs:
        return None
    newest, batch_size = record.history[-1], recorded_setting(record.settings, "BATCH_SIZE")
    speeds: dict[str, float] = {epoch.phase: epoch.images_per_second for epoch in record.history}
    seconds = 0.0
    for phase in progress:
        speed = speeds.get(phase.name)
        if speed is None:
            speed = newest.images_per_second * RELATIVE_COST[newest.phase] / RELATIVE_COST[phase.name]
        seconds += ((phase.num_steps or 0) - phase.step) * batch_size / max(speed, 1e-9)
        seconds += (phase.num_epochs - phase.num_epochs_done) * newest.validation_seconds
    splits = record.inputs["data"]["splits"]
    return seconds + newest.validation_seconds * splits["test"] / max(1, splits["validation"])


def last_change(record: Record) -> datetime | None:
    """The newest moment that the record names: of a start, an end, or a commit."""
    moments = [moment for attempt in record.attempts for moment in (attempt.start, attempt.end) if moment is not None]
    return max(moments + [entry.time for entry in record.checkpoints], default=None)
