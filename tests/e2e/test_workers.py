"""Three pods share a run. Whichever is lost, all begin again from the last commit, and the result is the same."""

import json
from dataclasses import dataclass

import pytest

from job.errors import ExitCode
from k8s.render import Manifest
from tests.e2e.cluster import Event, Namespace, kubectl, wait_for
from tests.e2e.conftest import Deploy, Finished, See
from tests.e2e.runs import LONG, Runs, name_of_job, named
from tests.e2e.test_disruption import delete, delete_by_force, evict

WORKERS = 3
SETTINGS = {"THAW_WORKERS": str(WORKERS)}
COMPONENTS = ("workers",)
COSTS_NO_RETRY = {ExitCode.INTERRUPTED, ExitCode.PEER_LOST}
KILLED = 137


@dataclass(frozen=True)
class Shared:
    """A complete Job of several workers: its pods by worker, and the log of worker 0."""

    pods: list[Manifest]
    log: list[Event]

    @property
    def outcome(self) -> Event:
        return self.log[-1]


@pytest.fixture(scope="module")
def undisturbed_workers(namespace: Namespace, runs: Runs) -> Shared:
    """The run of three workers, in one go. They prepare the data at the same time, in one place."""
    settings = SETTINGS | {"THAW_DATA_DIR": "/runs/data-of-three"}
    manifests = runs.render("three-workers", settings, components=COMPONENTS)
    namespace.apply(manifests)
    job = name_of_job(manifests)
    condition = namespace.wait_for_end(job)
    pods = namespace.pods(job)
    (leader,) = namespace.pods(job, 0)
    log = namespace.log(leader["metadata"]["name"])
    assert condition["type"] == "Complete", log
    return Shared(pods, log)


def exit_codes(namespace: Namespace, job: str) -> dict[str, int]:
    """Of the pods that have ended and were not deleted."""
    ended = {}
    for pod in namespace.pods(job):
        for status in pod["status"].get("containerStatuses", []):
            if "terminated" in status["state"]:
                ended[pod["metadata"]["name"]] = status["state"]["terminated"]["exitCode"]
    return ended


def kill(namespace: Namespace, pod: str) -> None:
    """As the kernel does for memory."""
    namespace.signal(pod, "SIGKILL")


def assert_carried_on(
    namespace: Namespace, job: str, undisturbed_workers: Shared, see: See, *, killed: frozenset[str] = frozenset()
) -> None:
    """The Job completes with the same bits; pods that were killed counted as failures, those left behind did not."""
    condition = namespace.wait_for_end(job)
    log = namespace.log(namespace.pods(job, 0)[-1]["metadata"]["name"])
    assert condition["type"] == "Complete", log
    assert log[-1]["model_sha256"] == undisturbed_workers.outcome["model_sha256"]
    claimed = next(line for line in log if line["event"] == "run_claimed")
    assert claimed["attempt"] == 2
    codes = exit_codes(namespace, job)
    assert {name for name, code in codes.items() if code == KILLED} == killed, codes
    assert set(codes.values()) <= {ExitCode.COMPLETE, KILLED} | COSTS_NO_RETRY, codes
    failed = namespace.get("job", job)["status"].get("failed", 0)
    assert failed == len(killed)
    see(f"exit codes {sorted(codes.values())}, {failed} counted")
    see(f"attempt 2, same digest {log[-1]['model_sha256'][:12]}")


def test_three_workers_have_the_result_of_one(
    undisturbed_workers: Shared, undisturbed: Finished, namespace: Namespace, see: See
) -> None:
    """Worker 0 alone claims the run and ends it; that is the success of the Job."""
    outcome, alone = undisturbed_workers.outcome, undisturbed.outcome
    assert outcome["event"] == "run_finished"
    # The number of workers changes sums in their last bits, so a picture or two may fall on the other side.
    assert outcome["test_accuracy"] == pytest.approx(alone["test_accuracy"], abs=0.02)
    logs = {_index(pod): namespace.log(pod["metadata"]["name"]) for pod in undisturbed_workers.pods}
    assert len(logs) == len(undisturbed_workers.pods) <= WORKERS, "one pod for each worker"
    assert [index for index, log in logs.items() if "run_claimed" in {line["event"] for line in log}] == ["0"]
    see(f"test accuracy {outcome['test_accuracy']:.3f}, of one worker {alone['test_accuracy']:.3f}")


