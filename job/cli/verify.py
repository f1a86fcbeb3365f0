"""`thaw verify`: whether every object of a run is there, and is byte for byte what the record names.

Objects are read one after the other into the folder for temporary files, so memory and disk hold one at a time.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Group

from job.cli.arguments import AsJson, CacheDir, CommandOptions, RunPlace
from job.cli.asked import open_asked
from job.cli.tables import plain, show, table
from job.errors import ExitCode, ObjectDamaged, ObjectMissing
from job.run.artefacts import CURVES, PREFIXES, problem_with
from job.run.record import RECORD_NAME, existing_record
from job.schema import CheckpointEntry, Record, StoredFile
from job.storage import ObjectStore, scratch
from job.wording import size

Condition = Literal["ok", "missing", "damaged", "not named", "set aside", "under way", "left over"]
"""`not named` lies beside the files of the run and is not in the record;
`under way` is what it will name at the end of the run; `left over` lies elsewhere, without harm.
"""

FAULTS: frozenset[Condition] = frozenset({"missing", "damaged", "not named"})


class Found(NamedTuple):
    """An object of the run, and what was found of it; `num_bytes` is its size as recorded, if it is."""

    name: str
    condition: Condition
    num_bytes: int | None = None
    text: str = ""


class Options(CommandOptions):
    """The exit code is 4 when an object is missing or damaged, or lies beside model, report and logs and is not in the
    record. Checkpoints that were set aside, or that the record does not name any more, are only shown.
    """

    run: RunPlace
    cache_dir: CacheDir = None
    as_json: AsJson = False


def answer(options: Options) -> ExitCode:
    """Show what was found; BAD_INPUT when something is missing, damaged, or beside the files and not named.

    Raises RunUnavailable, RecordDamaged, StorageError.
    """
    store = open_asked(options.run)
    record = existing_record(store)
    with scratch.folder(options.cache_dir) as folder:
        found = sorted(look(store, record, folder / "object"))
    exit_code = ExitCode.BAD_INPUT if any(each.condition in FAULTS for each in found) else ExitCode.COMPLETE
    show(_as_json(store.uri, record, found, exit_code), _as_table(store.uri, record, found), as_json=options.as_json)
    return exit_code


def look(store: ObjectStore, record: Record, path: Path) -> Iterator[Found]:
    """What is found of each object that the record names, and of each that is there besides.

    `path` is a temporary file. An attempt that goes on may prune what the record named a moment ago.
    """
    there = set(store.list(""))
    named = _named(record)
    for name, expected in named.items():
        problem = problem_with(store, name, expected, path)
        if problem is None:
            yield Found(name, "ok", expected.size)
        elif name in _named(existing_record(store)):
            yield Found(name, problem.condition, expected.size, problem.text)
    aside = {entry.name for entry in record.set_aside}
    images = record.inputs.get("images")
    if images is not None:
        yield _of_images(store, images)
    for name in there - named.keys() - {RECORD_NAME, images}:
        if name in aside:
            yield Found(name, "set aside", text="damaged when it was last read, and kept")
        elif name.startswith(PREFIXES) and record.state == "done":
            yield Found(name, "not named", text="the record of the finished run does not name it")
        elif name.startswith(CURVES):
            yield Found(name, "under way", text="written after each epoch; the record names it at the end")
        elif name not in _named(existing_record(store)):
            yield Found(name, "left over", text="the record does not name it; nothing reads it")


def _of_images(store: ObjectStore, name: str) -> Found:
    """The table of the run's own images, which has the digest of its content in its name."""
    try:
        content = store.read(name).data
    except ObjectMissing as error:
        return Found(name, "missing", text=error.message)
    except ObjectDamaged as error:
        return Found(name, "damaged", text=error.message)
    if hashlib.sha256(content).hexdigest()[:12] in name:
        return Found(name, "ok", len(content))
    return Found(name, "damaged", len(content), f"{store.uri}/{name} is not what the run wrote")


def _named(record: Record) -> dict[str, CheckpointEntry | StoredFile]:
    return {entry.name: entry for entry in record.checkpoints} | dict(record.files)


def _summary(found: list[Found]) -> str:
    counts = {condition: sum(each.condition == condition for each in found) for condition in ("ok", *sorted(FAULTS))}
    return ", ".join(f"{count} {condition}" for condition, count in counts.items() if count or condition == "ok")


def _as_json(at: str, record: Record, found: list[Found], exit_code: ExitCode) -> dict[str, Any]:
    return {
        "run_id": record.run_id,
        "at": at,
        "state": record.state,
        "summary": _summary(found),
        "objects": [each._asdict() for each in found],
        "exit_code": int(exit_code),
    }


def _as_table(at: str, record: Record, found: list[Found]) -> Group:
    rows = table("object", "size", "found", "", right=("size",))
    for each in found:
        shown = "" if each.num_bytes is None else size(each.num_bytes)
        style = "red" if each.condition in FAULTS else ""
        rows.add_row(plain(each.name), shown, plain(each.condition, style), plain(each.text))
    goes_on = "" if record.state == "done" else f"; the run is in {record.state}, and was looked at as it is now"
    return Group(rows, "", plain(f"{at}: {_summary(found)}{goes_on}"))
