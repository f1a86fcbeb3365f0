"""`thaw list`: the runs of a store, one row each.

Only names of folders are listed, and one object a run is read, several at a time: what a run holds does not matter. In
a bucket that is one request a run, and a second one while it is held.
"""

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from rich.table import Table

from job.cli import page_file
from job.cli.arguments import AsJson, CommandOptions, Flag, Place
from job.cli.asked import open_asked
from job.cli.tables import COLORS, TableConsole, digits, plain, print_json, setting_text, table
from job.errors import ExitCode, ObjectMissing, RecordDamaged, RunUnavailable, StorageError
from job.observe import ledger
from job.report.files import PAGE
from job.run import lease, record, standing
from job.run.record import RECORD_NAME
from job.schema import Record, recorded_setting
from job.settings.fields import LocalPath
from job.storage import MISSING, LocalStore, ObjectStore
from job.storage.uri import PLACES
from job.wording import duration

NUM_THREADS = 32
"""With answers that take 30 ms, they ask for as many records as one process can parse."""

Row = dict[str, Any]


class Options(CommandOptions):
    """The newest comes first. `--differing` shows what the runs of a sweep differ in."""

    storage_uri: Annotated[
        Place,
        Flag(
            f"{PLACES} [default: THAW_STORAGE_URI]", metavar="STORAGE-URI", is_word=True,
            default_of=lambda settings: settings.storage_uri,
        ),
    ]  # fmt: skip
    sort: Annotated[
        Literal["age", "accuracy", "name"],
        Flag("the newest first, the most accurate first, or by name [default: age]", metavar="age|accuracy|name"),
    ] = "age"
    limit: Annotated[
        Annotated[int, Field(ge=1)] | None,
        Flag("at most so many, the first in that order [default: all, and 1,000 in a page]", metavar="N"),
    ] = None
    differing: Annotated[bool, Flag("also show the settings that are not the same in all runs of the answer")] = False
    page: Annotated[LocalPath | None, Flag("also write a page with the accuracy over time", metavar="FILE")] = None
    as_json: AsJson = False


def answer(options: Options) -> ExitCode:
    """Show the runs; one whose record is damaged or cannot be read is a row that says so.

    Raises RunUnavailable when the place is a run itself, and StorageError when the names of the runs cannot be read.
    """
    page_file.check(options.page)
    store, now = open_asked(options.storage_uri), datetime.now(UTC)
    try:
        found = sorted(find(store, now=now), key=ORDERS[options.sort])
        nothing = f"There is no run in {store.uri}."
    except ObjectMissing:
        found, nothing = [], f"There is no run in {store.uri}: there is no such folder yet."
    if not found and store.version(RECORD_NAME) != MISSING:
        raise RunUnavailable(f"{store.uri} is a run itself", hint=f"thaw status --run {store.uri}")
    if options.page is not None:
        _write_page(options.page, store, found, options.limit, now)
    rows = found[: options.limit]
    names = _differing(rows) if options.differing else []
    for row in rows:
        settings = row.pop("settings", None)
        if options.differing and settings is not None:
            row["settings"] = {name: recorded_setting(settings, name) for name in names}
    if options.as_json:
        for row in rows:
            print_json(row)
    elif rows:
        TableConsole().print(as_table(rows, names))
        if len(rows) < len(found):
            TableConsole().print(plain(f"... and {len(found) - len(rows):,} more: --limit"))
    else:
        TableConsole().print(plain(nothing))
    return ExitCode.COMPLETE


def _write_page(path: Path, store: ObjectStore, found: list[Row], limit: int | None, now: datetime) -> None:
    # Imported here: Jinja and Matplotlib are not needed for the table.
    from job.report import runs_page

    rows = found[: limit or runs_page.MAX_RUNS]
    page = runs_page.page(
        rows, _differing(rows), place=store.uri, num_found=len(found), now=now,
        way=os.path.relpath(store.root, path.parent) if isinstance(store, LocalStore) else None,
    )  # fmt: skip
    page_file.write(path, page)


def _differing(rows: list[Row]) -> list[str]:
    return list(standing.differing_settings([row["settings"] for row in rows if "settings" in row]))


def find(store: ObjectStore, *, now: datetime) -> list[Row]:
    """A row for each folder that has a record, or checkpoints without one. Raises ObjectMissing without a store."""
    folders = store.folders()
    with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="list") as executor:
        rows = executor.map(lambda folder: _row(store, folder, now), folders)
        return [row for row in rows if row is not None]


def _row(store: ObjectStore, folder: str, now: datetime) -> Row | None:
    """What is shown of a folder; None when it is no run."""
    name = f"{folder}/{RECORD_NAME}"
    try:
        found = record.read(store, name)
        if found is None:
            return None
        hold = lease.estimated(found, partial(store.age_seconds, name), now=now)
    except (RecordDamaged, StorageError) as error:
        condition = "damaged" if isinstance(error, RecordDamaged) else "unreadable"
        return {"run_id": folder, "condition": condition, "problem": error.message}
    changed = standing.last_change(found)
    # Of ten thousand runs, only what distinguishes them is kept.
    settings = {name: value for name, value in found.settings.items() if value != recorded_setting({}, name)}
    return {
        "run_id": folder,
        "settings": settings,
        "condition": standing.condition(found, held_seconds=hold.seconds),
        "state": found.state,
        "test_accuracy": found.outcome.test_accuracy if found.outcome else None,
        "test_accuracy_interval": found.outcome.test_accuracy_interval if found.outcome else None,
        "test_balanced_accuracy": found.outcome.test_balanced_accuracy if found.outcome else None,
        "num_attempts": len(found.attempts),
        "time_seconds": sum(ledger.by_category([attempt.seconds for attempt in found.attempts]).values()),
        "images_per_second": _images_per_second(found),
        "report": PAGE if PAGE in found.files else None,
        "changed": changed.isoformat(),
        "age_seconds": (now - changed).total_seconds(),
    }


def _images_per_second(found: Record) -> float | None:
    """The median over the epochs of the last phase; None before the first epoch is done."""
    speeds = [epoch.images_per_second for epoch in found.history if epoch.phase == found.history[-1].phase]
    return statistics.median(speeds) if speeds else None


def _newest_first(row: Row) -> tuple[bool, float, str]:
    age = row.get("age_seconds")
    return age is None, age or 0.0, row["run_id"]


def _most_accurate_first(row: Row) -> tuple[bool, float, str]:
    accuracy = row.get("test_accuracy")
    return accuracy is None, -(accuracy or 0.0), row["run_id"]


ORDERS: Mapping[str, Callable[[Row], Any]] = {
    "age": _newest_first, "accuracy": _most_accurate_first, "name": lambda row: row["run_id"]
}  # fmt: skip


def as_table(rows: list[Row], names: Sequence[str] = ()) -> Table:
    """The rows for a person, with the settings of these names."""
    columns = ("run", "state", "test accuracy", "attempts", "last change")
    shown = table(*columns, *names, right=("test accuracy", "attempts"))
    for row in rows:
        is_over = row["condition"] in ("done", "damaged", "unreadable")
        state = row["condition"] if is_over else f"{row['condition']} in {row['state']}"
        if "problem" in row:
            state = f"{state}: {row['problem']}"
        age = row.get("age_seconds")
        shown.add_row(
            plain(row["run_id"]),
            plain(state, COLORS[row["condition"]]),
            digits(row.get("test_accuracy")),
            str(row.get("num_attempts", "")),
            "" if age is None else f"{duration(max(0.0, age))} ago",
            *(plain(setting_text(row["settings"][name])) if "settings" in row else "" for name in names),
        )
    return shown
