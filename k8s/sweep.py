"""A sweep: the Job whose pods each take a row of settings by their index.

The rows are a ConfigMap beside that of the settings, mounted as the file that THAW_SWEEP names. They are read here as
the program would read them, so that a wrong row never reaches the cluster.
"""

import hashlib
from pathlib import PurePosixPath

from job.errors import InvalidSettings
from job.settings import environment, sweep
from job.settings.fields import variable
from job.settings.settings import Settings
from k8s.pods import Manifest, add_labels, config_map, literals

SWEEP, RUN_ID = variable("sweep"), variable("run_id")


def rows_of(pod: Manifest, manifests: list[Manifest]) -> Manifest | None:
    """The ConfigMap of the rows, which a pod of a sweep mounts; None when it is none. Raises CannotRender."""
    (container,) = pod["containers"]
    if not any(entry["name"] == SWEEP for entry in container.get("env", [])):
        return None
    mounted = [volume["configMap"]["name"] for volume in pod.get("volumes", []) if "configMap" in volume]
    return config_map(
        manifests,
        mounted,
        "the rows of a sweep are one ConfigMap that its pods mount",
        hint="in the overlay: configMapGenerator: [{name: thaw-sweep, files: [rows]}]",
    )


def runs(container: Manifest, data: dict[str, str], rows: Manifest) -> list[Settings]:
    """The settings of each row, as the program will read them. Raises InvalidSettings with every problem."""
    variables = data | literals(container)
    # The controller gives each slot of a schedule a name.
    is_named_later = any(entry["name"] == RUN_ID and "valueFrom" in entry for entry in container["env"])
    problems: list[str] = []
    common = environment.from_environment(variables, problems)
    if sweep.has_workers(common):
        problems.append(
            f"{variable('workers')}={common['workers'].value}: the index of a pod is that of its row, and cannot be "
            "that of a worker too: leave out `components/workers`, or `components/sweep`"
        )
    name = PurePosixPath(variables[SWEEP]).name
    found = sweep.rows(rows.get("data", {}).get(name, ""), name, problems)
    for number, row in enumerate(found):
        if is_named_later and "run_id" in row:
            problems.append(f"row {number}: {row['run_id'].name}: each slot of a CronJob is a run of its own")
    made = [] if problems else sweep.runs(common, found, problems)
    environment.validated(Settings, common, problems)
    if problems:
        raise InvalidSettings(environment.message_of(problems), hint="docs/sweeps.md has the rules for rows")
    return [run.settings for run in made if run is not None]


def fit(job: Manifest, config: Manifest, rows: Manifest, *, num_rows: int) -> None:
    """Write the number of rows into the spec of the Job, and label the rows as the settings are."""
    job["completions"] = num_rows
    job["parallelism"] = min(job["parallelism"], num_rows)
    add_labels(rows, config)


def rename(pod: Manifest, rows: Manifest, name: str) -> None:
    """Name the ConfigMap of the rows, and where it is mounted."""
    for volume in pod["volumes"]:
        if volume.get("configMap", {}).get("name") == rows["metadata"]["name"]:
            volume["configMap"]["name"] = name
    rows["metadata"]["name"] = name


def digests(made: list[Settings], *, servers: str, is_sweep: bool) -> str:
    """Twelve and six hexadecimal digits: the fingerprint, and one over store and run id.

    `servers` says of the store what its URI leaves open. Of the runs of a sweep each is over all of them, so that other
    rows are another Job.
    """
    prints = [settings.fingerprint() for settings in made]
    fingerprint = hashlib.sha256("".join(prints).encode()).hexdigest()[:12] if is_sweep else prints[0]
    places = "\n".join(f"{settings.storage_uri}/{settings.resolved_run_id()}" for settings in made)
    return f"{fingerprint}-{hashlib.sha256((servers + places).encode()).hexdigest()[:6]}"
