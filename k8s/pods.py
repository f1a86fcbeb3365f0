"""What follows for the pods of a run from what its overlay says of them."""

from typing import Any

from job.settings.fields import variable

Manifest = dict[str, Any]

WORK, WORK_BYTES = "work", variable("work_bytes")


def complete(pod: Manifest) -> None:
    """Leave out what the server would drop, and tell the program how much it may write before its pod is evicted."""
    if not pod.get("tolerations"):  # a list for components to add to; if it stayed, every apply would find it changed
        pod.pop("tolerations", None)
    (container,) = pod["containers"]
    limits = [it["emptyDir"].get("sizeLimit") for it in pod["volumes"] if it["name"] == WORK and "emptyDir" in it]
    container["env"] = [entry for entry in container["env"] if entry["name"] != WORK_BYTES]
    container["env"] += [{"name": WORK_BYTES, "value": limit} for limit in limits if limit]
