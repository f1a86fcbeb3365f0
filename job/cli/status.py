"""`thaw status`: how a run is doing, once or until it is done.

While the record of a watched run does not change, a look is one small request: for its version.
"""

import dataclasses
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

from pydantic import model_validator
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from job.cli.arguments import AsJson, CommandOptions, Flag, RunPlace
from job.cli.asked import open_asked
from job.cli.tables import COLORS, TableConsole, plain, show, table
from job.errors import ExitCode, InvalidSettings
from job.observe import estimate
from job.observe.estimate import PhaseProgress
from job.run import lease, standing
from job.run.lease import Hold
from job.run.record import RECORD_NAME, existing_record
from job.run.standing import Condition
from job.schema import Record
from job.storage import MISSING, ObjectStore
from job.wording import duration, size

WATCH_EVERY_SECONDS = 2.0
BAR_WIDTH = 40


class Options(CommandOptions):
    """State, progress, attempts, and time left."""

    run: RunPlace
    watch: Annotated[bool, Flag("stay, and show what changes until the run is done")] = False
    as_json: AsJson = False

    @model_validator(mode="after")
    def _one_of_two(self) -> "Options":
        if self.watch and self.as_json:
            raise ValueError("--watch: not allowed with --json")
        return self


@dataclass(frozen=True)
class Seen:
    """A record as it was read, how long its lease still lives, and what follows at the time `now`."""

    record: Record
    at: str
    hold: Hold
    now: datetime
    condition: Condition
    phases: list[PhaseProgress]
    seconds_left: float | None


def answer(options: Options) -> ExitCode:
    """Show the run. Raises RunUnavailable when there is none, RecordDamaged, StorageError."""
    store = open_asked(options.run)
    if options.watch:
        if not sys.stdout.isatty():
            raise InvalidSettings(
                "status: --watch draws on a terminal, and standard output is none", hint="use --json, again and again"
            )
        _watch(store)
    else:
        seen = look(store)
        show(as_json(seen), as_table(seen), as_json=options.as_json)
    return ExitCode.COMPLETE


def look(store: ObjectStore) -> Seen:
    """Read the record of a run."""
    return _seen(existing_record(store), store, partial(store.age_seconds, RECORD_NAME))


