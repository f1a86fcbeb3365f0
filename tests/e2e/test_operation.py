"""What operators meet: wrong settings, two Jobs of one run, a schedule, metrics."""

import json
from datetime import datetime

from prometheus_client.parser import text_string_to_metric_families

from job.errors import ExitCode
from job.observe.metrics.table import SERIES
from k8s.render import Manifest
from tests.e2e.cluster import Namespace, wait_for
from tests.e2e.conftest import Deploy, Finished, See
from tests.e2e.runs import LONG, Runs, name_of_job, named


def test_a_wrong_setting_fails_the_job_at_once(namespace: Namespace, runs: Runs, see: See) -> None:
    """`make deploy` would have refused it; here the ConfigMap was edited by hand."""
    manifests = runs.render("wrong")
    named(manifests, "ConfigMap")["data"]["THAW_BATCH_SIZE"] = "many"
    job = name_of_job(manifests)
    namespace.apply(manifests)
    condition = namespace.wait_for_end(job)
    assert (condition["type"], condition["reason"]) == ("Failed", "PodFailurePolicy")
    (pod,) = namespace.pods(job)
    end = namespace.terminated(pod["metadata"]["name"])
    message = json.loads(end["message"])
    assert end["exitCode"] == message["exit_code"] == ExitCode.INVALID_SETTINGS
    assert "THAW_BATCH_SIZE" in message["reason"]
    seconds = datetime.fromisoformat(condition["lastTransitionTime"]) - datetime.fromisoformat(
        pod["metadata"]["creationTimestamp"]
    )
    see(f"after {seconds.total_seconds():.0f} s and one pod: {condition['reason']}, {message['reason']!r}")
    namespace.kubectl("delete", "job", job)


def test_two_jobs_of_one_run_do_not_both_train(namespace: Namespace, deploy: Deploy, runs: Runs, see: See) -> None:
    """The second waits for as long as a lease lasts, and leaves with 43; the first does not notice."""
    first = deploy("shared", LONG)
    trains = namespace.wait_for_event(first, "epoch_finished", phase="fine_tune", epoch=0)
    manifests = runs.render("shared", LONG)
    named(manifests, "Job")["metadata"]["name"] = second = f"{first}-too"
    namespace.apply(manifests)
    try:
        waits = namespace.wait_for_event(second, "waiting")
        end = namespace.terminated(waits)
        log = namespace.log(waits)
    finally:
        namespace.kubectl("delete", "job", second)
    assert end["exitCode"] == ExitCode.SUPERSEDED
    assert [line["event"] for line in log] == ["waiting", "run_failed"]
    assert first in json.loads(end["message"])["reason"]
    assert namespace.newest_pod(first) == trains
    assert namespace.get("pod", trains)["status"]["phase"] == "Running"
    see(f"the second: exit {end['exitCode']}, {json.loads(end['message'])['reason']!r}")


def test_a_slot_of_a_cronjob_is_one_run_however_often_it_is_retried(
    namespace: Namespace, runs: Runs, undisturbed: Finished, see: See
) -> None:
    """The run is named by the slot's Job. A pod that is deleted meanwhile is replaced, and the next one continues."""
    every_minute = {"target": {"kind": "CronJob", "name": "thaw"}, "patch": json.dumps(EVERY_MINUTE)}
    namespace.apply(runs.render(None, components=("cron",), patches=(every_minute,)))
    try:

        def slot() -> str | None:
            jobs = namespace.get("jobs")["items"]
            names = [job["metadata"]["name"] for job in jobs if _is_owned_by_cronjob(job)]
            return str(names[0]) if names else None

        job = wait_for("a slot", slot)
        namespace.kubectl("patch", "cronjob", "thaw", "--patch", json.dumps({"spec": {"suspend": True}}))
        lost = namespace.wait_for_event(job, "epoch_finished", phase="head", epoch=0)
        namespace.kubectl("delete", "pod", lost, "--wait=false")
        condition = namespace.wait_for_end(job)
        log = namespace.log(namespace.pods(job)[-1]["metadata"]["name"])
    finally:
        namespace.kubectl("delete", "cronjob", "thaw")
    assert condition["type"] == "Complete", log
    assert {line["run_id"] for line in log} == {job}
    assert log[0]["attempt"] == 2
    assert log[-1]["model_sha256"] == undisturbed.outcome["model_sha256"]
    see(f"run {job!r}, attempt {log[0]['attempt']}, same digest")


def test_metrics_are_scraped_from_the_pod(namespace: Namespace, deploy: Deploy, see: See) -> None:
    """At the port that the manifest names, while the run trains. From inside: the policy lets in only Prometheus."""
    job = deploy("scraped", LONG)
    pod = namespace.wait_for_event(job, "epoch_finished", phase="fine_tune", epoch=0)
    (container,) = namespace.get("pod", pod)["spec"]["containers"]
    (port,) = [port["containerPort"] for port in container["ports"] if port["name"] == "metrics"]
    ask = f"from urllib.request import urlopen; print(urlopen('http://127.0.0.1:{port}/metrics').read().decode())"
    text = namespace.kubectl("exec", pod, "--", "python", "-c", ask)
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    steps = {sample.labels["phase"]: sample.value for sample in samples if sample.name == "thaw_steps_total"}
    assert steps["head"] > 0
    assert steps["fine_tune"] > 0
    (info,) = [sample.labels for sample in samples if sample.name == "thaw_info"]
    assert info["run_id"] == "scraped"
    known = {series.name for series in SERIES}
    assert {sample.name for sample in samples if sample.name in known}
    see(f"port {port}: {len(samples)} samples, steps {steps}")


def _is_owned_by_cronjob(job: Manifest) -> bool:
    return any(owner["kind"] == "CronJob" for owner in job["metadata"].get("ownerReferences", []))


EVERY_MINUTE = {
    "apiVersion": "batch/v1",
    "kind": "CronJob",
    "metadata": {"name": "thaw"},
    "spec": {"schedule": "* * * * *"},
}
