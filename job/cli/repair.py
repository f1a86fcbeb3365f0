"""`python -m job repair`: the record of a run, rebuilt from its checkpoints.

The order, and why nothing is lost wherever the command ends:

1. Look. Every checkpoint is read, verified, and asked what it is of. Without `--yes` the command ends here.
2. Keep. A damaged run.json is copied under a name of its own, and the copy is read back.
3. Swap. The rebuilt record is written on the condition that run.json is still what was looked at.

No checkpoint is changed or deleted. One that cannot be used is set aside or, where it is of another record, not named.
"""

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from job.cli.arguments import Repair
from job.cli.runs import recorded
from job.cli.tables import Paper, plain, print_json
from job.errors import ExitCode, ObjectMissing, PreconditionFailed, RecordDamaged, StorageError, Superseded
from job.run import record
from job.run.checkpoint import Inspected, inspect
from job.run.record import RECORD_NAME
from job.schema import CHECKPOINTS, Attempt, CheckpointEntry, CheckpointName, Description, Record
from job.storage import MISSING, ObjectStore, open_store, scratch

HOLDER = "repaired"
"""Of the attempts of a rebuilt record, of which nothing is known but that they were there."""
MAX_ATTEMPTS = 100_000
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True)
class Rebuilt:
    """The record that the checkpoints give, and why some of them are not used, by name."""

    content: Record
    set_aside: dict[str, str]
    left_alone: dict[str, str]


def repair(question: Repair) -> ExitCode:
    """Show what is rebuilt, and do it once that is confirmed. Raises RunUnavailable, RecordDamaged, StorageError."""
    store = open_store(question.run)
    try:
        recorded(store)
    except RecordDamaged as error:
        damage = error
    else:
        _show({"at": store.uri, "action": "nothing: the record can be read"}, question)
        return ExitCode.COMPLETE
    with scratch.folder(question.cache_dir) as folder:
        answer = mend(
            store, damage, fingerprint=question.fingerprint, is_confirmed=question.is_confirmed, scratch=folder
        )
    _show(answer, question)
    return ExitCode.COMPLETE


def mend(
    store: ObjectStore, damage: RecordDamaged, *, fingerprint: str, is_confirmed: bool, scratch: Path
) -> dict[str, Any]:
    """Look, keep and swap; returns what is shown. Raises RecordDamaged when the checkpoints give no record."""
    try:
        damaged = store.read(RECORD_NAME)
        data, generation = damaged.data, damaged.generation
    except ObjectMissing:
        data, generation = b"", MISSING
    if generation != MISSING and _is_record(data, store):
        raise _written_meanwhile(store)
    found = [inspect(store, name, scratch=scratch) for name in store.list(CHECKPOINTS)]
    rebuilt = rebuild(found, store.uri, fingerprint=fingerprint)
    copy = f"{RECORD_NAME}.damaged-{hashlib.sha256(data).hexdigest()[:12]}" if generation != MISSING else None
    if is_confirmed:
        if copy is not None:
            _keep(store, copy, data)
        try:
            store.write(RECORD_NAME, record.encoded(rebuilt.content), if_generation=generation)
        except PreconditionFailed as error:
            raise _written_meanwhile(store) from error
    return _answer(store.uri, damage, rebuilt, copy, is_confirmed=is_confirmed)


def _is_record(data: bytes, store: ObjectStore) -> bool:
    try:
        record.parsed(data, store.uri, run_id=record.run_id_of(store.uri))
    except RecordDamaged:
        return False
    return True


def _written_meanwhile(store: ObjectStore) -> Superseded:
    return Superseded(
        f"{store.uri}/{RECORD_NAME} was written by another process meanwhile, and was left as it is",
        hint=f"python -m job status --run {store.uri}",
    )


def _keep(store: ObjectStore, name: str, data: bytes) -> None:
    # An earlier repair, which was ended before it could swap the record, may have kept it.
    with contextlib.suppress(PreconditionFailed):
        store.write(name, data, if_generation=MISSING)
    if store.read(name).data != data:
        raise StorageError(f"{store.uri}/{name} is there, and not a copy of {RECORD_NAME}; nothing was changed")


