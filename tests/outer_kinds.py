"""JobSet and Kubeflow Trainer: the fields in use, by hand from their API, and the parts that Kubernetes knows."""

from typing import Any

from k8s.render import Manifest

RUNTIME = "ClusterTrainingRuntime"
API_VERSIONS = {
    "JobSet": "jobset.x-k8s.io/v1alpha2",
    "TrainJob": "trainer.kubeflow.org/v1alpha1",
    RUNTIME: "trainer.kubeflow.org/v1alpha1",
}


def parts_of(manifest: Manifest) -> list[Manifest]:
    """The Job or Pod inside, for a validator that knows those. Fails at a field that is not among those below."""
    spec = manifest["spec"]
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    assert manifest["apiVersion"] == API_VERSIONS[manifest["kind"]]
    if manifest["kind"] == "TrainJob":
        return [_pod_of_trainer(spec)]
    if manifest["kind"] == RUNTIME:
        _has_only(spec, "mlPolicy", "template")
        _has_only(spec["mlPolicy"], "numNodes")
        _has_only(spec["template"], "spec")
        spec = spec["template"]["spec"]
    _has_only(spec, "network", "failurePolicy", "replicatedJobs", "ttlSecondsAfterFinished")
    _has_only(spec.get("network", {}), "enableDNSHostnames", "publishNotReadyAddresses")
    _has_only(spec["failurePolicy"], "maxRestarts")
    (replicated,) = spec["replicatedJobs"]
    _has_only(replicated, "name", "replicas", "template")
    _has_only(replicated["template"], "metadata", "spec")
    return [{"apiVersion": "batch/v1", "kind": "Job", **replicated["template"]}]


def _pod_of_trainer(spec: Any) -> Manifest:
    _has_only(spec, "runtimeRef", "trainer")
    _has_only(spec["runtimeRef"], "apiGroup", "kind", "name")
    trainer = spec["trainer"]
    _has_only(trainer, "image", "numNodes", "env", "resourcesPerNode")
    assert isinstance(trainer["numNodes"], int)
    names = [entry["name"] for entry in trainer["env"]]
    assert len(names) == len(set(names)) <= 128
    container = {"name": "node", "image": trainer["image"], "env": trainer["env"]}
    containers = [container | {"resources": trainer["resourcesPerNode"]}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "node"}, "spec": {"containers": containers}}


def _has_only(fields: Any, *known: str) -> None:
    assert set(fields) <= set(known), f"{sorted(set(fields) - set(known))} beside {known}"
