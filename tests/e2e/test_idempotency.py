"""Applied once, twice, or again after its Job was deleted: one run, trained once."""

from datetime import datetime

import pytest

from tests.e2e.cluster import Namespace, seconds_until
from tests.e2e.conftest import Finished, See
from tests.e2e.runs import Runs, name_of_job, named


def test_the_demo_completes(undisturbed: Finished, see: See) -> None:
    """With nothing but an image, a volume and a ConfigMap."""
    assert undisturbed.outcome["event"] == "run_finished"
    assert undisturbed.outcome["test_accuracy"] >= 0.8
    for event in ("run_claimed", "data_loaded", "step_compiled"):
        seconds = seconds_until(event, pod=undisturbed.pod, log=undisturbed.log)
        see(f"{event} {seconds:.0f} s after the pod had a node")
    see(f"test accuracy {undisturbed.outcome['test_accuracy']:.3f}")


def test_applied_again_it_is_unchanged(undisturbed: Finished, namespace: Namespace, see: See) -> None:
    """Every object, and no other pod is started."""
    said = namespace.apply(undisturbed.manifests).splitlines()
    assert len(said) == len(undisturbed.manifests)
    assert all(line.endswith(" unchanged") for line in said), said
    assert len(namespace.pods(undisturbed.job)) == 1
    see(f"{len(said)} objects unchanged, still one pod")


def test_other_settings_are_another_job_beside_it(
    undisturbed: Finished, namespace: Namespace, runs: Runs, see: See
) -> None:
    """The template of a Job can never change, so a changed one must not have its name."""
    other = runs.render("undisturbed", {"THAW_SEED": "1"})
    job = name_of_job(other)
    try:
        assert f"job.batch/{job} created" in namespace.apply(other)
        condition = namespace.wait_for_end(job)
        message = namespace.terminated(namespace.pods(job)[-1]["metadata"]["name"])
        assert (condition["type"], condition["reason"]) == ("Failed", "PodFailurePolicy")
        assert message["exitCode"] == 3
        see(f"beside {undisturbed.job}; the same run id with another seed is refused with 3")
    finally:
        namespace.kubectl("delete", "job", job)


def test_deleted_and_applied_again_it_is_done_at_once(undisturbed: Finished, namespace: Namespace, see: See) -> None:
    """By the store; TensorFlow is not imported."""
    namespace.kubectl("delete", "job", undisturbed.job)
    namespace.apply(undisturbed.manifests)
    assert namespace.wait_for_end(undisturbed.job)["type"] == "Complete"
    (pod,) = namespace.pods(undisturbed.job)
    (line,) = namespace.log(pod["metadata"]["name"])
    assert (line["event"], line["model_sha256"]) == ("run_already_done", undisturbed.outcome["model_sha256"])
    end = namespace.terminated(pod["metadata"]["name"])
    seconds = (datetime.fromisoformat(end["finishedAt"]) - datetime.fromisoformat(end["startedAt"])).total_seconds()
    assert seconds <= 10
    see(f"container ran for {seconds:.0f} s (the clock of Kubernetes has whole seconds)")


def test_deleting_a_run_leaves_all_that_others_use(
    undisturbed: Finished, namespace: Namespace, runs: Runs, see: See
) -> None:
    """`make undeploy`: its Job and ConfigMap are gone, every other object stays, and so do the results of both runs."""
    manifests = runs.render("deleted")
    job = name_of_job(manifests)
    namespace.apply(manifests)
    assert namespace.wait_for_end(job)["type"] == "Complete"
    before = uids(namespace)
    said = runs.undeploy("deleted", namespace).splitlines()
    assert sorted(said) == [f'configmap "{job}" deleted', f'job.batch "{job}" deleted']
    after = uids(namespace)
    assert before.keys() - after.keys() == {f"ConfigMap/{job}", f"Job/{job}"}
    assert after.items() <= before.items()
    namespace.kubectl("delete", "job", undisturbed.job)
    for again in (manifests, undisturbed.manifests):
        namespace.apply(again)
        assert namespace.wait_for_end(name_of_job(again))["type"] == "Complete"
        (pod,) = namespace.pods(name_of_job(again))
        (line,) = namespace.log(pod["metadata"]["name"])
        assert (line["event"], line["model_sha256"]) == ("run_already_done", undisturbed.outcome["model_sha256"])
    see(f"{' and '.join(sorted(said))}; {len(after)} objects untouched; both runs answer that they are done")


def test_pod_security_restricted_is_enforced_and_the_job_meets_it(
    undisturbed: Finished, namespace: Namespace, see: See
) -> None:
    """A pod that asks for more is refused in the same namespace; the Job is not even warned of."""
    assert "Warning" not in undisturbed.applied
    labels = namespace.get("namespace", namespace.name)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    template = named(undisturbed.manifests, "Job")["spec"]["template"]["spec"]
    spec = {**template, "securityContext": {}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "lax"}, "spec": spec}
    with pytest.raises(AssertionError, match=r'violates PodSecurity "restricted'):
        namespace.apply([pod])
    see("the Job without a warning; its pod without runAsNonRoot and seccomp profile is refused")


def uids(namespace: Namespace) -> dict[str, str]:
    """Every object that a person applied, by kind and name."""
    kinds = "jobs,cronjobs,configmaps,serviceaccounts,networkpolicies,persistentvolumeclaims"
    found = namespace.get(kinds)["items"]
    return {f"{it['kind']}/{it['metadata']['name']}": it["metadata"]["uid"] for it in found}
