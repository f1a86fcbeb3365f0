"""`thaw plan`: what a start with these settings would do, and whether what it needs is there.

The exit code is that of a start, so that a pipeline can ask before it applies.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from rich.console import Group
from rich.table import Table

from job import nvidia, processor
from job.cli import checks, devices
from job.cli.arguments import AsJson, Flag, SettingsOptions
from job.cli.asked import open_asked
from job.cli.checks import Check
from job.cli.tables import plain, setting_text, show, table
from job.errors import ExitCode, StorageError, Superseded, ThawError
from job.report.gate import missed_gate
from job.run import disk_space, holder, lease, standing
from job.run.lease import Hold
from job.run.record import RECORD_NAME, Identity, RunRecord
from job.schema import Record
from job.settings.fields import Precision, variable
from job.settings.resources import Need, estimate
from job.settings.settings import Settings, changes_result
from job.storage import ObjectStore
from job.wording import duration

COLORS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}


class Options(SettingsOptions):
    """The exit code is the one with which a start would end at once; 0 when it would begin, carry on, or find the run
    complete. Memory and disk are estimates; too little memory is only warned about.
    """

    shows_all: Annotated[
        bool, Flag("show every setting, also those that have their defaults; --json always does", name="--all")
    ] = False
    as_json: AsJson = False


@dataclass(frozen=True)
class Next:
    """What a start would do with the run, as its record says."""

    action: Literal["start", "resume", "nothing", "wait", "refused", "unknown"]
    text: str
    hint: str = ""
    exit_code: int = 0


def answer(options: Options) -> ExitCode:
    """Show the plan. Raises StorageError only where the store cannot even be opened."""
    settings = options.settings
    store = open_asked(settings.run_uri())
    step, record = what_next(settings, store)
    found = [] if step.action in ("nothing", "refused") else look(settings, store, record)
    codes = [code for code in (step.exit_code, *(check.exit_code for check in found)) if code]
    exit_code = ExitCode(codes[0]) if codes else ExitCode.COMPLETE
    shown = options, store.uri, step, found, exit_code
    show(_as_json(*shown), _as_table(*shown), as_json=options.as_json)
    return exit_code


def what_next(settings: Settings, store: ObjectStore) -> tuple[Next, Record | None]:
    """What a start would find in the record; no record when it cannot be read."""
    try:
        record = RunRecord.open(store, Identity.of(settings)).content
        if record.state == "done":
            return _of_done(record, settings), record
        hold = lease.look(record, partial(store.age_seconds, RECORD_NAME), holder.this_process(settings.job_uid))
    except ThawError as error:
        action: Literal["unknown", "refused"] = "unknown" if isinstance(error, StorageError) else "refused"
        return Next(action, error.message, error.hint, int(error.exit_code)), None
    return (_of_held(record, hold) if hold.seconds > 0 else _of_open(record, settings)), record


def _of_held(record: Record, hold: Hold) -> Next:
    newest, seconds = record.attempts[-1], duration(hold.seconds)
    hint = "let it end, or stop it; a run of its own needs another THAW_RUN_ID"
    text = f"wait for attempt {newest.number} of {newest.holder}"
    if hold.is_known:
        return Next("wait", f"{text}, which holds the run for {seconds} more", hint, int(Superseded.exit_code))
    return Next("wait", f"{text}, up to {seconds}, and take the run over if it does not renew its lease", hint)


def _of_done(record: Record, settings: Settings) -> Next:
    assert record.outcome is not None
    missed = missed_gate(record.outcome.model_dump(), settings.gates())
    accuracy = record.outcome.test_accuracy
    text = f"nothing: the run is complete, with a test accuracy of {accuracy:.4f}"
    if missed is None:
        return Next("nothing", text)
    return Next("nothing", f"{text}; {missed.message}", missed.hint, int(missed.exit_code))


def _of_open(record: Record, settings: Settings) -> Next:
    number = len(record.attempts) + 1
    entry = standing.newest_checkpoint(record)
    if entry is None:
        return Next("start", f"start attempt {number} with the first step of {settings.training_phases()[0].name}")
    (phase,) = (phase for phase in standing.phase_progress(record) if phase.name == entry.phase)
    text = f"carry on with attempt {number} at {entry.phase} step {entry.step}"
    if phase.num_steps is not None:
        text += f" of {phase.num_steps}"
    return Next("resume", f"{text}, from {entry.name}")


def look(settings: Settings, store: ObjectStore, record: Record | None) -> list[Check]:
    """Every check, in the order in which a start would meet what they look at."""
    storage = checks.attempted("storage", lambda: checks.storage(store))
    data = checks.attempted("data", lambda: checks.data(settings))
    found = [
        storage,
        data,
        checks.attempted("weights", lambda: checks.weights(settings)),
        checks.attempted("device", lambda: checks.device(settings)),
    ]
    num_devices = devices.num_devices(settings, {})
    num_processes = settings.workers * num_devices
    if num_processes > 1:
        found.append(checks.workers(settings, num_devices))
    each = settings.model_copy(update={"workers": num_processes})
    need = need_of(each, data.facts.get("examples", {}), record)
    here = need and dataclasses.replace(
        need,
        memory=disk_space.memory_of_host(settings, need, num_devices),
        scratch=need.scratch * num_devices,
    )
    return [
        *found, checks.memory(settings, here), *checks.device_memory(settings, need),
        *checks.disks(settings, here, data.facts.get("fetch_bytes", 0)),
    ]  # fmt: skip


def need_of(settings: Settings, examples: Mapping[str, int], record: Record | None) -> Need | None:
    """What one of the workers needs of memory and disk; None while the number of examples is not known."""
    if not examples:
        return None
    if settings.precision != "auto":
        precision: Precision = settings.precision
    else:
        recorded = record.inputs.get("arithmetic", {}).get("precision") if record else None
        precision = recorded or ("bfloat16" if _has_fast_bfloat16(settings) else "float32")
    return estimate(settings, num_examples=sum(examples.values()), precision=precision)


def _has_fast_bfloat16(settings: Settings) -> bool:
    """What a start would ask TensorFlow, which is not imported here."""
    of_gpu = None if settings.device == "cpu" else nvidia.has_bfloat16()
    return processor.has_fast_bfloat16() if of_gpu is None else of_gpu


def _values(options: Options) -> dict[str, dict[str, Any]]:
    return {
        variable(field): {
            "value": value, "origin": options.origins.get(field, "default"), "changes_result": changes_result(field)
        }
        for field, value in options.settings.shown().items()
    }  # fmt: skip


def _as_json(options: Options, at: str, step: Next, found: list[Check], exit_code: ExitCode) -> dict[str, Any]:
    return {
        "run_id": options.settings.resolved_run_id(),
        "at": at,
        "fingerprint": options.settings.fingerprint(),
        "settings": _values(options),
        "next": dataclasses.asdict(step),
        "checks": [dataclasses.asdict(check) for check in found],
        "exit_code": int(exit_code),
    }


def _as_table(options: Options, at: str, step: Next, found: list[Check], exit_code: ExitCode) -> Group:
    defaults = {variable(field): value for field, value in Settings().shown().items()}
    settings = table("setting", "value", "from")
    for name, entry in _values(options).items():
        if not options.shows_all and entry["value"] == defaults[name]:
            continue
        style = "dim" if entry["origin"] == "default" else ""
        value = plain(setting_text(entry["value"]))
        settings.add_row(f"{name}{' *' if entry['changes_result'] else ''}", value, entry["origin"], style=style)
    rows = Table.grid(padding=(0, 2))
    failed = " and ".join(check.name for check in found if check.outcome == "failed")
    text = f"end at once because of {failed}; with that mended, {step.text}" if failed else step.text
    rows.add_row("a start would", _with_hint(text, step.hint, "red" if exit_code else "green"))
    rows.add_row("exit code", plain(f"{int(exit_code)}, as of a start", "red" if exit_code else "green"))
    rows.add_row("run", plain(options.settings.resolved_run_id(), "bold"))
    rows.add_row("at", plain(at))
    rows.add_row("fingerprint", f"{options.settings.fingerprint()} (over the settings marked *)")
    for check in found:
        rows.add_row(check.name, _with_hint(check.text, check.hint, COLORS[check.outcome]))
    num_hidden = len(Settings.model_fields) - settings.row_count
    rest = f"{num_hidden} settings have their defaults; --all shows them" if num_hidden else ""
    return Group(rows, "", settings, *([plain(rest, "dim")] if rest else []))


def _with_hint(text: str, hint: str, style: str) -> Group:
    lines = [plain(line, style) for line in text.splitlines()]
    return Group(*lines, *([plain(f"hint: {hint}")] if hint else []))
