"""A volume for the claim of `components/pvc-store`: the cluster's own, or a folder of a node where it makes none."""

import contextlib
import json
from collections.abc import Iterator

from k8s.render import Manifest
from tests.e2e.cluster import Namespace, get, kubectl, wait_for

CLAIM = "thaw-runs"
PARENT = "/var/tmp"
IS_DEFAULT = "storageclass.kubernetes.io/is-default-class"


@contextlib.contextmanager
def volume_for(namespace: Namespace, *, image: str) -> Iterator[None]:
    """See to it that the claim in a namespace will be bound.

    Where no StorageClass is the default, a pod makes a folder on a node, and another removes it afterwards. They run as
    root, so they are in a namespace beside. The volume is a `local` one: Kubernetes gives it to the group of the pod
    that mounts it, as it does with a disk, and would not do with a `hostPath`.
    """
    classes = get("storageclasses")["items"]
    if any(it["metadata"].get("annotations", {}).get(IS_DEFAULT) == "true" for it in classes):
        yield
        return
    beside, folder = Namespace(f"{namespace.name}-storage"), f"{PARENT}/{namespace.name}"
    beside.kubectl("create", "namespace", beside.name)
    try:
        node = _as_root(beside, "make", command=["mkdir", folder], image=image)
        try:
            kubectl("apply", "--filename=-", stdin=json.dumps(_local_volume(namespace.name, folder=folder, node=node)))
            yield
        finally:
            _as_root(beside, "remove", command=["rm", "-r", folder], image=image, node=node)
    finally:
        kubectl("delete", "persistentvolume", namespace.name, "--ignore-not-found", "--wait=false")
        kubectl("delete", "namespace", beside.name, "--wait=false")


def _as_root(namespace: Namespace, name: str, *, command: list[str], image: str, node: str | None = None) -> str:
    """Run a command with a node's PARENT in its place; returns the name of the node."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "nodeName": node,
            "containers": [
                {
                    "name": name,
                    "image": image,
                    "command": command,
                    "securityContext": {"runAsUser": 0, "runAsGroup": 0},
                    "volumeMounts": [{"name": "parent", "mountPath": PARENT}],
                }
            ],
            "volumes": [{"name": "parent", "hostPath": {"path": PARENT, "type": "Directory"}}],
        },
    }
    namespace.apply([pod])

    def finished() -> Manifest | None:
        found = namespace.get("pod", name)
        return found if found["status"]["phase"] in ("Succeeded", "Failed") else None

    found = wait_for(f"the end of pod {name}", finished)
    assert found["status"]["phase"] == "Succeeded", found["status"]
    return str(found["spec"]["nodeName"])


def _local_volume(namespace: str, *, folder: str, node: str) -> Manifest:
    on_node = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": namespace},
        "spec": {
            "capacity": {"storage": "5Gi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": folder},
            "claimRef": {"namespace": namespace, "name": CLAIM},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [on_node]}]}},
        },
    }
