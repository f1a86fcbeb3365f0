"""What people and controllers do with a running Job: suspend, end or forget it. The run goes on, with the same bits."""

from tests.e2e.cluster import Namespace, wait_for
from tests.e2e.conftest import Deploy, Finished, See
from tests.e2e.runs import Runs, name_of_job
from tests.e2e.test_disruption import assert_resumed_with_the_same_bits


def test_a_suspended_job_stops_and_resumes(
    namespace: Namespace, deploy: Deploy, undisturbed: Finished, see: See
) -> None:
    """As a queue does it for a Job of higher priority: no pod is left meanwhile, and none counts as a failure."""
    job = deploy("suspended")
    lost = namespace.wait_for_event(job, "epoch_finished", phase="fine_tune", epoch=0)
    namespace.kubectl("patch", "job", job, '--patch={"spec": {"suspend": true}}')
    wait_for("the end of its pod", lambda: None if namespace.pods(job) else True)
    namespace.kubectl("wait", "job", job, "--for=condition=Suspended", "--timeout=60s")
    assert namespace.pods(job) == []
    namespace.kubectl("patch", "job", job, '--patch={"spec": {"suspend": false}}')
    assert_resumed_with_the_same_bits(namespace, job, lost, undisturbed, see)


def test_a_job_past_its_deadline_fails_and_applied_again_goes_on(
    namespace: Namespace, deploy: Deploy, undisturbed: Finished, see: See
) -> None:
    """`activeDeadlineSeconds` ends the Job and not the run: what was committed stands."""
    job = deploy("overdue")
    lost = namespace.wait_for_event(job, "epoch_finished", phase="fine_tune", epoch=0)
    namespace.kubectl("patch", "job", job, '--patch={"spec": {"activeDeadlineSeconds": 1}}')
    condition = namespace.wait_for_end(job)
    assert (condition["type"], condition["reason"]) == ("Failed", "DeadlineExceeded")
    namespace.kubectl("delete", "job", job)
    assert deploy("overdue") == job
    see(f"Failed, {condition['reason']}")
    assert_resumed_with_the_same_bits(namespace, job, lost, undisturbed, see)


def test_a_job_waits_for_the_pod_that_another_left_and_has_its_result(
    namespace: Namespace, runs: Runs, see: See
) -> None:
    """Deleted with `--cascade=orphan` and applied again, a Job has a new uid, and the pod of the old one trains on."""
    waiting = {"THAW_LEASE_SECONDS": "5", "THAW_WAIT_SECONDS": "600"}
    manifests = runs.render("orphaned", {"THAW_FINE_TUNE_EPOCHS": "15", **waiting})
    job = name_of_job(manifests)
    namespace.apply(manifests)
    orphan = namespace.wait_for_event(job, "epoch_finished", phase="fine_tune", epoch=0)
    namespace.kubectl("delete", "job", job, "--cascade=orphan")
    try:
        namespace.apply(manifests)
        waits = namespace.wait_for_event(job, "waiting")
        assert waits != orphan
        condition = namespace.wait_for_end(job)
        log = namespace.log(waits)
        assert condition["type"] == "Complete", log
        assert {pod["metadata"]["name"] for pod in namespace.pods(job)} == {orphan, waits}
        assert namespace.terminated(orphan)["exitCode"] == 0
        outcome = namespace.log(orphan)[-1]
        assert outcome["event"] == "run_finished"
        assert (log[-1]["event"], log[-1]["model_sha256"]) == ("run_already_done", outcome["model_sha256"])
        see(f"the one pod of the second Job logged {' then '.join(dict.fromkeys(line['event'] for line in log))}")
    finally:
        namespace.kubectl("delete", "job", job, "--ignore-not-found")
        namespace.kubectl("delete", "pod", orphan, "--ignore-not-found")


def test_a_pod_deleted_in_its_first_second_is_replaced(
    namespace: Namespace, deploy: Deploy, undisturbed: Finished, see: See
) -> None:
    """With one second to end: Python may not have begun, and the first process passes the signal on."""
    job = deploy("deleted-at-once")

    def begun() -> str | None:
        pod = namespace.newest_pod(job)
        statuses = namespace.get("pod", pod)["status"].get("containerStatuses", []) if pod else []
        return pod if any("running" in status["state"] for status in statuses) else None

    lost = wait_for("a container that runs", begun)
    namespace.kubectl("delete", "pod", lost, "--grace-period=1", "--wait=false")
    condition = namespace.wait_for_end(job)
    (pod,) = [it["metadata"]["name"] for it in namespace.pods(job) if it["metadata"]["name"] != lost]
    log = namespace.log(pod)
    assert condition["type"] == "Complete", log
    assert log[-1]["model_sha256"] == undisturbed.outcome["model_sha256"]
    (claimed,) = [line for line in log if line["event"] == "run_claimed"]
    see(f"the next pod was attempt {claimed['attempt']}; same digest {log[-1]['model_sha256'][:12]}")
