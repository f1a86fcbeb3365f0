"""The run that a question is about."""

from job.errors import RunUnavailable
from job.run import record
from job.schema import Record
from job.storage import ObjectStore


def recorded(store: ObjectStore) -> Record:
    """The record of the run whose place `store` is. Raises RunUnavailable when there is none, RecordDamaged."""
    found = record.read(store)
    if found is None:
        raise RunUnavailable(
            f"there is no run at {store.uri}: it has no run.json",
            hint="give --run the storage URI and the run id, as in ./runs/cats; python -m job list shows what there is",
        )
    return found
