"""An overlay -> the manifests of one run, on standard output: `python -m k8s.render OVERLAY`.

A run is one Job or CronJob and the ConfigMap of its settings, and nothing else, so that deleting it deletes no more.
With several workers there is also the policy by which the pods of this run reach each other (k8s/workers.py).
A sweep is many runs in one Job, and has a ConfigMap of their rows too (k8s/sweep.py).
What all runs of a namespace share (account, policies, claim) is in the overlay's folder `shared`; `--shared` prints it.
`--deploy` prints both, and refuses the examples of this repository, which are no place of anyone.

Kustomize renders; this adds what it cannot know. The settings in the ConfigMap are read as the program would read
them, so a wrong one is refused here and not in the cluster. Job and ConfigMap are then named by the run: the pod
template of a Job can never change, so another run must be another Job, and the same run must be the same one. The
caller's environment has no effect. A CronJob keeps its name: its template may change, and each slot is its own run.

On a schedule there are a Job and a CronJob without a template until the end, so that whatever an overlay or a component
does to the Job holds on a schedule too. Only then does the Job become the template.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from job.errors import ExitCode, InvalidSettings, ThawError
from job.settings.environment import read_settings
from job.settings.fields import variable
from job.settings.settings import Settings
from k8s import sweep
from k8s.pods import (
    CannotRender,
    Manifest,
    add_labels,
    complete,
    config_map,
    container_of,
    job_spec_of,
    literals,
    of_kind,
    pod_of,
    template_of,
)
from k8s.targets import without_target
from k8s.workers import (
    AROUND_A_JOB,
    INSTANCE,
    RUNTIME,
    as_runtime,
    count_as_setting,
    is_indexed,
    is_of_one_run,
    scale,
    select,
    wrapped,
)

OVERLAYS = Path(__file__).parent / "overlays"
RUN_ID, WORKERS = variable("run_id"), variable("workers")
SHARED = "shared"
COMPONENT = "app.kubernetes.io/component"
"""The label that tells what runs share from a run, which has `training` from the base."""
SERVERS = (
    *("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    *("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
)
"""With another value of these, the same URI is another place."""
_EXAMPLES = (
    r"example\.(?:com|net|org)(?!\.\w)",
    "example-project",
    "arn:aws:iam::123456789012:role",
    "00000000-0000-0000-0000-000000000000",
)
EXAMPLE = re.compile(rf"[\w.:/@-]*(?<![\w-])(?:{'|'.join(_EXAMPLES)})(?![\w-])[\w.:/@-]*")
"""A registry, bucket or account in the domains that are reserved for examples, in the project of ours, or in the one of
AWS's own examples; or a client id of zeros."""


