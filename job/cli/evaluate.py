"""`thaw evaluate`: whether the model of a finished run is as good on other labelled images.

The content of the answer are JSON values, which the command shows as JSON and as a table:

| key | value |
|---|---|
| `run_id`, `at`, `model_sha256` | the run, its place, and the digest of the model's weights |
| `dataset`, `split`, `num_images` | the images; the split as TFDS writes it |
| `data_sha256` | of all their labels and bytes in order |
| `is_run_test` | whether these are the images and labels of the run's own test |
| `skipped` | images that cannot be read and were left out: name, reason, sha256 |
| `evaluation` | the metrics, as `test` in the report of a run has them |
| `run_test` | the same numbers over all classes, of the run's own test; what the run does not have is null |
| `gate` | `min_accuracy`, `min_balanced_accuracy`, and whether both are `passed`; null without one |
| `warnings` | what a person should know of these numbers |

Nothing is written into the run. Images become pixels as in training, and the metrics are those of the final evaluation.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field
from rich.console import Group
from rich.table import Table

from job import memory
from job.cli.arguments import AsJson, CacheDir, CommandOptions, Flag, RunPlace
from job.cli.asked import open_asked
from job.cli.tables import digits, plain, show, table
from job.data import split_spec
from job.data.files.listing import Labels
from job.data.files.names import is_place
from job.errors import ExitCode, InvalidSettings
from job.imports import importing_tensorflow
from job.report.gate import missed_by_evaluation
from job.run.finished import finished
from job.schema import Record, recorded_setting
from job.settings import environment
from job.settings.environment import Given
from job.settings.resources import MAX_EVALUATION_BATCH
from job.settings.settings import Settings
from job.storage import scratch

if TYPE_CHECKING:
    from job.cli.evaluating import Evaluated

MAX_CLASSES = 20
HEADLINES = {
    "accuracy": ("accuracy",),
    "loss": ("loss",),
    "balanced accuracy": ("macro", "recall"),
    "macro F1": ("macro", "f1"),
    "AUROC": ("auroc",),
    "expected calibration error": ("calibration", "expected_calibration_error"),
}
"""The rows of the table, and where their numbers are in an evaluation."""

_OF_THE_DATA = ("dataset", "data_dir", "labels", "classes", "on_unreadable", "cache", "cache_dir")


def _not_empty(split: str) -> str:
    if split_spec.is_empty(split):
        raise ValueError("has no examples: FROM must be below TO")
    return split


class Options(CommandOptions):
    """The images are the run's own test split, or others: of another split, or of another data set, whose classes are
    those of the run by name. Nothing is written into the run. The exit code is 6 when an accuracy is below its gate.
    """

    run: RunPlace
    dataset: Annotated[
        str | None,
        Flag("TFDS data set, or place of own images in any layout that a run takes [default: the run's own]",
             metavar="NAME|DIR|URI"),
    ] = None  # fmt: skip
    split: Annotated[
        Annotated[str, AfterValidator(_not_empty)] | None,
        Flag("examples, such as test or train[60%:] [default: the run's test split; of another data set its split "
             "test, or all of it if there is none]", metavar="SPLIT"),
    ] = None  # fmt: skip
    data_dir: Annotated[
        str | None,
        Flag("folder of prepared TFDS data, local or in a bucket [default: THAW_DATA_DIR]", metavar="DIR",
             setting="data_dir"),
    ] = None  # fmt: skip
    labels: Annotated[
        Labels | None,
        Flag("own images: labels from folders, from what begins a name, or from a table [default: auto]",
             metavar="auto|folder|prefix|table"),
    ] = None  # fmt: skip
    classes: Annotated[
        str | None,
        Flag("own images: the classes to evaluate, separated by commas or as a JSON list [default: all]",
             metavar="TEXT"),
    ] = None  # fmt: skip
    on_unreadable: Annotated[
        Literal["fail", "skip"] | None,
        Flag("images that cannot be decoded: fail names them all, skip leaves them out [default: "
             "THAW_ON_UNREADABLE, or as the run]", metavar="fail|skip", setting="on_unreadable"),
    ] = None  # fmt: skip
    cache: Annotated[
        Literal["memory", "disk", "none"],
        Flag("where decoded images are kept meanwhile [default: memory]", metavar="memory|disk|none"),
    ] = "memory"  # fmt: skip
    batch_size: Annotated[
        Annotated[int, Field(ge=1, le=4096)] | None,
        Flag(f"images at a time [default: the run's batch size, at most {MAX_EVALUATION_BATCH}]", metavar="INT"),
    ] = None  # fmt: skip
    min_accuracy: Annotated[
        Annotated[float, Field(ge=0, le=1)] | None,
        Flag("quality gate, 0 to 1: below it the exit code is 6 [default: no gate]", metavar="NUMBER"),
    ] = None  # fmt: skip
    min_balanced_accuracy: Annotated[
        Annotated[float, Field(ge=0, le=1)] | None,
        Flag("the same of the mean over the classes of the share that is found [default: no gate]", metavar="NUMBER"),
    ] = None  # fmt: skip
    cache_dir: CacheDir = None
    as_json: AsJson = False


def answer(options: Options) -> ExitCode:
    """Show the metrics. Raises QualityGateMissed after that, before it RunUnavailable, InvalidSettings, what loading
    the data raises, InputError when it has classes that the model does not know, StorageError, MemoryExhausted.
    """
    store = open_asked(options.run)
    record = finished(store)
    settings, is_own = _settings(options, record)
    with importing_tensorflow():
        from job.cli import evaluating
        from job.train import device
    if unused := device.use("auto"):
        print(f"warning: the processor is used: {unused}", file=sys.stderr)
    at_once = options.batch_size or evaluating.default_batch_size(settings, record)
    with (
        scratch.folder(settings.cache_dir) as folder,
        memory.explained(
            lambda: f"for {at_once} images at a time, with --cache {options.cache}",
            lambda _: "give a smaller --batch-size, or --cache disk or none",
        ),
    ):
        specs = evaluating.specs(settings, options.split, is_own=is_own)
        found = evaluating.evaluate(store, record, settings, specs, at_once=at_once, folder=folder)
    gates = {"accuracy": options.min_accuracy, "balanced_accuracy": options.min_balanced_accuracy}
    given = {name: gate for name, gate in gates.items() if gate is not None}
    missed = missed_by_evaluation({name: getattr(found.evaluation, name) for name in given}, given)
    gate = {f"min_{name}": gate for name, gate in gates.items()} | {"passed": missed is None if given else None}
    content = _content(store.uri, record, settings.dataset, found, gate)
    is_all = options.split is None and is_place(settings.dataset) and found.split == "train"
    of = settings.dataset if is_all else f"{settings.dataset}, {found.split}"
    show(content, _as_table(content, of), as_json=options.as_json)
    for warning in found.warnings:
        print(f"warning: {plain(warning)}", file=sys.stderr)
    if missed is not None:
        raise missed
    return ExitCode.COMPLETE


def _settings(options: Options, record: Record) -> tuple[Settings, bool]:
    """The settings of the run, with the data that the options name, and whether that is the run's own data set."""
    known = Settings.result_defaults()
    recorded = {name.lower(): value for name, value in record.settings.items() if name in known}
    dataset = options.dataset
    if dataset is not None and is_place(dataset):
        # As the settings have it, and as a shell completes it.
        dataset = dataset.rstrip("/") or "/"
    is_own = dataset in (None, recorded_setting(record.settings, "DATASET"))
    if not is_own:
        recorded = {field: value for field, value in recorded.items() if field not in ("labels", "classes")}
    chosen = {field: value for field in _OF_THE_DATA if (value := getattr(options, field)) is not None}
    given = {field: Given(value, "file", f"{field.upper()} of the run") for field, value in recorded.items()}
    given |= {field: Given(value, "flag", f"--{field.replace('_', '-')}") for field, value in chosen.items()}
    problems: list[str] = []
    settings = environment.validated(Settings, given, problems)
    if settings is None or problems:
        raise InvalidSettings(
            "\n".join(f"evaluate: {problem}" for problem in problems), hint="thaw evaluate --help lists the options"
        )
    return settings, is_own