def rebuild(found: Sequence[Inspected], place: str, *, fingerprint: str) -> Rebuilt:
    """The record that checkpoints give; the newest decides what the run is. Raises RecordDamaged when they give none.

    `fingerprint` chooses among several; with the empty string there must be one.
    """
    newest = _newest(found, place, fingerprint)
    problems = {one.name: problem for one in found if (problem := _problem(one, newest))}
    good = sorted((one for one in found if one.name not in problems), key=_position)
    names = {one.name: parts for one in found if (parts := CheckpointName.parse(one.name)) is not None}
    lineages = {names[one.name].lineage for one in good} - {""}
    # What this lineage wrote and the record does not name would be deleted: what is not used is named as set aside.
    set_aside = [
        one for one in found if one.name in problems and one.name in names and names[one.name].lineage in lineages
    ]
    num_attempts = max(names[one.name].attempt for one in (*good, *set_aside))
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
            checkpoints=tuple(one.entry() for one in good),
            history=newest.history,
            set_aside=tuple(_entry(one, names[one.name], newest) for one in set_aside),
        )
    except ValueError as error:
        raise RecordDamaged(
            f"the checkpoints of {place} give no valid record: {str(error)[:300]!r}. Nothing was changed",
            hint=f"move what this names out of {CHECKPOINTS}, and try again",
        ) from error
    aside = {entry.name for entry in content.set_aside}
    return Rebuilt(
        content,
        set_aside={name: problem for name, problem in problems.items() if name in aside},
        left_alone={name: problem for name, problem in problems.items() if name not in aside},
    )


def _newest(found: Sequence[Inspected], place: str, fingerprint: str) -> Description:
    run_id = record.run_id_of(place)
    groups: dict[str, list[Inspected]] = {}
    for one in found:
        if one.description is not None and run_id in ("", one.description.run_id):
            groups.setdefault(one.description.fingerprint, []).append(one)
    if not groups:
        others = {one.description.run_id for one in found if one.description is not None}
        reasons = [f"{one.name}: {one.problem}" for one in found if one.problem][:3]
        reasons += [f"they are of run {', '.join(map(repr, sorted(others)))}, and this place is of {run_id!r}"] * bool(
            others
        )
        raise RecordDamaged(
            f"none of the {len(found)} checkpoints of {place} can be used: {'; '.join(reasons)}. Nothing was changed",
            hint="restore run.json from a copy; give the folder the name of its run back if it was renamed; or begin "
            "anew under another THAW_RUN_ID",
        )
    if (fingerprint or len(groups) == 1) and fingerprint in ("", *groups):
        description = max(groups[fingerprint or next(iter(groups))], key=_position).description
        assert description is not None
        return description
    counts = ", ".join(f"{key} ({len(group)} checkpoints)" for key, group in groups.items())
    raise RecordDamaged(
        f"the checkpoints of {place} are of these fingerprints: {counts}. Nothing was changed",
        hint=f"choose one: python -m job repair --run {place} --fingerprint {next(iter(groups))}",
    )


def _position(one: Inspected) -> tuple[int, int, int, int]:
    parts = CheckpointName.parse(one.name)
    assert parts is not None
    return parts.position


def _problem(one: Inspected, newest: Description) -> str:
    """Why a checkpoint is not one of the record that the newest gives; empty for one that is."""
    said = one.description
    if said is None:
        return one.problem
    for field in ("run_id", "fingerprint", "settings", "inputs"):
        if getattr(said, field) != getattr(newest, field):
            return f"is of another run than the newest: {field} differ"
    if len(said.history) > len(newest.history):
        return "has more epochs behind it than the newest"
    return ""


def _entry(one: Inspected, parts: CheckpointName, newest: Description) -> CheckpointEntry:
    """What the record says of a checkpoint that is set aside: its name, and the digest of what is there."""
    return CheckpointEntry.model_validate(
        {
            "name": one.name,
            "phase": parts.phase,
            "step": parts.step,
            "num_epochs": 0,
            "size": one.digest.size if one.digest else 0,
            "sha256": one.digest.sha256 if one.digest else EMPTY_SHA256,
            "attempt": parts.attempt,
            "time": newest.time,
        }
    )


def _answer(
    at: str, damage: RecordDamaged, rebuilt: Rebuilt, copy: str | None, *, is_confirmed: bool
) -> dict[str, Any]:
    content = rebuilt.content
    newest = content.checkpoints[-1]
    return {
        "at": at,
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


def _show(answer: dict[str, Any], question: Repair) -> None:
    if question.as_json:
        print_json(answer, indent=1)
        return
    table = Table.grid(padding=(0, 2))
    for name, value in answer.items():
        lines = (
            value
            if isinstance(value, list)
            else [f"{key}: {why}" for key, why in value.items()]
            if isinstance(value, dict)
            else [value]
        )
        for index, line in enumerate(lines):
            table.add_row(name.replace("_", " ") if index == 0 else "", plain("none" if line is None else str(line)))
    Paper().print(table)
