"""Pods go for all kinds of reasons. The next one carries on, and the result has the same bits."""

import json

import pytest

from tests.e2e.cluster import Namespace, kubectl
from tests.e2e.conftest import Deploy, Finished, See

PHASES = ("head", "fine_tune")


def assert_resumed_with_the_same_bits(
    namespace: Namespace, job: str, lost: str, undisturbed: Finished, see: See
) -> None:
    """The Job completes in another pod, which carries on and does not begin again."""
    condition = namespace.wait_for_end(job)
    pod = namespace.newest_pod(job)
    assert pod is not None
    assert pod != lost
    log = namespace.log(pod)
    assert condition["type"] == "Complete", log
    assert log[-1]["model_sha256"] == undisturbed.outcome["model_sha256"]
    claimed = next(line for line in log if line["event"] == "run_claimed")
    assert claimed["attempt"] == 2
    see(f"attempt 2 began in {claimed['state']!r}; same digest {log[-1]['model_sha256'][:12]}")
    failed = namespace.get("job", job)["status"].get("failed", 0)
    see(f"{failed} counted as failed")


def test_a_pod_deleted_before_training_is_replaced(
    namespace: Namespace, deploy: Deploy, undisturbed: Finished, see: See
) -> None:
    """While TensorFlow is imported and the data is read."""
    job = deploy("deleted-in-prepare")
    lost = namespace.wait_for_event(job, "run_claimed")
    namespace.kubectl("delete", "pod", lost, "--wait=false")
    assert_resumed_with_the_same_bits(namespace, job, lost, undisturbed, see)


@pytest.mark.parametrize("phase", PHASES)
def test_a_pod_deleted_in_the_middle_of_a_phase_is_replaced(
    phase: str, namespace: Namespace, deploy: Deploy, undisturbed: Finished, see: See
) -> None:
    """After the first epoch of it, on the way through the second."""
    job = deploy(f"deleted-in-{phase.replace('_', '-')}")
    lost = namespace.wait_for_event(job, "epoch_finished", phase=phase, epoch=0)
    namespace.kubectl("delete", "pod", lost, "--wait=false")
    assert_resumed_with_the_same_bits(namespace, job, lost, undisturbed, see)


def test_a_pod_killed_without_a_warning_is_replaced(
    namespace: Namespace, deploy: Deploy, undisturbed: Finished, see: See
) -> None:
    """No SIGTERM, no commit on the way out: the last commit stands."""
    job = deploy("killed")
    lost = namespace.wait_for_event(job, "epoch_finished", phase="fine_tune", epoch=0)
    namespace.kubectl("delete", "pod", lost, "--grace-period=0", "--force", "--wait=false")
    assert_resumed_with_the_same_bits(namespace, job, lost, undisturbed, see)


def test_an_evicted_pod_is_replaced(namespace: Namespace, deploy: Deploy, undisturbed: Finished, see: See) -> None:
    """Through the Eviction API, as drains and autoscalers do; the Job does not count it as a failure."""
    job = deploy("evicted")
    lost = namespace.wait_for_event(job, "epoch_finished", phase="fine_tune", epoch=0)
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": lost}}
    path = f"/api/v1/namespaces/{namespace.name}/pods/{lost}/eviction"
    kubectl("create", "--raw", path, "--filename=-", stdin=json.dumps(eviction))
    assert_resumed_with_the_same_bits(namespace, job, lost, undisturbed, see)


def test_a_pod_on_a_drained_node_is_replaced(
    namespace: Namespace, deploy: Deploy, undisturbed: Finished, see: See
) -> None:
    """Its node is cordoned and drained, of this pod alone, and may be used again later."""
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
