"""The table of the images of a run, which it keeps: so that, when they are others later, a few can be named.

A CSV file with the columns name, split, label and sha256, in the order of the splits.
"""

import csv
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from job.data.source import Examples
from job.errors import ObjectDamaged, ObjectMissing
from job.storage import ObjectStore
from job.wording import some

FOLDER = "data/"
"""Where a run keeps it, under a name of its content."""

COLUMNS = ("name", "split", "label", "sha256")
MAX_NAMED = 5

Row: TypeAlias = dict[str, str]
"""By column."""


def written(examples: Mapping[str, Examples], kept: Mapping[str, np.ndarray], class_names: Sequence[str]) -> bytes:
    """The table of those examples of each split that `kept`, int64 [n], has the indices of."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for split, found in examples.items():
        indices = kept[split].tolist()
        for index, name in zip(indices, found.names(indices), strict=True):
            label = class_names[found.labels[index]]
            writer.writerow([name, split, label, found.digests[index].tobytes().hex()])
    return text.getvalue().encode()


def name_of(table: bytes) -> str:
    """The name of the object that keeps a table."""
    return f"{FOLDER}images-{hashlib.sha256(table).hexdigest()[:12]}.csv"


def kept_rows(store: ObjectStore, inputs: Mapping[str, Any]) -> list[Row] | None:
    """The rows of the table that a run keeps in `store`, which the inputs of its record name.

    None when they name none, when it is lost or damaged, and when it is no such table. Raises StorageError.
    """
    name = inputs.get("images")
    if name is None:
        return None
    try:
        table = store.read(name).data
        is_one = name_of(table) == name and table.startswith(f"{','.join(COLUMNS)}\n".encode())
        return rows(table) if is_one else None
    except (ObjectMissing, ObjectDamaged, UnicodeDecodeError, csv.Error):
        return None


def changes(before: Sequence[Row], now: Sequence[Row]) -> Iterator[str]:
    """What happened to the images between two tables, a line for each kind of change; no line where nothing did."""
    old, new = ({row["name"]: row for row in table} for table in (before, now))
    both = [name for name in old if name in new]
    kinds = {
        "have another label": [name for name in both if old[name]["label"] != new[name]["label"]],
        "have other bytes": [name for name in both if old[name]["sha256"] != new[name]["sha256"]],
        "are in another split": [name for name in both if old[name]["split"] != new[name]["split"]],
        "are gone": [name for name in old if name not in new],
        "are new": [name for name in new if name not in old],
    }
    for kind, names in kinds.items():
        if names:
            yield f"{len(names):,} {kind}: {some(names, most=MAX_NAMED, shown=str)}"


def duplicates(table: bytes) -> list[str]:
    """Some of the images that are in more than one split, as `cat/1.jpg (train) = cat/9.jpg (test)`."""
    by_digest: dict[str, list[Row]] = {}
    for row in rows(table):
        by_digest.setdefault(row["sha256"], []).append(row)
    found = [same for same in by_digest.values() if len({row["split"] for row in same}) > 1]
    return [" = ".join(f"{row['name']} ({row['split']})" for row in same) for same in found[:MAX_NAMED]]


def rows(table: bytes) -> list[Row]:
    """The rows of a table, each with all columns."""
    return list(csv.DictReader(io.StringIO(table.decode()), restval=""))
