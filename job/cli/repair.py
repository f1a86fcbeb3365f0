"""`thaw repair`: the record of a run, rebuilt from its checkpoints.

The order, and why nothing is lost wherever the command ends:

1. Look. Every checkpoint is read and verified, with the description of its run. Without `--yes` the command ends here.
2. Keep. A damaged run.json is copied under a name of its own, and the copy is read back.
3. Swap. The rebuilt record is written on the condition that run.json is still what was looked at.

No checkpoint is changed or deleted. One that cannot be used is set aside; one of another record is left alone.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table

from job.cli.arguments import AsJson, CacheDir, CommandOptions, Flag, RunPlace
from job.cli.asked import open_asked
from job.cli.tables import plain, show
from job.errors import (
    ExitCode,
    ObjectDamaged,
    ObjectMissing,
    PreconditionFailed,
    RecordDamaged,
    StorageError,
    Superseded,
)
from job.run import record
from job.run.checkpoint import Inspected, inspect
from job.run.description import CheckpointName, Description
from job.run.record import RECORD_NAME
from job.schema import CHECKPOINTS, Attempt, CheckpointEntry, Record, recorded_phases
from job.storage import MISSING, Digest, ObjectStore, StoredObject, scratch

HOLDER = "repaired"
"""Of the attempts of a rebuilt record: that they were there is all that is known of them."""
MAX_ATTEMPTS = 100_000


@dataclass(frozen=True)
class Rebuilt:
    """The record that the checkpoints give, and why some of them are not used, by name."""

    content: Record
    set_aside: dict[str, str]
    left_alone: dict[str, str]


class Options(CommandOptions):
    """Every checkpoint is read and verified, and what would be done is shown; with --yes it is done. A damaged
    run.json is kept under another name, and no checkpoint is changed or deleted. Nothing is lost by a kill.
    """

    run: RunPlace
    is_confirmed: Annotated[bool, Flag("do it", name="--yes")] = False
    fingerprint: Annotated[str, Flag("which settings, where checkpoints of several are there", metavar="HEX")] = ""
    cache_dir: CacheDir = None
    as_json: AsJson = False


def answer(options: Options) -> ExitCode:
    """Show what is rebuilt, and do it once that is confirmed. Raises RunUnavailable, RecordDamaged, StorageError."""
    store = open_asked(options.run)
    try:
        record.existing_record(store)
        shown: dict[str, Any] = {"at": store.uri, "action": "nothing: the record can be read"}
    except RecordDamaged as damage:
        with scratch.folder(options.cache_dir) as folder:
            shown = mend(
                store, damage, fingerprint=options.fingerprint, is_confirmed=options.is_confirmed, scratch=folder
            )
    show(shown, _as_table(shown), as_json=options.as_json)
    return ExitCode.COMPLETE


def mend(
    store: ObjectStore, damage: RecordDamaged, *, fingerprint: str, is_confirmed: bool, scratch: Path
) -> dict[str, Any]:
    """Look, keep and swap; returns what is shown. Raises RecordDamaged when the checkpoints give no record."""
    try:
        damaged = store.read(RECORD_NAME)
    except ObjectMissing:
        damaged = StoredObject(b"", MISSING)
    except ObjectDamaged as error:
        # Only what is the same each time is so in the store.
        if error.stored is None or not damage.message.startswith(error.message):
            raise
        damaged = StoredObject(*error.stored)
    data, version = damaged.data, damaged.version
    with contextlib.suppress(RecordDamaged):
        record.parsed(data, store.uri, run_id=record.run_id_of(store.uri))
        raise _written_meanwhile(store)
    found = [inspect(store, name, folder=scratch) for name in store.list(CHECKPOINTS)]
    rebuilt = rebuild(found, store.uri, fingerprint=fingerprint)
    copy = f"{RECORD_NAME}.damaged-{hashlib.sha256(data).hexdigest()[:12]}" if version != MISSING else None
    if is_confirmed:
        if copy is not None:
            _keep(store, copy, data)
        try:
            store.write(RECORD_NAME, record.encoded(rebuilt.content), if_version=version)
        except PreconditionFailed as error:
            raise _written_meanwhile(store) from error
    content, newest = rebuilt.content, rebuilt.content.checkpoints[-1]
    return {
        "at": store.uri,
        "problem": damage.message,
        "action": "done: start the run again to carry it on" if is_confirmed else "none yet: add --yes to do this",
        "run_id": content.run_id,
        "fingerprint": content.fingerprint,
        "phase": newest.phase,
        "step": newest.step,
        "num_epochs": len(content.history),
        "num_attempts": len(content.attempts),
        "checkpoints": [entry.name for entry in content.checkpoints],
        "set_aside": rebuilt.set_aside,
        "left_alone": rebuilt.left_alone,
        "damaged_record_kept_as": copy,
    }


def _written_meanwhile(store: ObjectStore) -> Superseded:
    return Superseded(
        f"{store.uri}/{RECORD_NAME} was written by another process meanwhile, and was left as it is",
        hint=f"thaw status --run {store.uri}",
    )


def _keep(store: ObjectStore, name: str, data: bytes) -> None:
    # An earlier repair, which was ended before it could swap the record, may have kept it.
    with contextlib.suppress(PreconditionFailed):
        store.write(name, data, if_version=MISSING)
    if store.read(name).data != data:
        raise StorageError(f"{store.uri}/{name} is there, and not a copy of {RECORD_NAME}; nothing was changed")


def rebuild(found: Sequence[Inspected], place: str, *, fingerprint: str) -> Rebuilt:
    """The record that checkpoints give; the newest decides what the run is. Raises RecordDamaged when they give none.

    `fingerprint` chooses among several; with the empty string there must be one.
    """
    newest = _newest(found, place, fingerprint)
    names = {one.name: parts for one in found if (parts := CheckpointName.parse(one.name)) is not None}
    problems = {one.name: problem for one in found if (problem := _problem(one, newest))}
    phases = _phases(newest)
    good = sorted((one for one in found if one.name not in problems), key=lambda one: names[one.name].position(phases))
    lineages = {names[one.name].lineage for one in good}
    # A run deletes what its lineages wrote and its record does not name: so what is not used is named as set aside.
    aside = [one for one in found if one.name in problems and one.name in names and names[one.name].lineage in lineages]
    num_attempts = max(names[one.name].attempt for one in (*good, *aside))
    try:
        if num_attempts > MAX_ATTEMPTS:
            raise ValueError(f"attempt {num_attempts} is named, expected at most {MAX_ATTEMPTS}")
        content = record.new_record(
            record.Identity(run_id=newest.run_id, fingerprint=newest.fingerprint, settings=newest.settings),
            earlier_lineages=tuple(sorted(lineages)),
            state=newest.phase,
            attempts=tuple(
                Attempt(number=number, holder=HOLDER, start=newest.time) for number in range(1, num_attempts + 1)
            ),
            inputs=newest.inputs,
            checkpoints=tuple(one.entry for one in good if one.entry is not None),
            history=newest.history,
            set_aside=tuple(_entry(one, names[one.name], newest) for one in aside),
        )
    except ValueError as error:
        raise RecordDamaged(
            f"the checkpoints of {place} give no valid record: {str(error)[:300]!r}. Nothing was changed",
            hint=f"move the checkpoint that this names out of {CHECKPOINTS}, and try again",
        ) from error
    set_aside = {one.name: problems.pop(one.name) for one in aside}
    return Rebuilt(content, set_aside=set_aside, left_alone=problems)


def _newest(found: Sequence[Inspected], place: str, fingerprint: str) -> Description:
    """The description of the newest checkpoint that can be used, of the run that this place is named by."""
    run_id = record.run_id_of(place)
    described = [(one, one.description) for one in found if one.description is not None]
    groups: dict[str, list[tuple[CheckpointName, Description]]] = {}
    for one, description in described:
        name = CheckpointName.parse(one.name)
        if run_id in ("", description.run_id) and name is not None:
            groups.setdefault(description.fingerprint, []).append((name, description))
    if not groups:
        reasons = [f"{one.name}: {one.problem}" for one in found if one.problem][:3]
        if described:
            others = ", ".join(sorted({repr(description.run_id) for _, description in described}))
            reasons.append(f"they are of run {others}, and this place is of {run_id!r}")
        raise RecordDamaged(
            f"none of the {len(found)} checkpoints of {place} can be used: {'; '.join(reasons)}. Nothing was changed",
            hint="restore run.json from a copy; give the folder the name of its run back if it was renamed; or begin "
            "again under another THAW_RUN_ID",
        )
    chosen = fingerprint or next(iter(groups))
    if chosen not in groups or (len(groups) > 1 and not fingerprint):
        counts = ", ".join(f"{key} ({len(group)} checkpoints)" for key, group in groups.items())
        raise RecordDamaged(
            f"the checkpoints of {place} are of these fingerprints: {counts}. Nothing was changed",
            hint=f"choose one: thaw repair --run {place} --fingerprint {next(iter(groups))}",
        )
    return max(groups[chosen], key=lambda one: one[0].position(_phases(one[1])))[1]


def _phases(description: Description) -> list[str]:
    return [phase.name for phase in recorded_phases(description.settings)]


def _problem(one: Inspected, newest: Description) -> str:
    """Why a checkpoint is not one of the record that the newest gives; empty for one that is."""
    description = one.description
    if description is None:
        return one.problem
    for field in ("run_id", "fingerprint", "settings", "inputs"):
        if getattr(description, field) != getattr(newest, field):
            return f"is of another run than the newest: {field} differ"
    if len(description.history) > len(newest.history):
        return "has more epochs behind it than the newest"
    return ""


def _entry(one: Inspected, parts: CheckpointName, newest: Description) -> CheckpointEntry:
    """The record's entry of a checkpoint that is set aside: its name, and the digest of what is there."""
    digest = one.digest or Digest(0, hashlib.sha256().hexdigest())
    return CheckpointEntry(
        name=one.name, phase=parts.phase, step=parts.step, num_epochs=0, size=digest.size, sha256=digest.sha256,
        attempt=parts.attempt, time=newest.time,
    )  # fmt: skip


def _as_table(shown: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in shown.items():
        values = [f"{key}: {why}" for key, why in value.items()] if isinstance(value, dict) else value
        for index, line in enumerate(values if isinstance(values, list) else [values]):
            table.add_row(name.replace("_", " ") if index == 0 else "", plain("none" if line is None else str(line)))
    return table
