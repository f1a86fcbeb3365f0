"""Writes docs/reference/ from the code: `make docs`. With `--check` it writes nothing, and fails where a page is old.

It imports no TensorFlow, so that `make lint` stays quick.
"""

import argparse
import ast
import dataclasses
import difflib
import inspect
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from job.data.image_table import FOLDER as TABLES
from job.errors import ExitCode
from job.model.backbones import BACKBONES, CUSTOM
from job.observe import data_events, events
from job.observe.metrics.table import OUTCOME, SERIES
from job.phases import PHASE_NAMES
from job.report.files import FILES
from job.run.description import CheckpointName
from job.run.record import RECORD_NAME
from job.schema import CHECKPOINTS, Record
from job.settings.fields import variable
from job.settings.settings import Settings, changes_result, group_of

REPOSITORY = Path(__file__).parent.parent
REFERENCE = REPOSITORY / "docs" / "reference"
RESULTS = REPOSITORY / "bench" / "results.json"
JOB = REPOSITORY / "k8s" / "base" / "job.yaml"

INTRODUCTIONS = {
    "settings": """\
# Settings

Every setting is an environment variable, a flag of `thaw` (`THAW_BATCH_SIZE` is `--batch-size`), and a line
`KEY=value` of a file that `--env-file FILE` names. A flag wins over a variable, and a variable over the file. An
unknown name and an empty value are errors (exit code 2).

A star (*) marks a setting that changes the result. Those that differ from their default make the fingerprint of the
run. The same run id with another fingerprint is refused (exit code 3). All other settings may change between two
attempts at a run. `THAW_WEIGHTS` counts as it is written: the same file under another path is another run.
""",
    "exit-codes": """\
# Exit codes

The last column is what the `podFailurePolicy` of `k8s/base/job.yaml` does when a pod ends with the code. A pod that
was preempted, drained, or evicted because its node ran short never counts as a retry, whatever its exit code. One that
was evicted because it took more disk than its own limit does count.

A store that denies a request (401, 403, no permission in a folder) ends a start at once with 4. If it has granted a
request of the same kind (read, write, list, delete) to this process before, credentials are being renewed or rights
changed: the request is tried again for two minutes (in a folder not at all), and then the exit code is 44.
""",
    "events": """\
# Events of the log

If standard output is not a terminal, the log has one line of JSON for each event, and no line for a step. Every line
also has `event`, `level`, `time`, and, once they are known, `run_id`, `phase` and `step`. Fields in brackets are
optional. `epoch` counts from 0, as in `run.json` and `history.json`; on a terminal, in `status` and in the report
epochs count from 1.
""",
    "series": """\
# Series for Prometheus

A star (*) marks the series that are also pushed to the Pushgateway when an attempt ends. A histogram has the series
`_bucket`, `_sum` and `_count`. `/metrics` also has the process metrics of the Prometheus client.
[Watching a run](../monitoring.md) says how they get to Prometheus.
""",
    "layout": """\
# What a run keeps

Everything is under `<THAW_STORAGE_URI>/<run id>/`.
""",
}

SPLITS_AND_BACKBONES = """\
## Splits

A split is written as in TFDS: `train`, `train[:40%]`, `train[100:200]`, `train[:10%]+test`. The three splits must
have no example in common.

## Backbones

The networks are those of `keras.applications`, `Tiny`, a small one for the demo and the tests, and `Custom`, which is
the network of the file in `THAW_WEIGHTS`. [Backbones](../backbones.md) says which files of weights fit, and what a
network of your own must be.

Parameters and megabytes are without the top. Top-1 is the published accuracy of the ImageNet weights on ImageNet's
validation images, from the table of `keras.io/api/applications`, for MobileNetV3 from that in Keras's documentation of
it; where none was found the cell is empty.
"""

COST = """\
The last two columns are the time of a step of each phase with a batch of 32, as a multiple of one with Xception that
took turns with it (`python -m bench backbones`, {measured}: {data}, {cores} cores, {numbers}). On another machine or
at another size the ratio is another. An empty cell was not measured.
"""

BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}

Schema = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 and a diff if a page is old")
    is_check = parser.parse_args().check
    is_old = False
    for path, text in pages().items():
        before = path.read_text() if path.exists() else ""
        if before == text:
            continue
        is_old = True
        if is_check:
            name = str(path.relative_to(REPOSITORY))
            sys.stdout.writelines(
                difflib.unified_diff(before.splitlines(True), text.splitlines(True), name, "the code")
            )
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    if is_check and is_old:
        print("docs/reference is not what the code says: run `make docs` and commit the result", file=sys.stderr)
    return int(is_check and is_old)


def pages() -> dict[Path, str]:
    """The text of every page of the reference, by path."""
    makers = {"settings": settings, "exit-codes": exit_codes, "events": log_events, "series": series, "layout": layout}
    note = "<!-- Written by `make docs` from the code. Do not edit. -->"
    return {
        REFERENCE / f"{name}.md": "\n".join([note, "", INTRODUCTIONS[name], *maker(), ""])
        for name, maker in makers.items()
    }


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """The lines of a Markdown table."""
    columns = list(columns)
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("<", "\\<") for cell in row) + " |"


def code(*words: str) -> str:
    return ", ".join(f"`{word}`" for word in words)


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"


def settings() -> Iterator[str]:
    fields = list(Settings.model_fields)
    properties = Settings.model_json_schema()["properties"]
    for group in dict.fromkeys(map(group_of, fields)):
        yield from (f"## {sentence(group)}", "")
        yield from table(
            ("variable", "values", "default", "meaning"),
            (_setting_row(field, properties[field]) for field in fields if group_of(field) == group),
        )
        yield ""
    yield SPLITS_AND_BACKBONES
    yield from _backbones()


