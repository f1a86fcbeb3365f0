"""The run's place in a custom job of Vertex AI, which says in AIP_MODEL_DIR and two others where results belong.

With baseOutputDirectory gs://bucket/runs/cats these are gs://bucket/runs/cats/model/, .../checkpoints/ and .../logs/.
In a trial of a tuning job the number of the trial comes in between. A run keeps its results under just these names, so
its place is the folder above them: cats in gs://bucket/runs, or 7 in gs://bucket/runs/cats. The reference of Vertex AI
has this under CustomJobSpec.baseOutputDirectory.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath

from job.redaction import redacted_value
from job.settings.environment import Given
from job.settings.fields import variable
from job.storage.uri import checked_bucket

FOLDERS = {"AIP_MODEL_DIR": "model", "AIP_CHECKPOINT_DIR": "checkpoints", "AIP_TENSORBOARD_LOG_DIR": "logs"}
"""The variables of Vertex AI, and what a run calls the folder that each names."""

_SCHEME = "gs://"

HINT = "set baseOutputDirectory of the job to gs://bucket/folder/run-id, or THAW_STORAGE_URI and THAW_RUN_ID"


def place(environ: Mapping[str, str], chosen: Mapping[str, Given], problems: list[str]) -> dict[str, Given]:
    """Store and run id by field, where only Vertex AI says them; what is wrong is added to `problems`."""
    if "AIP_MODEL_DIR" not in environ or {"storage_uri", "run_id"} & chosen.keys():
        return {}
    bases: dict[str, str] = {}
    for name, folder in FOLDERS.items():
        if name not in environ:
            continue
        uri = environ[name]
        try:
            base, _, last = checked_bucket(uri).rpartition("/")
            bucket, _, prefix = base.removeprefix(_SCHEME).partition("/")
            if not base.startswith(_SCHEME):
                raise ValueError("expected gs://bucket/folder")
            if last != folder:
                raise ValueError(f"expected the folder {folder} of a run")
            if not bucket or not prefix:
                raise ValueError(f"names a bucket alone, and {folder} in it: the run would have no name")
        except ValueError as error:
            problems.append(f"{name}={redacted_value(uri)!r}: {error}; {HINT}")
        else:
            bases[name] = base
    if len(set(bases.values())) > 1:
        listed = ", ".join(f"{name}={environ[name]}" for name in bases)
        problems.append(redacted_value(f"{listed}: are not folders of one run; {HINT}"))
    if problems:
        return {}
    path = PurePosixPath(bases["AIP_MODEL_DIR"].removeprefix(_SCHEME))
    values = {"storage_uri": f"{_SCHEME}{path.parent}", "run_id": path.name}
    return {field: Given(value, "Vertex AI", f"AIP_MODEL_DIR, {variable(field)}") for field, value in values.items()}