class Watch:
    """Looks at a run again and again; the record is read when its version has changed."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._version = MISSING
        self._record: Record | None = None
        self._age_seconds: float | None = None
        self._looked_at = 0.0

    def look(self) -> Seen:
        version = self._store.version(RECORD_NAME)
        if self._record is None or version != self._version:
            # The version comes first: a record that is written between the two requests is read once more.
            self._record, self._version = existing_record(self._store), version
            held = self._record.lease is not None
            self._age_seconds = self._store.age_seconds(RECORD_NAME) if held else None
            self._looked_at = time.monotonic()
        return _seen(self._record, self._store, self._age)

    def _age(self) -> float | None:
        """A record that has not changed is older by the time since it was read."""
        return None if self._age_seconds is None else self._age_seconds + time.monotonic() - self._looked_at


def _seen(found: Record, store: ObjectStore, age: lease.Age) -> Seen:
    now = datetime.now(UTC)
    hold = lease.estimated(found, age, now=now)
    condition = standing.condition(found, held_seconds=hold.seconds)
    phases = standing.phase_progress(found, is_running=condition == "running")
    return Seen(found, store.uri, hold, now, condition, phases, standing.seconds_left(found, phases))


def _watch(store: ObjectStore) -> None:
    watch = Watch(store)
    with Live(console=TableConsole(), auto_refresh=False) as live:
        while True:
            seen = watch.look()
            live.update(as_table(seen), refresh=True)
            if seen.condition == "done":
                return
            time.sleep(WATCH_EVERY_SECONDS)


def as_json(seen: Seen) -> dict[str, Any]:
    """All that is known, as JSON values; times are ISO 8601, quantities seconds, bytes and ratios."""
    found, entry = seen.record, standing.newest_checkpoint(seen.record)
    killed = _killed(seen)
    return {
        "run_id": found.run_id,
        "at": seen.at,
        "fingerprint": found.fingerprint,
        "condition": seen.condition,
        "state": found.state,
        "phases": [dataclasses.asdict(phase) for phase in seen.phases],
        "progress_ratio": estimate.ratio(seen.phases),
        "seconds_left": seen.seconds_left,
        "held_by": str(found.lease.holder) if found.lease and seen.hold.seconds > 0 else None,
        "held_seconds": seen.hold.seconds,
        "held_is_known": seen.hold.is_known,
        "killed_in_a_row": killed.in_a_row if killed else 0,
        "attempts": [attempt.model_dump(mode="json") for attempt in found.attempts],
        "last_commit": entry.model_dump(mode="json") | {"age_seconds": _age(seen, entry.time)} if entry else None,
        "last_epoch": found.history[-1].model_dump(mode="json") if found.history else None,
        "outcome": found.outcome.model_dump(mode="json") if found.outcome else None,
    }


def as_table(seen: Seen) -> Group:
    """What was seen of a run, for a person."""
    found, entry = seen.record, standing.newest_checkpoint(seen.record)
    rows = Table.grid(padding=(0, 2))
    rows.add_row("run", plain(found.run_id, "bold"))
    rows.add_row("at", plain(seen.at))
    rows.add_row("state", plain(summary(found, seen.condition), COLORS[seen.condition]))
    if seen.hold.seconds > 0 and found.lease is not None:
        rows.add_row("held by", plain(f"{found.lease.holder}; its lease lives {duration(seen.hold.seconds)} more"))
    if not seen.hold.is_known:
        rows.add_row("", "an estimate by the clock of its host: only a start, which watches the lease, knows")
    killed = _killed(seen)
    if killed is not None and killed.in_a_row > 1:
        rows.add_row("killed", plain(f"{killed}; the next start says what to do", COLORS["killed"]))
    done = estimate.ratio(seen.phases)
    if done is not None:
        rows.add_row("progress", ProgressBar(total=1.0, completed=done, width=BAR_WIDTH))
    for phase in seen.phases:
        steps = f"step {phase.step}" + (f" of {phase.num_steps}" if phase.num_steps is not None else "")
        rows.add_row(phase.name, f"{steps}, {phase.num_epochs_done} of {phase.num_epochs} epochs done")
    if seen.condition != "done":
        left = seen.seconds_left
        rows.add_row("time left", "not known before an epoch is done" if left is None else f"about {duration(left)}")
    if entry is not None:
        commit = f"{entry.phase} step {entry.step}, {size(entry.size)}, {duration(_age(seen, entry.time))} ago"
        rows.add_row("last commit", commit)
    if found.history:
        epoch = found.history[-1]
        accuracy, loss = f"{epoch.validation_accuracy:.4f}", f"{epoch.validation_loss:.4f}"
        # A short epoch may have only the step that was compiled, whose speed means nothing.
        speed = f", {epoch.images_per_second:.1f} images/s" if epoch.images_per_second else ""
        position = f"{epoch.phase} {epoch.epoch + 1}"
        rows.add_row("last epoch", f"{position}: validation accuracy {accuracy}, loss {loss}{speed}")
    if found.outcome is not None:
        low, high = found.outcome.test_accuracy_interval
        accuracy, loss = f"{found.outcome.test_accuracy:.4f}", f"{found.outcome.test_loss:.4f}"
        rows.add_row("outcome", f"test accuracy {accuracy} ({low:.4f} to {high:.4f}), loss {loss}")
    return Group(rows, _attempts(seen))


def summary(found: Record, condition: Condition) -> str:
    """Condition and state in a few words."""
    if condition == "done":
        return "done"
    exit_code = found.attempts[-1].exit_code
    code = "" if exit_code is None else f" with exit code {exit_code}"
    hint = "; the same start carries it on" if condition in ("stopped", "killed") else ""
    return f"{condition} in {found.state}{code}{hint}"


def _killed(seen: Seen) -> standing.Killed | None:
    if seen.condition == "done":
        return None
    return standing.killed(seen.record, is_running=seen.condition == "running")


def _attempts(seen: Seen) -> Table:
    rows = table("attempt", "started", "lasted", "ended", "workers", "holder")
    for attempt in seen.record.attempts:
        end, ended = attempt.end, "killed" if attempt.end is None else f"exit code {attempt.exit_code}"
        if attempt is seen.record.attempts[-1] and seen.condition == "running":
            end, ended = end or seen.now, "runs"
        lasted = duration((end - attempt.start).total_seconds()) if end else "?"
        number, workers = str(attempt.number), f"{attempt.num_workers:,}"
        rows.add_row(number, f"{attempt.start:%F %T}", lasted, ended, workers, plain(attempt.holder))
    return rows


def _age(seen: Seen, moment: datetime) -> float:
    return max(0.0, (seen.now - moment).total_seconds())