def _content(at: str, record: Record, dataset: str, found: "Evaluated", gate: dict[str, Any]) -> dict[str, Any]:
    assert record.outcome is not None
    return {
        "run_id": record.run_id,
        "at": at,
        "model_sha256": record.outcome.model_sha256,
        "dataset": dataset,
        "split": found.split,
        "num_images": found.evaluation.num_examples,
        "data_sha256": found.data_sha256,
        "is_run_test": found.is_run_test,
        "skipped": found.skipped,
        "evaluation": found.evaluation.as_json(),
        "run_test": found.run_test,
        "gate": gate,
        "warnings": found.warnings,
    }


def _as_table(content: Mapping[str, Any], of: str) -> Group:
    """`of` is what the images are."""
    rows = Table.grid(padding=(0, 2))
    rows.add_row("model", plain(f"{content['at']} (weights {content['model_sha256'][:12]})"))
    rows.add_row("images", plain(f"{content['num_images']:,} of {of}", "bold"))
    if content["is_run_test"]:
        rows.add_row("", "those of the run's own test")
    if content["skipped"]:
        rows.add_row("left out", f"{len(content['skipped']):,} that cannot be read")
    return Group(rows, "", _headlines(content), "", _classes(content["evaluation"]["per_class"]))


def _headlines(content: Mapping[str, Any]) -> Table:
    both = content["evaluation"], content["run_test"]
    rows = table("", *(columns := ("these images", "run's own test")), right=columns)
    for name, path in HEADLINES.items():
        rows.add_row(name, *(digits(_at(found, path)) for found in both))
        if name == "accuracy":
            rows.add_row("95 % interval", *("{:.4f} to {:.4f}".format(*found["accuracy_interval"]) for found in both))
    return rows


def _at(evaluation: Any, path: Sequence[str]) -> float | None:
    for name in path:
        evaluation = (evaluation or {}).get(name)
    return evaluation


def _classes(per_class: Sequence[Mapping[str, Any]]) -> Table:
    """In the order of the model; of many only the worst by F1 of those with an image."""
    shown = list(per_class)
    title = "class"
    if len(shown) > MAX_CLASSES:
        there = [row for row in shown if row["num_examples"]]
        shown = sorted(there, key=lambda row: float(row["f1"]))[:MAX_CLASSES]
        title = f"the worst {len(shown)} of {len(per_class):,} classes"
    numbers = ("images", "precision", "recall", "F1")
    rows = table(title, *numbers, right=numbers)
    for row in shown:
        values = [digits(row[name]) for name in ("precision", "recall", "f1")]
        rows.add_row(plain(row["name"]), f"{row['num_examples']:,}", *values)
    return rows
