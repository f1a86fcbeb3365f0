"""Applied once, twice, or again after its Job was deleted: one run, trained once."""

from datetime import datetime

import pytest

from tests.e2e.cluster import Namespace
from tests.e2e.conftest import Finished, See
from tests.e2e.runs import Runs, name_of_job, named


def test_the_demo_completes(undisturbed: Finished, see: See) -> None:
    """With nothing but an image, a volume and a ConfigMap."""
    assert undisturbed.outcome["event"] == "run_finished"
    assert undisturbed.outcome["test_accuracy"] >= 0.8
    (scheduled,) = [it for it in undisturbed.pod["status"]["conditions"] if it["type"] == "PodScheduled"]
    began = datetime.fromisoformat(scheduled["lastTransitionTime"])
    for event in ("run_claimed", "data_loaded", "step_compiled"):
        told = next(line for line in undisturbed.log if line["event"] == event)
        see(f"{event} {(datetime.fromisoformat(told['time']) - began).total_seconds():.0f} s after scheduling")
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
    other = runs.render("undisturbed", THAW_SEED="1")
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
    """The store says so, and TensorFlow is not even imported."""
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
