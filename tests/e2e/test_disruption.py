"""A pod can be lost for many reasons. The next one continues, and the result has the same bits."""

import json

import pytest

from tests.e2e.cluster import Namespace, kubectl, seconds_until
from tests.e2e.conftest import Deploy, Finished, See


def delete(namespace: Namespace, pod: str) -> None:
    namespace.kubectl("delete", "pod", pod, "--wait=false")


def delete_by_force(namespace: Namespace, pod: str) -> None:
    """The server forgets it at once; on its node it has a moment left, in which another may already have begun."""
    namespace.kubectl("delete", "pod", pod, "--grace-period=0", "--force", "--wait=false")


def evict(namespace: Namespace, pod: str) -> None:
    """Through the Eviction API, as drains and autoscalers do; the Job does not count it as a failure."""
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
    path = f"/api/v1/namespaces/{namespace.name}/pods/{pod}/eviction"
    kubectl("create", "--raw", path, "--filename=-", stdin=json.dumps(eviction))


def assert_resumed_with_the_same_bits(
    namespace: Namespace, job: str, lost: str, undisturbed: Finished, see: See, *, phase: str = "fine_tune"
) -> None:
    """The Job completes in another pod, which continues in the phase in which the first was lost."""
    condition = namespace.wait_for_end(job)
    pod = namespace.pods(job)[-1]
    assert pod["metadata"]["name"] != lost
    log = namespace.log(pod["metadata"]["name"])
    assert condition["type"] == "Complete", log
    assert log[-1]["model_sha256"] == undisturbed.outcome["model_sha256"]
    claimed = next(line for line in log if line["event"] == "run_claimed")
    assert (claimed["attempt"], claimed["state"]) == (2, phase)
    restored = [line["step"] for line in log if line["event"] == "restored"]
    assert all(step > 0 for step in restored)
    assert bool(restored) == (phase != "prepare")
    see(f"attempt 2 restored step {restored[0]} of {phase}" if restored else "attempt 2 started from the beginning")
    see(f"same digest {log[-1]['model_sha256'][:12]}")
    see(f"first step {seconds_until('step_compiled', pod=pod, log=log):.0f} s after the pod had a node")
    failed = namespace.get("job", job)["status"].get("failed", 0)
    see(f"{failed} of the pods counted as a failure")


LOSSES = {
    "deleted-in-prepare": ("prepare", delete),
    "deleted-in-head": ("head", delete),
    "deleted-in-fine-tune": ("fine_tune", delete),
    "deleted-by-force": ("fine_tune", delete_by_force),
    "evicted": ("fine_tune", evict),
}


@pytest.mark.parametrize("run_id", LOSSES)
def test_a_lost_pod_is_replaced(
    run_id: str, namespace: Namespace, deploy: Deploy, undisturbed: Finished, see: See
) -> None:
    """While TensorFlow is imported and data is read, or in the second epoch of a phase."""
    phase, lose = LOSSES[run_id]
    job = deploy(run_id)
    if phase == "prepare":
        lost = namespace.wait_for_event(job, "run_claimed")
    else:
        lost = namespace.wait_for_event(job, "epoch_finished", phase=phase, epoch=0)
    lose(namespace, lost)
    assert_resumed_with_the_same_bits(namespace, job, lost, undisturbed, see, phase=phase)


def test_a_pod_on_a_drained_node_is_replaced(
    namespace: Namespace, deploy: Deploy, undisturbed: Finished, see: See
) -> None:
    """Its node is cordoned, drained of this pod alone, and may be used again later."""
    job = deploy("drained")
    lost = namespace.wait_for_event(job, "epoch_finished", phase="fine_tune", epoch=0)
    node = namespace.get("pod", lost)["spec"]["nodeName"]
    try:
        selector = f"--pod-selector=batch.kubernetes.io/job-name={job}"
        kubectl("drain", node, selector, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s")
        assert kubectl("get", "node", node, "--output=jsonpath={.spec.unschedulable}") == "true"
    finally:
        kubectl("uncordon", node)
    assert_resumed_with_the_same_bits(namespace, job, lost, undisturbed, see)
