"""The pods of a Job or CronJob: where a manifest has them, and what follows for them from what an overlay says."""

from collections.abc import Collection
from typing import Any

from job.errors import ThawError
from job.settings.fields import variable

Manifest = dict[str, Any]

WORK, WORK_BYTES = "work", variable("work_bytes")


class CannotRender(ThawError):
    """Kustomize is not there, or refuses the overlay; or what it renders is not a run."""


def complete(workload: Manifest) -> None:
    """Leave out what the server would drop, and tell the program how much it may write before its pod is evicted."""
    pod = pod_of(workload)
    if not pod.get("tolerations"):  # a list for components to add to; if it stayed, every apply would find it changed
        pod.pop("tolerations", None)
    container = container_of(workload)
    limits = [it["emptyDir"].get("sizeLimit") for it in pod["volumes"] if it["name"] == WORK and "emptyDir" in it]
    container["env"] = [entry for entry in container["env"] if entry["name"] != WORK_BYTES]
    container["env"] += [{"name": WORK_BYTES, "value": limit} for limit in limits if limit]


def template_of(workload: Manifest) -> Manifest:
    """The template of the pods of a Job or CronJob."""
    return job_spec_of(workload)["template"]  # type: ignore[no-any-return]


def job_spec_of(workload: Manifest) -> Manifest:
    """The specification of a Job, or of the Jobs of a CronJob."""
    job = workload["spec"]["jobTemplate"] if workload["kind"] == "CronJob" else workload
    return job["spec"]  # type: ignore[no-any-return]


def pod_of(workload: Manifest) -> Manifest:
    """The specification of the pods of a Job or CronJob."""
    return template_of(workload)["spec"]  # type: ignore[no-any-return]


def container_of(workload: Manifest) -> Manifest:
    """The one container of a Job or CronJob."""
    (container,) = pod_of(workload)["containers"]
    return container  # type: ignore[no-any-return]


def literals(container: Manifest) -> dict[str, str]:
    """The environment of a container, without what only the cluster knows (the downward API)."""
    return {entry["name"]: entry["value"] for entry in container.get("env", []) if "value" in entry}


def add_labels(manifest: Manifest, source: Manifest) -> None:
    """Give a manifest the labels of another, where it does not have them itself."""
    metadata = manifest.setdefault("metadata", {})
    metadata["labels"] = source["metadata"].get("labels", {}) | metadata.get("labels", {})


def of_kind(manifests: list[Manifest], *kinds: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] in kinds]


def config_map(manifests: list[Manifest], names: Collection[str], expected: str, *, hint: str = "") -> Manifest:
    """The one ConfigMap of these names. Raises CannotRender, with what was `expected`, unless there is exactly one."""
    found = [item for item in of_kind(manifests, "ConfigMap") if item["metadata"]["name"] in names]
    if len(found) != 1:
        raise CannotRender(f"{expected}, and there are {len(found)}", hint=hint)
    return found[0]
