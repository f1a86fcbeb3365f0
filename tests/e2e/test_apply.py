"""Applied by kubectl or by the server, pruned, deleted after its time: no other run is touched, and nothing is lost."""

import pytest

from k8s.render import Manifest, as_text
from tests.e2e.cluster import Namespace, wait_for
from tests.e2e.conftest import Finished, See
from tests.e2e.runs import Runs, name_of_job, named, patch_of_job
from tests.e2e.test_idempotency import uids

SUSPENDED = (patch_of_job({"suspend": True}),)
"""What is applied matters here, and not what it does: no pod is started."""
BY_CLIENT, BY_SERVER = (), ("--server-side",)


@pytest.mark.parametrize("components", [(), ("workers",)], ids=["one-pod", "workers"])
@pytest.mark.parametrize("ways", [(BY_CLIENT, BY_SERVER), (BY_SERVER, BY_CLIENT)], ids=["client-first", "server-first"])
def test_applied_by_kubectl_or_the_server_it_is_the_same(
    ways: tuple[tuple[str, ...], ...], components: tuple[str, ...], namespace: Namespace, runs: Runs, see: See
) -> None:
    """One after the other, and the first again: no conflict, and no object gets another specification."""
    run_id = f"applied-{'client' if ways[0] is BY_CLIENT else 'server'}-{len(components)}"
    manifests = runs.render(run_id, components=components, patches=SUSPENDED)
    try:
        states = []
        for way in (*ways, ways[0]):
            namespace.kubectl("apply", *way, "--filename=-", stdin=as_text(manifests))
            states.append([_state(namespace, manifest) for manifest in manifests])
        assert states[0] == states[1] == states[2]
        see(f"{len(manifests)} objects, applied {' then '.join(' '.join(way) or 'client-side' for way in ways)}: equal")
    finally:
        _delete(namespace, manifests)


def test_pruning_one_run_leaves_all_others(undisturbed: Finished, namespace: Namespace, runs: Runs, see: See) -> None:
    """`kubectl apply --prune` by the label of a run deletes what the run no longer has, and nothing else."""
    one, other = (runs.render(run_id, patches=SUSPENDED) for run_id in ("pruned", "kept"))
    job = name_of_job(one)
    try:
        namespace.apply(one)
        namespace.apply(other)
        before = uids(namespace)
        settings = as_text([named(one, "ConfigMap")])
        label = f"app.kubernetes.io/instance={job}"
        namespace.kubectl("apply", "--prune", f"--selector={label}", "--filename=-", stdin=settings)
        after = uids(namespace)
        assert before.keys() - after.keys() == {f"Job/{job}"}
        assert after.items() <= before.items()
        see(f"without its Job in the file, that Job alone is pruned; {len(after)} objects stay")
    finally:
        _delete(namespace, [*one, *other])


def test_deleted_after_its_time_and_applied_again_it_is_done_at_once(
    undisturbed: Finished, namespace: Namespace, see: See
) -> None:
    """`ttlSecondsAfterFinished` takes a finished Job and its pod away, and not its result."""
    namespace.kubectl("patch", "job", undisturbed.job, '--patch={"spec": {"ttlSecondsAfterFinished": 0}}')
    wait_for("the deletion of the Job", lambda: None if undisturbed.job in _jobs(namespace) else True)
    wait_for("the deletion of its pod", lambda: None if namespace.pods(undisturbed.job) else True)
    assert f"job.batch/{undisturbed.job} created" in namespace.apply(undisturbed.manifests)
    assert namespace.wait_for_end(undisturbed.job)["type"] == "Complete"
    (pod,) = namespace.pods(undisturbed.job)
    (line,) = namespace.log(pod["metadata"]["name"])
    assert (line["event"], line["model_sha256"]) == ("run_already_done", undisturbed.outcome["model_sha256"])
    see("Job and pod are gone after 0 s; applied again: run_already_done")


def _state(namespace: Namespace, manifest: Manifest) -> Manifest:
    """Of an object, what a change of its specification changes: `generation` counts those."""
    it = namespace.get(manifest["kind"], manifest["metadata"]["name"])
    metadata = {key: it["metadata"].get(key) for key in ("uid", "generation", "labels")}
    return {"metadata": metadata, "spec": it.get("spec"), "data": it.get("data")}


def _jobs(namespace: Namespace) -> list[str]:
    return [job["metadata"]["name"] for job in namespace.get("jobs")["items"]]


def _delete(namespace: Namespace, manifests: list[Manifest]) -> None:
    namespace.kubectl("delete", "--ignore-not-found", "--filename=-", stdin=as_text(manifests))
