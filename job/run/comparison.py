"""Several runs side by side: what the record and the verified files of each say, as JSON values.

| key | value |
|---|---|
| `runs` | each: number from 1, run_id, place (`at`), state, fingerprint, outcome, AUROC, epochs, seconds, history |
| `settings` | those that differ, by name without `THAW_`: the value of each run, in order |
| `tests` | McNemar's test of each later run with the first one, or the reason why there is none |

Nothing of a store is believed: files have the digests of the record, and values their types and bounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from job.errors import InputError
from job.observe import ledger
from job.report import predictions
from job.report.files import PREDICTIONS, REPORT
from job.report.predictions import Prediction
from job.report.significance import holm, mcnemar
from job.run import standing
from job.run.artefacts import content_of, said
from job.run.record import existing_record
from job.schema import Ratio, Record
from job.storage import ObjectStore


class _Test(BaseModel):
    auroc: Ratio | None


class _Report(BaseModel):
    test: _Test


@dataclass
class Compared:
    """A run as it was read. `problems` say what it lacks; without predictions one of them is the reason."""

    at: str
    record: Record
    auroc: float | None = None
    predictions: list[Prediction] | None = None
    problems: list[str] = field(default_factory=list)


def read(store: ObjectStore, folder: Path) -> Compared:
    """The run whose place is `store`; `folder` is for temporary files.

    Raises RunUnavailable when there is none, RecordDamaged, StorageError. A file that is missing or damaged is one of
    the problems.
    """
    record = existing_record(store)
    run = Compared(store.uri, record)
    if record.outcome is None:
        run.problems.append(f"is not finished: it is in {record.state}")
        return run
    try:
        run.auroc = _Report.model_validate_json(content_of(store, record, REPORT, folder), strict=True).test.auroc
    except (InputError, ValueError) as error:
        run.problems.append(said(REPORT, error))
    if PREDICTIONS not in record.files:
        run.problems.append(f"was finished by a version that kept no {PREDICTIONS}")
        return run
    try:
        found = predictions.read(content_of(store, record, PREDICTIONS, folder))
        num_right, num_examples = sum(it.label == it.predicted for it in found), record.inputs["data"]["splits"]["test"]
        if len(found) != num_examples or abs(num_right / num_examples - record.outcome.test_accuracy) > 1e-9:
            raise ValueError("does not have the predictions that the outcome was computed from")
        run.predictions = found
    except (InputError, ValueError, KeyError, ZeroDivisionError) as error:
        run.problems.append(said(PREDICTIONS, error))
    return run


def compare(runs: Sequence[Compared]) -> dict[str, Any]:
    """The content of a comparison, as the docstring of this module has it."""
    first, *others = runs
    tests = [{"run": number, "reference": 1, **_compared(first, other)} for number, other in enumerate(others, 2)]
    done = [test for test in tests if "p_value" in test]
    for test, p_value in zip(done, holm([test["p_value"] for test in done]), strict=True):
        test["holm_p_value"] = p_value
    return {
        "runs": [{"number": number, **_described(run)} for number, run in enumerate(runs, 1)],
        "settings": standing.differing_settings([run.record.settings for run in runs]),
        "tests": tests,
    }


def _described(run: Compared) -> dict[str, Any]:
    record = run.record
    seconds = [attempt.seconds for attempt in record.attempts]
    outcome = record.outcome.model_dump(mode="json") if record.outcome else {}
    return {
        "run_id": record.run_id,
        "at": run.at,
        "state": record.state,
        "fingerprint": record.fingerprint,
        **{
            name: outcome.get(name)
            for name in ("test_accuracy", "test_accuracy_interval", "test_balanced_accuracy", "test_loss")
        },
        "auroc": run.auroc,
        "num_epochs": len(record.history),
        "time_seconds": sum(ledger.by_category(seconds).values()),
        "goodput_ratio": ledger.goodput(seconds),
        "num_attempts": len(record.attempts),
        "model_sha256": outcome.get("model_sha256"),
        "problems": run.problems,
        "history": [epoch.model_dump(mode="json") for epoch in record.history],
    }


def _compared(first: Compared, other: Compared) -> dict[str, Any]:
    """The test of two runs over the same images, or the reason why there is none."""
    if first.predictions is None:
        return {"reason": f"run 1 {first.problems[-1]}"}
    if other.predictions is None:
        return {"reason": f"it {other.problems[-1]}"}
    images = [_test_images(run.record) for run in (first, other)]
    if None in images:
        return {"reason": "a record does not identify the test images"}
    # As in the identity of the data: folders Cat and cat have the same images.
    labels = [[it.label.casefold() for it in found] for found in (first.predictions, other.predictions)]
    if images[0] != images[1] or labels[0] != labels[1]:
        return {"reason": "its test images are not those of run 1"}
    pairs = [
        (one.label == one.predicted, two.label == two.predicted)
        for one, two in zip(first.predictions, other.predictions, strict=True)
    ]
    only_first, only_other = pairs.count((True, False)), pairs.count((False, True))
    p_value, method = mcnemar(only_first, only_other)
    return {
        "num_images": len(pairs),
        "only_reference_right": only_first,
        "only_run_right": only_other,
        "p_value": p_value,
        "method": method,
    }


def _test_images(record: Record) -> tuple[str, str] | None:
    """Digests of images and labels of the test split, and of the class names, where the record has them."""
    data = record.inputs["data"]
    of_splits = data.get("split_sha256")
    found = of_splits.get("test") if isinstance(of_splits, dict) else None, data.get("class_names_sha256")
    return found if all(isinstance(it, str) for it in found) else None  # type: ignore[return-value]
