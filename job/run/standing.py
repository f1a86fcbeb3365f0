"""The status of a run by its record: its condition, its position in the training, the time that is left.

Pure functions of a record, so every command gives the same answers. This module reads no store and no clock. A record
that was read has an attempt.
"""

import itertools
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple

from job.errors import ExitCode
from job.observe import estimate
from job.observe.estimate import PhaseProgress
from job.schema import Attempt, CheckpointEntry, Record, recorded_setting
from job.settings.settings import Settings
from job.train import schedule

Condition = Literal["done", "running", "stopped", "failed", "killed"]

CARRIES_ON = frozenset({ExitCode.INTERRUPTED, ExitCode.SUPERSEDED, ExitCode.STORAGE_UNAVAILABLE, ExitCode.PEER_LOST})
"""The exit codes after which another attempt continues where the last one stopped."""


def condition(record: Record, *, held_seconds: float) -> Condition:
    """By the newest attempt; `held_seconds` is how long its lease still lives, 0 when it has run out."""
    if record.state == "done":
        return "done"
    newest = record.attempts[-1]
    if newest.end is None:
        return "running" if held_seconds > 0 else "killed"
    return "stopped" if newest.exit_code in CARRIES_ON else "failed"


class Killed(NamedTuple):
    """The last attempt ended without a word; `in_a_row` such attempts came to no further commit, and so no further.

    `stage` and `step` are where it was at its last write of the record.
    """

    attempt: Attempt
    in_a_row: int
    stage: str
    step: int | None

    def __str__(self) -> str:
        step = "" if self.step is None else f" after step {self.step}"
        where = f"attempt {self.attempt.number} ended without a word in {self.stage}{step}"
        if self.in_a_row == 1:
            return where
        return f"{where}, as did {self.in_a_row} in a row since the last commit: memory is the likely cause"


def killed(record: Record, *, is_running: bool) -> Killed | None:
    """What became of the last attempt before the one that is running; None when the record has its end."""
    attempts = record.attempts[:-1] if is_running else record.attempts
    if not attempts or attempts[-1].end is not None:
        return None
    entry = newest_checkpoint(record)
    since = entry.attempt if entry else 1
    found = [*itertools.takewhile(lambda one: one.end is None and one.number >= since, reversed(attempts))]
    last = attempts[-1]
    stage = next(reversed(last.seconds), "start")
    return Killed(last, max(1, len(found)), stage, last.reached.get(stage))


def newest_checkpoint(record: Record) -> CheckpointEntry | None:
    """The checkpoint that a restart begins with, unless it is damaged."""
    return record.checkpoints[-1] if record.checkpoints else None


def phase_progress(record: Record, *, is_running: bool = False) -> list[PhaseProgress]:
    """The phases that train, in order, with their committed steps; of a running attempt, with the steps it has done.

    The latter are as of the last write of the record, which a running attempt renews several times in a lease.
    """
    reached: Mapping[Any, int] = record.attempts[-1].reached if is_running else {}
    entry = newest_checkpoint(record)
    found: list[PhaseProgress] = []
    is_ahead = entry is None
    for phase in record.phases():
        name, num_epochs, num_steps = phase.name, phase.epochs, record.num_steps(phase.name)
        history = schedule.history_of(phase, record.history)
        if history and schedule.is_over(phase, history):
            # Perhaps before its last epoch.
            num_epochs, num_steps = len(history), history[-1].step
        step = 0 if is_ahead else num_steps or 0
        if entry is not None and entry.phase == name:
            step, is_ahead = entry.step, True
        step = max(step, reached.get(name, 0))
        found.append(PhaseProgress(name, phase.relative_cost, step, num_steps, len(history), num_epochs))
    return found


def seconds_left(record: Record, progress: list[PhaseProgress]) -> float | None:
    """About how long the rest takes, from the epochs so far; None before the first one is done."""
    if record.state == "done":
        return 0.0
    if not record.history or not record.inputs:
        return None
    # An epoch of which an attempt did one step alone has no speed: that step was compiled.
    measured = [epoch for epoch in record.history if epoch.images_per_second > 1e-6]
    batch_size, splits = recorded_setting(record.settings, "BATCH_SIZE"), record.inputs["data"]["splits"]
    return estimate.seconds_left(
        progress,
        {epoch.phase: batch_size / epoch.images_per_second for epoch in measured},
        validation_seconds=record.history[-1].validation_seconds,
        num_validation=splits["validation"],
        num_test=splits["test"],
    )


def last_change(record: Record) -> datetime:
    """The newest time in the record: of a start, an end, or a commit."""
    moments = [moment for attempt in record.attempts for moment in (attempt.start, attempt.end) if moment is not None]
    return max(moments + [entry.time for entry in record.checkpoints])


def differing_settings(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The settings that are not the same in all of these runs, as recorded, by name: the value in each, in order.

    A setting that a record does not have, because it is older, counts as its default.
    """
    names = dict.fromkeys([*Settings.result_defaults(), *(name for settings in runs for name in settings)])
    values = {name: [recorded_setting(settings, name) for settings in runs] for name in names}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}
