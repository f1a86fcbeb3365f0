"""What a run is made from: data, weights, arithmetic. The first checkpoint pins them for later attempts."""

import contextlib
from typing import Any

from job.data import composition, image_table
from job.data.splits import Splits
from job.errors import PreconditionFailed
from job.model.classifier import Classifier
from job.run.record import RunRecord
from job.schema import Record
from job.storage import MISSING, ObjectStore


def pinned(record: RunRecord) -> dict[str, Any]:
    """What this attempt must find again: nothing, as long as the run has no checkpoint."""
    content = record.content
    return content.inputs if content.checkpoints else {}


def compare_data(splits: Splits, record: RunRecord, store: ObjectStore) -> None:
    """Raise InputError when the data is not that of the checkpoints; where images have names, a few are named."""
    recorded = pinned(record)

    def changes() -> list[str]:
        before = image_table.kept_rows(store, recorded)
        # One that is lost or damaged tells nothing.
        return [] if before is None else list(image_table.changes(before, image_table.rows(splits.table or b"")))

    composition.check_same(recorded.get("data"), splits.identity, changes=changes)


def inputs_of(splits: Splits, classifier: Classifier, arithmetic: dict[str, Any], record: RunRecord) -> dict[str, Any]:
    """The inputs of this attempt, as the record has them."""
    inputs = {
        "data": splits.identity,
        "backbone_sha256": classifier.digest(with_head=False),
        "arithmetic": arithmetic,
    }
    if splits.table is not None:
        # Files may have got other names since the run began.
        inputs["images"] = pinned(record).get("images") or image_table.name_of(splits.table)
    return inputs


def first_model(earlier: Record) -> dict[str, Any]:
    """Of the inputs of a run that begins with the model of a finished one: the digest of its weights."""
    assert earlier.outcome is not None
    return {"first_model_sha256": earlier.outcome.model_sha256}


def keep_table(splits: Splits, inputs: dict[str, Any], store: ObjectStore) -> None:
    """Keep the table of the run's images, if they have names, where the inputs say."""
    if splits.table is not None and inputs["images"] == image_table.name_of(splits.table):
        with contextlib.suppress(PreconditionFailed):
            store.write(inputs["images"], splits.table, if_version=MISSING)
