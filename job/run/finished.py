"""The record of a finished run, for questions and for a run that begins with its model. Imports no TensorFlow."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping

from job.data import image_table
from job.data.split_spec import overlap
from job.errors import InputError, RecordDamaged, RunUnavailable, WeightsUnusable
from job.report.files import MODEL
from job.run.record import existing_record
from job.schema import Record, recorded_setting
from job.settings.settings import Settings
from job.storage import MISSING, ObjectStore


def finished(store: ObjectStore) -> Record:
    """The record of a finished run. Raises RunUnavailable when it is not there or not finished, and RecordDamaged."""
    found = existing_record(store)
    if found.outcome is None:
        raise RunUnavailable(
            f"run {found.run_id!r} is not finished: it is in {found.state}, and has no model yet",
            hint=f"thaw status --run {store.uri}",
        )
    return found


def trained_on(
    store: ObjectStore, record: Record, dataset: str, specs: Mapping[str, str], table: bytes | None
) -> dict[str, int | str]:
    """Which of these splits of a data set have images that a finished run trained on, as far as that is known.

    By split the number of these images, or of a data set without a table of its images the split that the run trained
    on, which certainly shares examples. Raises StorageError.
    """
    train = str(recorded_setting(record.settings, "TRAIN_SPLIT"))
    if table is None:
        is_same = dataset == recorded_setting(record.settings, "DATASET")
        return {name: train for name, spec in specs.items() if is_same and overlap(spec, train)}
    trained = {row["sha256"] for row in image_table.kept_rows(store, record.inputs) or () if row["split"] == "train"}
    shared = Counter(row["split"] for row in image_table.rows(table) if row["sha256"] in trained)
    return {name: shared[name] for name in specs if shared[name]}


def begun_with(settings: Settings, store: ObjectStore) -> Record:
    """The record of the run at `store`, with whose model the run of `settings` begins. Raises WeightsUnusable."""
    setting = f"THAW_WEIGHTS={settings.weights!r}"
    kinds = "it takes imagenet, none, a file (.h5, .weights.h5, .keras), or the place of a finished run"
    try:
        record = finished(store)
    except RunUnavailable as error:
        raise WeightsUnusable(f"{setting}: {error.message}", hint=kinds) from error
    except RecordDamaged as error:
        hint = f"{kinds}; of a run: thaw repair --run {store.uri}"
        raise WeightsUnusable(f"{setting}: {error.message}", hint=hint) from error
    backbone = recorded_setting(record.settings, "BACKBONE")
    if backbone != settings.backbone:
        raise WeightsUnusable(
            f"{setting}: that run is of {backbone}, expected THAW_BACKBONE={settings.backbone}",
            hint=f"set THAW_BACKBONE={backbone}, or begin with other weights",
        )
    if MODEL not in record.files or store.version(MODEL) == MISSING:
        lacks = MODEL if MODEL in record.files else f"digest of {MODEL} in its record"
        raise WeightsUnusable(
            f"{setting}: that run has no {lacks}",
            hint="restore it, or begin with the model of another run",
        )
    return record


@contextlib.contextmanager
def naming(settings: Settings) -> Iterator[None]:
    """Turn an InputError about the model of an earlier run into one that says which setting named that run."""
    try:
        yield
    except InputError as error:
        raise WeightsUnusable(f"THAW_WEIGHTS={settings.weights!r}: {error.message}", hint=error.hint) from error