LOSSES = {
    "follower-deleted-in-head": (2, "head", delete),
    "follower-deleted": (2, "fine_tune", delete),
    "follower-deleted-by-force": (1, "fine_tune", delete_by_force),
    "follower-evicted": (1, "fine_tune", evict),
    "follower-killed": (2, "fine_tune", kill),
    "leader-deleted": (0, "fine_tune", delete),
    "leader-killed": (0, "fine_tune", kill),
}


@pytest.mark.parametrize("run_id", LOSSES)
def test_a_lost_worker_is_replaced_and_all_carry_on(
    run_id: str, namespace: Namespace, deploy: Deploy, undisturbed_workers: Shared, see: See
) -> None:
    """The others leave with 45, or with 42 where it could tell them to stop, and come again."""
    index, phase, lose = LOSSES[run_id]
    job = deploy(run_id, SETTINGS, COMPONENTS)
    namespace.wait_for_event(job, "epoch_finished", index=0, phase=phase, epoch=0)
    before = {pod["metadata"]["name"] for pod in namespace.pods(job)}
    assert len(before) == WORKERS
    lost = namespace.newest_pod(job, index)
    assert lost is not None
    lose(namespace, lost)
    wait_for("the next pod of each worker", lambda: _all_new(namespace, job, before))
    left = {name: code for name, code in exit_codes(namespace, job).items() if name in before - {lost}}
    assert len(left) == WORKERS - 1
    assert set(left.values()) <= ({ExitCode.PEER_LOST} if lose is kill else COSTS_NO_RETRY), left
    killed = frozenset({lost} if lose is kill else ())
    assert_carried_on(namespace, job, undisturbed_workers, see, killed=killed)


def test_workers_on_a_drained_node_are_replaced(
    namespace: Namespace, deploy: Deploy, undisturbed_workers: Shared, see: See
) -> None:
    """All pods that are on the node of worker 0 are evicted at once, and the node is used again later."""
    job = deploy("workers-drained", SETTINGS, COMPONENTS)
    leader = namespace.wait_for_event(job, "epoch_finished", index=0, phase="fine_tune", epoch=0)
    node = namespace.get("pod", leader)["spec"]["nodeName"]
    try:
        selector = f"--pod-selector=batch.kubernetes.io/job-name={job}"
        kubectl("drain", node, selector, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s")
    finally:
        kubectl("uncordon", node)
    assert_carried_on(namespace, job, undisturbed_workers, see)


def test_a_second_job_of_the_run_waits_and_takes_over_when_the_first_is_gone(
    namespace: Namespace, deploy: Deploy, runs: Runs, see: See
) -> None:
    """As if it came from elsewhere: its worker 0 leaves with 43, and the three workers of the first do not notice."""
    first = deploy("workers-twice", SETTINGS | LONG, COMPONENTS)
    namespace.wait_for_event(first, "epoch_finished", index=0, phase="fine_tune", epoch=0)
    train = {pod["metadata"]["name"] for pod in namespace.pods(first)}
    manifests = runs.render("workers-twice", SETTINGS | LONG, components=COMPONENTS)
    named(manifests, "Job")["metadata"]["name"] = second = f"{first}-too"
    namespace.apply(manifests)
    try:
        waits = namespace.wait_for_event(second, "waiting", index=0)
        end = namespace.terminated(waits)
        assert end["exitCode"] == ExitCode.SUPERSEDED
        assert first in json.loads(end["message"])["reason"]
        pods = namespace.pods(first)
        assert {pod["metadata"]["name"] for pod in pods} == train
        assert {pod["status"]["phase"] for pod in pods} == {"Running"}
        namespace.kubectl("delete", "job", first)
        leader = namespace.wait_for_event(second, "run_claimed", index=0)
        (claimed,) = [line for line in namespace.log(leader) if line["event"] == "run_claimed"]
        assert (claimed["attempt"], claimed["state"]) == (2, "fine_tune")
    finally:
        namespace.kubectl("delete", "job", second)
    see(f"the second: exit {end['exitCode']}; after the first was deleted, attempt {claimed['attempt']}")


def _index(pod: Manifest) -> str:
    return str(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"])


def _all_new(namespace: Namespace, job: str, before: set[str]) -> bool | None:
    """True once each worker has a pod that is not one of `before`, whose pods have ended."""
    newest = {namespace.newest_pod(job, index) for index in range(WORKERS)}
    return True if None not in newest and newest.isdisjoint(before) else None
