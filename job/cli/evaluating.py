"""The work of `thaw evaluate`: one split of labelled images through the model of a finished run, and its metrics."""

import contextlib
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, FiniteFloat

from job.cli.asked import Warnings
from job.cli.waits import image_bar, waiting
from job.data.composition import kinds
from job.data.files.names import is_place
from job.data.mirror import Fetcher
from job.data.split_spec import DEFAULT_SPECS, EVALUATED, Specs
from job.data.splits import DataRequest, Split, Splits, load_splits
from job.errors import InputError, ThawError
from job.model.answers import same_classes
from job.report.files import REPORT
from job.run.artefacts import content_of, said
from job.run.finished import trained_on
from job.run.finished_model import FinishedModel, read_model
from job.schema import Ratio, Record
from job.settings.resources import evaluation_batch_size
from job.settings.settings import Settings
from job.storage import ObjectStore
from job.train import evaluation
from job.train.collective import Collective
from job.train.evaluation import Evaluation
from job.wording import counted, some
from job.workers.team import Alone


class _Calibration(BaseModel):
    expected_calibration_error: Ratio


class _RunTest(BaseModel):
    """What is shown of a run's own test; reports of earlier versions lack some of it."""

    num_examples: int | None = None
    accuracy: Ratio
    accuracy_interval: tuple[Ratio, Ratio]
    loss: FiniteFloat
    top_5_accuracy: Ratio | None = None
    auroc: Ratio | None = None
    macro: dict[str, Ratio | None] | None = None
    calibration: _Calibration | None = None


class _Report(BaseModel):
    test: _RunTest


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The metrics, and what they are of; the fields are as the docstring of `job.cli.evaluate` has them."""

    evaluation: Evaluation
    split: str
    data_sha256: str
    is_run_test: bool
    skipped: list[dict[str, str]]
    run_test: dict[str, Any]
    warnings: list[str]


_VARIABLE = re.compile(r"THAW_(DATASET|LABELS|CLASSES|CACHE)\b")
"""Settings of a run that are options here, and no variables."""


@contextlib.contextmanager
def _by_options() -> Iterator[None]:
    """Let errors name the options with which this command says what a run says with variables."""
    try:
        yield
    except ThawError as error:
        texts = (_VARIABLE.sub(lambda found: f"--{found[1].lower()}", it) for it in (error.message, error.hint))
        error.message, error.hint = texts
        error.args = (error.message,)
        raise


def default_batch_size(settings: Settings, record: Record) -> int:
    """How many images the run's own test took at a time, without THAW_MICROBATCH_SIZE, which no record has.

    The numbers may depend on that in the last digits.
    """
    return evaluation_batch_size(settings, record.inputs["arithmetic"]["precision"] if record.inputs else "float32")


def specs(settings: Settings, split: str | None, *, is_own: bool) -> Specs:
    """The one split that is wanted: `split`, else that of the run's test; of another data set what is usual there."""
    if split is not None or not is_own:
        return {EVALUATED: split or ""}
    # By its own name the default means the split test, of data that brings its splits, if all three are defaults.
    is_default = tuple(settings.specs().values()) == DEFAULT_SPECS
    return {"test" if is_default else EVALUATED: settings.test_split}


def evaluate(
    store: ObjectStore, record: Record, settings: Settings, wanted: Specs, *, at_once: int, folder: Path
) -> Evaluated:
    """The metrics of the run's model over the images of `settings` and `wanted`; `folder` is for temporary files."""
    model = read_model(store, record, folder)
    with _by_options(), _load(settings, wanted, model, folder) as splits:
        ((name, split),) = splits.by_name.items()
        if not len(split):
            reasons = counted(kinds(image.reason for image in splits.composition.skipped))
            raise InputError(f"{settings.dataset}, {splits.specs[name]}: no image can be read ({reasons})")
        labels = class_indices(model.class_names, splits.class_names, split.labels, dataset=settings.dataset)
        with waiting("reading the images"):
            splits.wait()
        logits = _logits(model, split, at_once)
    found = evaluation.evaluate(logits, labels, model.class_names, threshold=model.threshold)
    run_test, warnings = _run_test(store, record, folder)
    warnings += _of_training(store, record, settings, splits)
    return Evaluated(
        evaluation=found,
        split=splits.specs[name],
        data_sha256=splits.identity["sha256"],
        is_run_test=_is_run_test(record, splits, name),
        skipped=[{"name": it.name, "reason": it.reason, "sha256": it.sha256} for it in splits.composition.skipped],
        run_test=run_test,
        warnings=warnings,
    )


