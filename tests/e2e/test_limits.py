"""What a node and a store take from a run that goes too far: its volume, its memory, its rights."""

import json
from typing import Any

import pytest

from job.errors import ExitCode
from k8s.render import Manifest
from tests.e2e.cluster import Event, Namespace, wait_for
from tests.e2e.conftest import Deploy, Finished, See
from tests.e2e.runs import patch_of_container, patch_of_job
from tests.e2e.test_disruption import assert_resumed_with_the_same_bits

FILL = "import os; os.posix_fallocate(os.open('/work/more', os.O_CREAT | os.O_WRONLY), 0, 1100 * 2**20)"
"""More than the limit of the volume `work` in overlays/local."""


def test_a_pod_evicted_for_its_own_volume_counts_as_a_failure_and_is_replaced(
    namespace: Namespace, deploy: Deploy, undisturbed: Finished, see: See
) -> None:
    """The kubelet evicts it without the condition DisruptionTarget. It looks every ten seconds at the earliest, so the
    program is halted meanwhile."""
    job = deploy("overfull")
    lost = namespace.wait_for_event(job, "epoch_finished", phase="fine_tune", epoch=0)
    namespace.signal(lost, "SIGSTOP")
    namespace.run(lost, "python", "-c", FILL)

    def evicted() -> dict[str, Any] | None:
        status = dict(namespace.get("pod", lost)["status"])
        return status if status["phase"] == "Failed" else None

    status = wait_for(f"the eviction of {lost}", evicted)
    assert status["reason"] == "Evicted"
    assert 'emptydir volume "work"' in status["message"].lower()
    assert "DisruptionTarget" not in {condition["type"] for condition in status["conditions"]}
    see(status["message"])
    assert_resumed_with_the_same_bits(namespace, job, lost, undisturbed, see)
    assert namespace.get("job", job)["status"]["failed"] == 1


SMALL_VOLUME = patch_of_job({"template": {"spec": {"volumes": [{"name": "work", "emptyDir": {"sizeLimit": "1Mi"}}]}}})


def test_a_run_that_does_not_fit_into_its_volume_fails_before_it_is_evicted(
    undisturbed: Finished, namespace: Namespace, deploy: Deploy, see: See
) -> None:
    """The manifest tells the program the limit of the volume; the Job fails with its first pod, and not after a day."""
    job = deploy("too-large", patches=(SMALL_VOLUME,))
    condition = namespace.wait_for_end(job)
    (pod,) = namespace.pods(job)
    assert "reason" not in pod["status"], "evicted"
    end = namespace.terminated(pod["metadata"]["name"])
    message = json.loads(end["message"])
    assert (condition["type"], condition["reason"]) == ("Failed", "PodFailurePolicy"), message
    assert end["exitCode"] == message["exit_code"] == ExitCode.BAD_INPUT
    assert "THAW_WORK_BYTES" in message["reason"]
    see(f"exit {end['exitCode']}, {message['reason']!r}")


TOO_LITTLE = {"memory": "300Mi"}
KILLED_FOR_MEMORY = (
    patch_of_job({"backoffLimit": 1}),
    patch_of_container(resources={"requests": TOO_LITTLE, "limits": TOO_LITTLE}),
)


def test_killed_for_memory_until_no_retry_is_left_it_goes_on_with_more(
    namespace: Namespace, deploy: Deploy, undisturbed: Finished, see: See
) -> None:
    """Each kill counts, and the next attempt tells of it. The Job of the same run with another limit goes on."""
    job = deploy("starved", patches=KILLED_FOR_MEMORY)
    condition = namespace.wait_for_end(job)
    assert (condition["type"], condition["reason"]) == ("Failed", "BackoffLimitExceeded")
    pods = namespace.pods(job)
    ends = [namespace.terminated(pod["metadata"]["name"]) for pod in pods]
    assert [(end["reason"], end["exitCode"]) for end in ends] == [("OOMKilled", 137)] * 2
    said = [_killed(namespace, pod) for pod in pods]
    assert said[0] is None
    assert said[1] is not None
    assert said[1]["in_a_row"] == 1
    assert said[1]["memory_limit_bytes"] == 300 * 2**20
    see(f"{len(ends)} pods with {TOO_LITTLE['memory']}: OOMKilled; {condition['reason']}")
    namespace.kubectl("delete", "job", job)
    assert deploy("starved") == job
    assert namespace.wait_for_end(job)["type"] == "Complete"
    (pod,) = namespace.pods(job)
    killed = _killed(namespace, pod)
    assert killed is not None
    assert (killed["attempt"], killed["in_a_row"]) == (2, 2)
    assert "THAW_MICROBATCH_SIZE" in killed["hint"]
    outcome = namespace.log(pod["metadata"]["name"])[-1]
    assert outcome["model_sha256"] == undisturbed.outcome["model_sha256"]
    see(f"attempt 3, with 2Gi: {killed['reason']!r}; same digest {outcome['model_sha256'][:12]}")


def _killed(namespace: Namespace, pod: Manifest) -> Event | None:
    """What a pod says of the attempt before it, if that was killed."""
    log = namespace.log(pod["metadata"]["name"])
    return next((line for line in log if line["event"] == "previous_attempt_killed"), None)


READ_ONLY = patch_of_container(volumeMounts=[{"name": "runs", "mountPath": "/runs", "readOnly": True}])
DENIED: dict[str, tuple[dict[str, str], tuple[dict[str, Any], ...]]] = {
    "folder-of-root": ({"THAW_STORAGE_URI": "file:///root/runs"}, ()),
    "volume-read-only": ({}, (READ_ONLY,)),
}


@pytest.mark.parametrize("run_id", DENIED)
def test_a_store_that_denies_writing_is_not_tried_again(
    run_id: str, undisturbed: Finished, namespace: Namespace, deploy: Deploy, see: See
) -> None:
    """The Job fails with its first pod, whose message names the place."""
    settings, patches = DENIED[run_id]
    job = deploy(run_id, settings, patches=patches)
    condition = namespace.wait_for_end(job)
    (pod,) = namespace.pods(job)
    end = namespace.terminated(pod["metadata"]["name"])
    message = json.loads(end["message"])
    assert (condition["type"], condition["reason"]) == ("Failed", "PodFailurePolicy"), message
    assert end["exitCode"] == message["exit_code"] == ExitCode.BAD_INPUT
    see(f"exit {end['exitCode']}, {message['reason']!r}")
