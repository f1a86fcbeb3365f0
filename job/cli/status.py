"""`python -m job status`: how a run is doing, once or until it is done."""

import dataclasses
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from job.cli.arguments import Status
from job.cli.runs import recorded
from job.cli.tables import COLORS, Paper, duration, plain, print_json, size
from job.errors import ExitCode, InvalidSettings
from job.observe import estimate
from job.observe.estimate import PhaseProgress
from job.run import holder, lease, standing
from job.run.standing import Condition
from job.schema import Attempt, Record
from job.storage import ObjectStore, open_store

WATCH_EVERY_SECONDS = 2.0
BAR_WIDTH = 40


@dataclass(frozen=True)
class Seen:
    """A record as it was read, and what only the store and this moment tell: the lease, the time.

    `held_seconds` is an estimate by the clock of the holder's host unless `is_known`.
    """

    record: Record
    at: str
    held_seconds: float
    is_known: bool
    now: datetime

    @property
    def condition(self) -> Condition:
        return standing.condition(self.record, held_seconds=self.held_seconds)

    @property
    def phases(self) -> list[PhaseProgress]:
        return standing.phases(self.record, is_running=self.condition == "running")

    @property
    def seconds_left(self) -> float | None:
        return standing.seconds_left(self.record, self.phases)


def status(question: Status) -> ExitCode:
    """Show the run. Raises RunUnavailable when there is none, RecordDamaged, StorageError."""
    store = open_store(question.run)
    if question.watch:
        if not sys.stdout.isatty():
            raise InvalidSettings(
                "status: --watch draws on a terminal, and standard output is none", hint="use --json, again and again"
            )
        _watch(store)
    elif question.as_json:
        print_json(as_json(look(store)), indent=1)
    else:
        Paper().print(as_table(look(store)))
    return ExitCode.COMPLETE


def look(store: ObjectStore) -> Seen:
    """Read the record of a run."""
    found = recorded(store)
    hold, now = lease.look(found, store, holder.this_process(None)), datetime.now(UTC)
    return Seen(found, store.uri, lease.estimated_seconds(found, hold, now), hold.is_known, now)


def _watch(store: ObjectStore) -> None:
    with Live(console=Paper(), auto_refresh=False) as live:
        while True:
            seen = look(store)
            live.update(as_table(seen), refresh=True)
            if seen.condition == "done":
                return
            time.sleep(WATCH_EVERY_SECONDS)


def as_json(seen: Seen) -> dict[str, Any]:
    """All that is known, as JSON values; times are ISO 8601, quantities seconds, bytes and ratios."""
    found, entry = seen.record, standing.newest_checkpoint(seen.record)
    return {
        "run_id": found.run_id,
        "at": seen.at,
        "fingerprint": found.fingerprint,
        "condition": seen.condition,
        "state": found.state,
        "phases": [dataclasses.asdict(phase) for phase in seen.phases],
        "progress_ratio": estimate.ratio(seen.phases),
        "seconds_left": seen.seconds_left,
        "held_by": str(found.lease.holder) if found.lease and seen.held_seconds > 0 else None,
        "held_seconds": seen.held_seconds,
        "held_is_known": seen.is_known,
        "attempts": [attempt.model_dump(mode="json") for attempt in found.attempts],
        "last_commit": entry.model_dump(mode="json") | {"age_seconds": _age(seen, entry.time)} if entry else None,
        "last_epoch": found.history[-1].model_dump(mode="json") if found.history else None,
        "outcome": found.outcome.model_dump(mode="json") if found.outcome else None,
    }


def as_table(seen: Seen) -> Group:
    """The same for a person."""
    found, entry = seen.record, standing.newest_checkpoint(seen.record)
    table = Table.grid(padding=(0, 2))
    table.add_row("run", plain(found.run_id, "bold"))
    table.add_row("at", plain(seen.at))
    table.add_row("state", plain(summary(found, seen.condition), COLORS[seen.condition]))
    if seen.held_seconds > 0 and found.lease is not None:
        table.add_row("held by", plain(f"{found.lease.holder}; its lease lives {duration(seen.held_seconds)} more"))
    if not seen.is_known:
        table.add_row("", "whether it lives is told by the clock of its host: only a start, which watches it, knows")
    done = estimate.ratio(seen.phases)
    if done is not None:
        table.add_row("progress", ProgressBar(total=1.0, completed=done, width=BAR_WIDTH))
    for phase in seen.phases:
        steps = f"step {phase.step}" + (f" of {phase.num_steps}" if phase.num_steps is not None else "")
        table.add_row(phase.name, f"{steps}, {phase.num_epochs_done} of {phase.num_epochs} epochs done")
    if seen.condition != "done":
        left = seen.seconds_left
        table.add_row("time left", "not known before an epoch is done" if left is None else f"about {duration(left)}")
    if entry is not None:
        table.add_row(
            "last commit",
            f"{entry.phase} step {entry.step}, {size(entry.size)}, {duration(_age(seen, entry.time))} ago",
        )
    if found.history:
        epoch = found.history[-1]
        table.add_row(
            "last epoch",
            f"{epoch.phase} {epoch.epoch + 1}: validation accuracy {epoch.validation_accuracy:.4f}, "
            f"loss {epoch.validation_loss:.4f}, {epoch.images_per_second:.1f} images/s",
        )
    if found.outcome is not None:
        low, high = found.outcome.test_accuracy_interval
        accuracy, loss = found.outcome.test_accuracy, found.outcome.test_loss
        table.add_row("outcome", f"test accuracy {accuracy:.4f} ({low:.4f} to {high:.4f}), loss {loss:.4f}")
    return Group(table, _attempts(seen))


def summary(found: Record, condition: Condition) -> str:
    """Condition and state in a few words."""
    if condition == "done":
        return "done"
    newest = found.attempts[-1] if found.attempts else None
    code = f" with exit code {newest.exit_code}" if newest and newest.exit_code is not None else ""
    way_out = "" if condition == "running" else "; the same start carries it on" if condition != "failed" else ""
    return f"{condition} in {found.state}{code}{way_out}"


def _attempts(seen: Seen) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("attempt", "started", "lasted", "ended", "holder"):
        table.add_column(name)
    for attempt in seen.record.attempts:
        is_newest = attempt is seen.record.attempts[-1]
        end = attempt.end or (seen.now if is_newest and seen.condition == "running" else None)
        table.add_row(
            str(attempt.number),
            f"{attempt.start:%F %T}",
            duration((end - attempt.start).total_seconds()) if end else "?",
            _end_of(attempt, is_running=is_newest and seen.condition == "running"),
            plain(attempt.holder),
        )
    return table


def _end_of(attempt: Attempt, *, is_running: bool) -> str:
    if is_running:
        return "runs"
    return "killed" if attempt.end is None else f"exit code {attempt.exit_code}"


def _age(seen: Seen, moment: datetime) -> float:
    return max(0.0, (seen.now - moment).total_seconds())