def class_indices(
    model_names: Sequence[str], data_names: Sequence[str], labels: np.ndarray, *, dataset: str
) -> np.ndarray:
    """Labels of the data, int32 [n], as labels of the model, int64 [n]. Raises InputError when an image is of a class
    that the model does not know.
    """
    indices = same_classes(model_names, data_names)
    found = indices[labels]
    if (found < 0).any():
        counts = np.bincount(labels[found < 0], minlength=len(data_names)).tolist()
        unknown = [f"{name!r} ({count:,})" for name, count in zip(data_names, counts, strict=True) if count]
        known = [name for name, index in zip(data_names, indices, strict=True) if index >= 0]
        needs_json = any("," in name or name.startswith("[") for name in known)
        classes = shlex.quote(json.dumps(known) if needs_json else ",".join(known))
        leaving_out = f", or leave them out with --classes {classes}" if len(known) > 1 and is_place(dataset) else ""
        raise InputError(
            f"{dataset} has images of classes that the model does not know: {some(unknown, shown=str)}; "
            f"the model knows {some(model_names)}",
            hint=f"give the classes the names that they have in the run{leaving_out}",
        )
    return found


def _load(settings: Settings, wanted: Specs, model: FinishedModel, folder: Path) -> Splits:
    """Raises what fetching and loading raise."""
    fetcher = Fetcher(settings.cache_dir, scratch=folder, observer=Warnings(), check_stop=_go_on)
    with waiting(f"loading {settings.dataset}"):
        inputs = fetcher.inputs(dataset=settings.dataset, data_dir=settings.data_dir, weights="none")
        request = DataRequest(
            dataset=inputs.dataset,
            data_dir=inputs.data_dir,
            specs=wanted,
            resizing=model.resizing,
            cache=settings.cache,
            cache_dir=folder,
            files=settings.files_request(),
            on_unreadable=settings.on_unreadable,
        )
        return load_splits(request, check_stop=_go_on)


def _go_on() -> None:
    """A question is stopped wherever it is."""


def _logits(model: FinishedModel, split: Split, at_once: int) -> np.ndarray:
    """Logits float64 [n, 1 or k] of the images in order, computed as in the run's own test."""
    forward = evaluation.forward_of(model.network, at_once=at_once)
    num_logits = int(model.network.output_shape[-1])
    with image_bar(len(split)) as advance:

        def counted_forward(images: Any) -> Any:
            advance(len(images))
            return forward(images)

        return evaluation.predict_logits(
            counted_forward, split, Collective(Alone(_go_on)), num_logits=num_logits, batch_size=at_once,
            at_once=at_once,
        )  # fmt: skip


def _is_run_test(record: Record, splits: Splits, name: str) -> bool:
    recorded = record.inputs.get("data", {})
    of_splits = recorded.get("split_sha256")
    return (
        isinstance(of_splits, dict)
        and of_splits.get("test") == splits.identity["split_sha256"][name]
        and recorded.get("class_names_sha256") == splits.identity["class_names_sha256"]
    )


def _run_test(store: ObjectStore, record: Record, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The numbers of the run's own test, and a warning where only the record has some."""
    assert record.outcome is not None
    try:
        report = content_of(store, record, REPORT, folder)
        return _Report.model_validate_json(report).test.model_dump(mode="json"), []
    except (InputError, ValueError) as error:
        problem = said(REPORT, error)
    outcome = record.outcome
    known = _RunTest(
        accuracy=outcome.test_accuracy, accuracy_interval=outcome.test_accuracy_interval, loss=outcome.test_loss
    )
    return known.model_dump(mode="json"), [f"of the run's own test only the record is used: {problem}"]


def _of_training(store: ObjectStore, record: Record, settings: Settings, splits: Splits) -> list[str]:
    """What makes the metrics too good: images that the run trained on, as far as that is known."""
    found = trained_on(store, record, settings.dataset, splits.specs, splits.table)
    reasons = [
        f"{splits.specs[name]} shares examples with {shared}, which the run trained on"
        if isinstance(shared, str)
        else f"the run trained on {shared:,} of these images"
        for name, shared in found.items()
    ]
    return [f"{reason}, which makes these numbers too good" for reason in reasons]