def main(argv: Sequence[str]) -> int:
    """Print the manifests of the overlay that `argv` names; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m k8s.render", description="Print the manifests of one run.")
    parser.add_argument("overlay", help="name of a folder in k8s/overlays, or path of any other")
    parser.add_argument("--run-id", help=f"{RUN_ID} of this run, in place of the overlay's", default=None)
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--shared", help="print what all runs of a namespace share instead", action="store_true")
    part.add_argument("--deploy", help="print what runs share and then the run; refuse examples", action="store_true")
    arguments = parser.parse_args(argv)
    if arguments.shared and arguments.run_id is not None:
        parser.error("argument --run-id: not allowed with argument --shared")
    try:
        folder = folder_of(arguments.overlay)
        manifests = shared_by_runs(folder) if arguments.shared or arguments.deploy else []
        if not arguments.shared:
            manifests += of_one_run(kustomize(folder), arguments.run_id)
        if examples := examples_in(manifests):
            problem = f"{folder} has examples in place of what is yours: {', '.join(examples)}"
            if arguments.deploy:
                raise CannotRender(problem, hint="name yours in an overlay: docs/kubernetes.md has one of a few lines")
            print(f"warning: {problem}; `make deploy` refuses them", file=sys.stderr)
        print(as_text(manifests), end="")
    except ThawError as error:
        print(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    return ExitCode.COMPLETE


def folder_of(overlay: str) -> Path:
    """The folder of an overlay, by name or by path. Raises CannotRender when there is none."""
    for folder in (OVERLAYS / overlay, Path(overlay)):
        if overlay and (folder / "kustomization.yaml").is_file():
            return folder
    names = ", ".join(sorted(path.parent.name for path in OVERLAYS.glob("*/kustomization.yaml")))
    raise CannotRender(f"{overlay!r} is no overlay: there are {names}", hint="make render OVERLAY=local")


def kustomize(folder: Path) -> list[Manifest]:
    """The manifests of a folder as Kustomize renders them, a Job beside a CronJob as its template.

    Raises CannotRender, also for a patch that changes nothing because there is no such manifest.
    """
    commands = (["kubectl", "kustomize"], ["kustomize", "build"])
    command = next((words for words in commands if shutil.which(words[0])), None)
    if command is None:
        raise CannotRender(
            "neither kubectl nor kustomize is there to render the manifests",
            hint="install kubectl 1.27 or newer; no cluster is needed to render",
        )
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        raise CannotRender(f"{' '.join(command)} {folder}: {done.stderr.strip()}")
    manifests = [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]
    if lost := without_target(folder, manifests):
        raise CannotRender(
            f"no manifest is the target of {'; '.join(lost)}: Kustomize leaves such a patch out without a word",
            hint="targets are matched by kind and name, and the Job is named `thaw`, on a schedule too",
        )
    return _on_schedule(manifests)


def _on_schedule(manifests: list[Manifest]) -> list[Manifest]:
    """The same manifests, with a Job that is beside a CronJob as the template of that CronJob. Raises CannotRender."""
    jobs, cron_jobs = of_kind(manifests, "Job"), of_kind(manifests, "CronJob")
    if len(cron_jobs) != 1 or len(jobs) > 1:
        return manifests
    (cron_job,) = cron_jobs
    if bool(jobs) == ("jobTemplate" in cron_job["spec"]):
        raise CannotRender(
            "a CronJob is rendered from the Job beside it, and this one has "
            + ("a `jobTemplate` too" if jobs else "neither a Job nor a `jobTemplate`"),
            hint="patch the Job, and leave `spec.jobTemplate` of the CronJob and `$patch: delete` of the Job out",
        )
    for job in jobs:
        metadata = {key: job["metadata"][key] for key in ("labels", "annotations") if key in job["metadata"]}
        cron_job["spec"]["jobTemplate"] = {"metadata": metadata, "spec": job["spec"]}
        add_labels(cron_job, job)
    return [manifest for manifest in manifests if manifest not in jobs]


def shared_by_runs(folder: Path) -> list[Manifest]:
    """The manifests of what all runs of a namespace share, for the overlay in `folder`. Raises CannotRender."""
    if not (folder / SHARED / "kustomization.yaml").is_file():
        raise CannotRender(
            f"{folder} has no folder {SHARED!r} with what all runs of its namespace share",
            hint=f"make {SHARED}/kustomization.yaml, with `resources: [.../overlays/gke/{SHARED}]` if nothing differs",
        )
    manifests = kustomize(folder / SHARED)
    if runtimes := of_kind(manifests, RUNTIME):
        manifests = _with_runtime(runtimes[0], manifests)
    for manifest in manifests:
        manifest["metadata"].setdefault("labels", {})[COMPONENT] = SHARED
    return manifests


def _with_runtime(runtime: Manifest, manifests: list[Manifest]) -> list[Manifest]:
    """The manifests with the Job among them as what the runtime starts. Raises CannotRender."""
    jobs = of_kind(manifests, "Job")
    if len(jobs) != 1:
        raise CannotRender(f"a {RUNTIME} is rendered from the one Job beside it, and there are {len(jobs)}")
    (job,) = jobs
    complete(job)
    config = _config_of(container_of(job), manifests)
    if _settled(job, config).fingerprint() != Settings().fingerprint():
        raise CannotRender(
            f"the settings beside a {RUNTIME} change the result, and would change it for every run",
            hint="set them in the overlay of the run",
        )
    used = [job, config, *filter(is_of_one_run, manifests)]
    as_runtime(runtime, job, config)
    return [manifest for manifest in manifests if manifest not in used]


def of_one_run(manifests: list[Manifest], run_id: str | None = None) -> list[Manifest]:
    """The same manifests, with settings that hold, named and labelled by their run.

    Raises InvalidSettings; CannotRender when there is not exactly one Job or CronJob, or anything but its settings, or
    when its image does not fit its resources, or its kind the number of workers.
    """
    workloads = of_kind(manifests, "Job", "CronJob")
    if len(workloads) != 1:
        raise CannotRender(f"an overlay is one Job or CronJob, and this one has {len(workloads)}")
    (workload,) = workloads
    complete(workload)
    container = container_of(workload)
    if _asks_for_gpu(container) and _is_for_cpus(container["image"]):
        raise CannotRender(
            f"the image {container['image']} has no libraries for a GPU, and this overlay asks for one",
            hint="add `components/gpu` in an overlay on top of this one, or name another tag in `images`",
        )
    config = _config_of(container, manifests)
    policies = list(filter(is_of_one_run, manifests))
    around = of_kind(manifests, *AROUND_A_JOB)[:1] if workload["kind"] == "Job" else []
    rows = sweep.rows_of(pod_of(workload), manifests)
    of_run = [workload, config, *([rows] if rows else []), *policies]
    others = [f"{it['kind']} {it['metadata']['name']}" for it in manifests if it not in (*of_run, *around)]
    if others:
        raise CannotRender(
            f"a run is a workload and its settings, and this overlay also has {', '.join(others)}",
            hint=f"what must stay when one run is deleted belongs in the overlay's folder {SHARED!r}",
        )
    if run_id is not None:
        config["data"][RUN_ID] = run_id
    if rows and around:
        raise CannotRender(f"a sweep is a Job, and this one is in a {around[0]['kind']}", hint="leave one of them out")
    if rows:
        runs = sweep.runs(container, config["data"], rows)
        sweep.fit(job_spec_of(workload), config, rows, num_rows=len(runs))
    else:
        runs = [_settled(workload, config)]
    if workload["kind"] == "CronJob":
        if RUN_ID in config["data"]:
            raise InvalidSettings(
                f"{RUN_ID}={config['data'][RUN_ID]!r}: each slot of a CronJob is a run of its own", hint="leave it out"
            )
        name = workload["metadata"]["name"]
        _label(name, workload["spec"]["jobTemplate"])
    else:
        variables = config["data"] | literals(container)
        servers = "".join(f"{variables[it]}\n" for it in SERVERS if it in variables)
        name = f"{workload['metadata']['name']}-{sweep.digests(runs, servers=servers, is_sweep=bool(rows))}"
        if rows:
            sweep.rename(pod_of(workload), rows, f"{name}-rows")
        else:
            config["data"][RUN_ID] = runs[0].resolved_run_id()
        for source in container["envFrom"]:
            source["configMapRef"]["name"] = name
        workload["metadata"]["name"] = config["metadata"]["name"] = name
    _label(name, *of_run, template_of(workload))
    if around:
        return wrapped(around[0], workload, config, policies)
    for policy in policies:
        select(policy, name)
    return manifests


def _settled(workload: Manifest, config: Manifest) -> Settings:
    """The settings, whose number of workers is now in all that has it. Raises InvalidSettings, CannotRender."""
    if is_indexed(workload):
        count_as_setting(workload, config)
    settings = settings_of(container_of(workload), config["data"])
    if is_indexed(workload):
        scale(workload, config, settings)
    elif settings.workers > 1:
        raise CannotRender(
            f"{WORKERS}={settings.workers}: the pods of this {workload['kind']} have no index to be workers by",
            hint="add `components/workers` in an overlay on top of this one",
        )
    return settings


def examples_in(manifests: list[Manifest]) -> list[str]:
    """The registries, buckets and accounts in these manifests that are only examples, sorted."""
    return sorted(set(EXAMPLE.findall(as_text(manifests))))


def as_text(manifests: list[Manifest]) -> str:
    """The manifests as YAML that Kubernetes reads as they are meant."""
    return yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Quotes what looks like a number: PyYAML 6 leaves the text 2e-3 bare, and Kubernetes reads that as a number."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    try:
        float(text)
    except ValueError:
        return dumper.represent_str(text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'")


_Dumper.add_representer(str, _represent_text)


def settings_of(container: Manifest, data: dict[str, str]) -> Settings:
    """The settings that the program will read in this container. Raises InvalidSettings."""
    return read_settings(data | literals(container))


def _asks_for_gpu(container: Manifest) -> bool:
    """For a whole one, a part of one (nvidia.com/mig-1g.10gb) or a shared one (nvidia.com/gpu.shared)."""
    return any(name.startswith("nvidia.com/") for name in container.get("resources", {}).get("limits", {}))


def _is_for_cpus(image: str) -> bool:
    """By its tag, as `make image` names it."""
    return image.partition("@")[0].endswith("-cpu")


def _label(instance: str, *manifests: Manifest) -> None:
    """Label what belongs to one run, so that it can be listed and deleted; what runs share has no such label."""
    for manifest in manifests:
        manifest.setdefault("metadata", {}).setdefault("labels", {})[INSTANCE] = instance


def _config_of(container: Manifest, manifests: list[Manifest]) -> Manifest:
    names = [source["configMapRef"]["name"] for source in container.get("envFrom", []) if "configMapRef" in source]
    return config_map(manifests, names, "the settings are one ConfigMap in `envFrom`")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
