"""The record of a finished run, for questions and for a run that begins with its model. Imports no TensorFlow."""

from job.errors import RunUnavailable, WeightsUnusable
from job.run.record import existing_record
from job.schema import Record, recorded_setting
from job.settings.settings import Settings
from job.storage import ObjectStore


def finished(store: ObjectStore) -> Record:
    """The record of a finished run. Raises RunUnavailable when it is not there or not finished, and RecordDamaged."""
    found = existing_record(store)
    if found.outcome is None:
        raise RunUnavailable(
            f"run {found.run_id!r} is not finished: it is in {found.state}, and has no model yet",
            hint=f"thaw status --run {store.uri}",
        )
    return found


def begun_with(settings: Settings, store: ObjectStore) -> Record:
    """The record of the run at `store`, with whose model the run of `settings` begins. Raises WeightsUnusable."""
    setting = f"THAW_WEIGHTS={settings.weights!r}"
    try:
        record = finished(store)
    except RunUnavailable as error:
        kinds = "imagenet, none, a file (.h5, .weights.h5, .keras), or the place of a finished run"
        raise WeightsUnusable(f"{setting}: {error.message}", hint=f"it takes {kinds}") from error
    backbone = recorded_setting(record.settings, "BACKBONE")
    if backbone != settings.backbone:
        raise WeightsUnusable(
            f"{setting}: that run is of {backbone}, expected THAW_BACKBONE={settings.backbone}",
            hint=f"set THAW_BACKBONE={backbone}, or begin with other weights",
        )
    return record
