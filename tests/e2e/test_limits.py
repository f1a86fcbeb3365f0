"""What a node and a store take from a run that goes too far: its volume, its memory, its rights."""

import json
from typing import Any

import pytest

from job.errors import ExitCode
from tests.e2e.cluster import Namespace, wait_for
from tests.e2e.conftest import Deploy, Finished, See
from tests.e2e.runs import LONG, patch_of_container, patch_of_job
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
    namespace.python(lost, FILL)

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


TOO_LITTLE = {"memory": "300Mi"}
KILLED_FOR_MEMORY = (
    patch_of_job({"backoffLimit": 1}),
    patch_of_container(resources={"requests": TOO_LITTLE, "limits": TOO_LITTLE}),
)


def test_killed_for_memory_until_no_retry_is_left_it_goes_on_with_more(
    namespace: Namespace, deploy: Deploy, undisturbed: Finished, see: See
) -> None:
    """Each kill counts. The Job of the same run with another limit continues."""
    job = deploy("starved", patches=KILLED_FOR_MEMORY)
    condition = namespace.wait_for_end(job)
    assert (condition["type"], condition["reason"]) == ("Failed", "BackoffLimitExceeded")
    pods = namespace.pods(job)
    ends = [namespace.terminated(pod["metadata"]["name"]) for pod in pods]
    assert [(end["reason"], end["exitCode"]) for end in ends] == [("OOMKilled", 137)] * 2
    see(f"{len(ends)} pods with {TOO_LITTLE['memory']}: OOMKilled; {condition['reason']}")
    namespace.kubectl("delete", "job", job)
    assert deploy("starved") == job
    assert namespace.wait_for_end(job)["type"] == "Complete"
    (pod,) = namespace.pods(job)
    outcome = namespace.log(pod["metadata"]["name"])[-1]
    assert outcome["model_sha256"] == undisturbed.outcome["model_sha256"]
    see(f"with 2Gi: same digest {outcome['model_sha256'][:12]}")


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


def test_the_program_can_write_to_its_volumes_only(namespace: Namespace, deploy: Deploy, see: See) -> None:
    """A shell in the container has no more: the root file system is read-only, and the user is not root."""
    job = deploy("read-only", LONG)
    pod = namespace.wait_for_event(job, "run_claimed")
    found = json.loads(namespace.python(pod, WRITE))
    denied, written = ({place for place, error in found["places"].items() if bool(error) is it} for it in (True, False))
    assert denied == {"/", "/app", "/opt/venv", "/tmp", "/etc"}
    assert written == {"/work", "/runs"}
    assert found["user"] == 65532
    see(f"user {found['user']} writes to {', '.join(sorted(written))} and not to {', '.join(sorted(denied))}")


WRITE = """
import json, os, tempfile
def error(place):
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        return error.strerror
places = ("/", "/app", "/opt/venv", "/tmp", "/etc", "/work", "/runs")
print(json.dumps({"user": os.getuid(), "places": {place: error(place) for place in places}}))
"""