def _backbones() -> Iterator[str]:
    """What is known of each, and what its steps cost where `bench` measured it."""
    costs = json.loads(RESULTS.read_text()).get("backbones")
    times = {row["what"]: f"{row['median']:.2g}" for row in costs["rows"] if row["unit"] == "x"} if costs else {}
    if costs:
        on = costs["on"]
        numbers = "bfloat16" if on["bfloat16"] else "float32"
        yield COST.format(data=on["data"], cores=on["cores"], numbers=numbers, measured=costs["measured"])
    phases = PHASE_NAMES if costs else ()
    yield from table(
        (
            "backbone", "smallest image, pixels", "trained at, pixels", "parameters", "MB", "ImageNet weights",
            "top-1, %", *(f"step: {name}" for name in phases),
        ),
        (
            (
                code(name),
                str(it.min_image_size),
                str(it.default_image_size or ""),
                "of the file" if name == CUSTOM else f"{it.num_parameters:,}",
                "" if name == CUSTOM else f"{4 * it.num_parameters / 1e6:,.0f}",
                "yes" if it.has_imagenet_weights else "no",
                str(it.imagenet_top1 or ""),
                *("1" if name == "Xception" else times.get(f"{phase} step: {name}", "") for phase in phases),
            )
            for name, it in BACKBONES.items()
        ),
    )  # fmt: skip


def _setting_row(field: str, entry: Schema) -> tuple[str, ...]:
    meaning, _, default = entry["description"].rstrip("]").partition(" [default: ")
    if not default:
        value = entry["default"]
        default = code(str(value).lower() if isinstance(value, bool) else str(value))
    meaning = meaning.replace(f": {', '.join(BACKBONES)}", ": see Backbones below")
    star = " *" if changes_result(field) else ""
    return code(variable(field)) + star, _values(entry), default, sentence(meaning)


def _values(entry: Schema) -> str:
    """The type of a setting and its bounds, in words."""
    kind = next(it for it in entry.get("anyOf", [entry]) if it["type"] != "null")
    if "enum" in kind:
        return code(*kind["enum"])
    words = {"integer": "whole number", "number": "number", "boolean": code("true", "false"), "string": "text"}
    text = "path" if kind.get("format") == "path" else words[kind["type"]]
    bounds = [f"{word} {kind[key]:,}" for key, word in BOUNDS.items() if key in kind]
    return ", ".join([text, *bounds])


def exit_codes() -> Iterator[str]:
    job = yaml.safe_load(JOB.read_text())["spec"]
    actions = {
        exit_code: rule["action"]
        for rule in job["podFailurePolicy"]["rules"]
        for exit_code in rule.get("onExitCodes", {}).get("values", [])
    }
    words = {
        "FailJob": "fails at once",
        "Ignore": "starts another pod, which does not count as a retry",
        "Count": f"starts another pod, up to {job['backoffLimit']} times",
    }
    yield from table(
        ("code", "meaning", "the same run again", "the Job on Kubernetes"),
        (
            (str(int(it)), it.meaning, it.retry, words[actions.get(it, "Count")] if it else "is complete")
            for it in ExitCode
        ),
    )


def log_events() -> Iterator[str]:
    named = (it for module in (events, data_events) for it in vars(module).values())
    kinds = (it for it in named if isinstance(it, type) and issubclass(it, events.Event) and it is not events.Event)
    yield from table(
        ("event", "level", "fields", "meaning"),
        ((code(it.name), it.level, _fields_of(it), " ".join((it.__doc__ or "").split())) for it in kinds),
    )


def _fields_of(kind: type[events.Event]) -> str:
    """The names that the log shows of an event whose fields all have a value."""
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    # What is counted by phase is shown as a field for each.
    values = {field.name: dict.fromkeys(PHASE_NAMES, 0) for field in fields}
    optional = {field.name for field in fields if field.default is not dataclasses.MISSING}
    shown = kind(**values).fields()
    return ", ".join(f"[{code(name)}]" if name in optional else code(name) for name in shown)


def series() -> Iterator[str]:
    yield from table(
        ("series", "type", "labels", "meaning"),
        ((code(it.name) + (" *" if it in OUTCOME else ""), it.kind, code(*it.labels), it.help) for it in SERIES),
    )


def layout() -> Iterator[str]:
    example = CheckpointName(phase=PHASE_NAMES[-1], step=1200, attempt=2, upload=5, lineage="0a1b2c3d")
    yield from table(
        ("name", "what it is"),
        [
            (code(RECORD_NAME), "the record of the run: the only object that changes"),
            (code(CHECKPOINTS), "checkpoints, each written once"),
            (code(TABLES), "of a run on own images: the name, split, label and SHA-256 of each, as CSV"),
            *((code(name), text) for name, text in FILES.items()),
        ],
    )
    yield f"""
A checkpoint is a file of safetensors, whose metadata say what it is of. Its name has phase, step, attempt, upload and
lineage:

    {example}

## {RECORD_NAME}
"""
    yield from table(("field", "what it is"), ((code(name), text) for name, text in _attribute_texts(Record)))


def _attribute_texts(kind: type) -> Iterator[tuple[str, str]]:
    """The fields of a class, each with the string that follows it in the source."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    for field, text in itertools.pairwise(ast.iter_child_nodes(definition)):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            yield ast.unparse(field.target), " ".join(ast.literal_eval(text.value).split())


if __name__ == "__main__":
    sys.exit(main())
