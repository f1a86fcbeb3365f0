"""The manifests of several workers: one number, names that are those of the pods, and a network of their own."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from job.errors import ExitCode
from job.workers.addresses import MARK, Addresses
from k8s.render import CannotRender, kustomize, of_one_run, shared_by_runs
from tests.conftest import REPOSITORY, slowly
from tests.manifests import (
    JOB_SET_NAME,
    OVERLAYS,
    Manifests,
    base,
    component,
    needs_kustomize,
    overlay,
    render,
    shared_part,
    write_kustomization,
)

pytestmark = needs_kustomize

INDEX = "batch.kubernetes.io/job-completion-index"
OF_WORKERS = ["gke-workers", "gke-workers-kueue", "jobset", "kubeflow"]
every_overlay_of_workers = pytest.mark.parametrize("name", OF_WORKERS)


def write_overlay(
    folder: Path,
    *literals: str,
    resource: str = "overlays/gke",
    components: tuple[str, ...] = ("workers",),
    **more: Any,
) -> Path:
    """An overlay of one's own, with settings and components in one file."""
    parts = [f"components/{name}" for name in components]
    generator = {"name": "thaw-settings", "behavior": "merge", "literals": list(literals)}
    return write_kustomization(
        folder, resources=[resource], components=parts, configMapGenerator=[generator] if literals else [], **more
    )


def run_of(folder: Path) -> Manifests:
    return Manifests(of_one_run(kustomize(folder)))


def policy_of(manifests: Manifests) -> Any:
    """The policy of the run, of which there is one."""
    (policy,) = [
        it for it in manifests.of_kind("NetworkPolicy") if it["metadata"]["name"] == f"{manifests.name}-workers"
    ]
    return policy["spec"]


def job_name(manifests: Manifests) -> str:
    """The name of the Job, which a JobSet makes of its own and of that of its part."""
    part = {"JobSet": "-workers-0", "TrainJob": "-node-0"}.get(manifests.workload["kind"], "")
    return manifests.name + part


def environment(manifests: Manifests, index: int) -> dict[str, str]:
    """The variables of a pod: as Kubernetes puts one into another, which it does with those that come before."""
    labels = {"batch.kubernetes.io/job-name": job_name(manifests), JOB_SET_NAME: manifests.name}
    known = {"JOB_COMPLETION_INDEX": str(index)}
    for entry in manifests.container["env"]:
        if "value" in entry:
            known[entry["name"]] = re.sub(r"\$\((\w+)\)", lambda match: known.get(match[1], match[0]), entry["value"])
        else:
            path = entry["valueFrom"]["fieldRef"]["fieldPath"]
            known[entry["name"]] = labels.get(path.removeprefix("metadata.labels['").removesuffix("']"), path)
    return known


def test_these_overlays_have_workers() -> None:
    """And no others."""
    assert [name for name in OVERLAYS if overlay(name).settings.workers > 1] == OF_WORKERS


@pytest.mark.parametrize(
    ("workers", "devices"),
    [(3, 1), *slowly((1, 1), (2, 4), (8, 8))],
)
def test_one_setting_is_the_number_of_workers_everywhere(workers: int, devices: int, tmp_path: Path) -> None:
    """Also where the component that has another is in the same file."""
    literals = (f"THAW_WORKERS={workers}", f"THAW_DEVICES={devices}", "THAW_BATCH_SIZE=64")
    run = run_of(write_overlay(tmp_path, *literals))
    assert (run.job["completionMode"], run.job["completions"], run.job["parallelism"]) == ("Indexed", workers, workers)
    assert [it["value"] for it in run.container["env"] if it["name"] == "THAW_WORKERS"] == [str(workers)]
    assert "THAW_WORKERS" not in run.config, "a ConfigMap can change under the pods of a Job"


def test_another_number_is_the_same_run_in_a_job_that_cannot_be_changed_to_it(tmp_path: Path) -> None:
    """The server refuses another template, so pods that count differently never meet."""
    two, three = overlay("gke-workers"), run_of(write_overlay(tmp_path, "THAW_WORKERS=3"))
    assert (two.name, two.settings.resolved_run_id()) == (three.name, three.settings.resolved_run_id())
    assert two.job["template"] != three.job["template"]


def test_the_numbers_of_the_component_are_for_two() -> None:
    """Without k8s/render.py too, and with the settings of the program."""
    plain = component("workers")
    assert plain.job["completions"] == plain.job["parallelism"] == plain.settings.workers == 2


@every_overlay_of_workers
def test_the_job_is_complete_when_worker_0_is(name: str) -> None:
    """The result is committed then. A pod is replaced under its index, when it has ended."""
    job = overlay(name).job
    assert job["completionMode"] == "Indexed"
    assert job["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    assert job["podReplacementPolicy"] == "Failed"
    assert "backoffLimitPerIndex" not in job, "a worker that is given up would be missed by all the others"


@every_overlay_of_workers
def test_workers_find_each_other_by_the_names_of_their_pods(name: str) -> None:
    """A pod of an Indexed Job is <Job>-<index>.<subdomain> in the DNS, and in a JobSet that is the name of the set."""
    manifests = overlay(name)
    is_in_set = manifests.workload["kind"] in ("JobSet", "TrainJob")
    subdomain = manifests.name if is_in_set else manifests.pod["subdomain"]
    host, workers = environment(manifests, 1)["THAW_WORKER_HOST"], manifests.settings.workers
    addresses = Addresses.of(host, manifests.settings.worker_port, num_workers=workers)
    assert addresses.hosts == tuple(f"{job_name(manifests)}-{index}.{subdomain}" for index in range(workers))
    if is_in_set:
        assert "subdomain" not in manifests.pod, "the JobSet sets it"
        return
    (service,) = [it for it in manifests.of_kind("Service") if it["metadata"]["name"] == subdomain]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"].items() <= manifests.labels.items()


@pytest.mark.parametrize("name", ["jobset", "kubeflow"])
def test_a_set_has_a_service_with_the_names_of_its_pods(name: str) -> None:
    """And starts its Job once, which tries again by itself."""
    manifests = overlay(name)
    (runtime, *_) = manifests.of_kind("ClusterTrainingRuntime") or [None]
    spec = runtime["spec"]["template"]["spec"] if runtime else manifests.workload["spec"]
    assert spec["network"] == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}
    assert spec["failurePolicy"] == {"maxRestarts": 0}
    (replicated,) = spec["replicatedJobs"]
    assert f"-{replicated['name']}-0" == job_name(manifests).removeprefix(manifests.name)


def test_names_of_ones_own_and_many_workers_fit(tmp_path: Path) -> None:
    """A host name has 63 characters at most, and the name of a pod has six more than that."""
    run = run_of(write_overlay(tmp_path, "THAW_WORKERS=1024", "THAW_BATCH_SIZE=1024", namePrefix="vision-"))
    assert run.name.startswith("vision-thaw-")
    last = environment(run, 1023)["THAW_WORKER_HOST"].replace(MARK, "1023")
    assert last == f"{run.name}-1023.{run.pod['subdomain']}"
    longest = max((job_name(overlay(name)) for name in OF_WORKERS), key=len)
    assert len(f"{longest}-1023-xxxxx") <= 63


@every_overlay_of_workers
def test_only_the_pods_of_a_run_reach_each_other(name: str) -> None:
    """Both ways, and not those of another run in the namespace. At any port: those of NCCL are not known before."""
    run, other = overlay(name), Manifests(yaml.safe_load_all(render(name, "--run-id", "other").stdout))
    policy = policy_of(run)
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    (ingress,), (egress,) = policy["ingress"], policy["egress"]
    assert ingress["ports"] == egress["ports"] == [{"protocol": "TCP"}]
    other_labels = Manifests([*shared_part(f"overlays/{name}"), *other]).labels
    for selector in (policy["podSelector"], *(peer["podSelector"] for peer in ingress["from"] + egress["to"])):
        assert selector["matchLabels"].items() <= run.labels.items()
        assert not selector["matchLabels"].items() <= other_labels.items()
    assert other.name != run.name
    assert all(set(peer) == {"podSelector"} for peer in ingress["from"] + egress["to"]), "of this namespace"


@every_overlay_of_workers
def test_workers_are_on_different_nodes_where_that_is_possible(name: str) -> None:
    """Of one Job, and not of all."""
    (constraint,) = overlay(name).pod["topologySpreadConstraints"]
    assert (constraint["topologyKey"], constraint["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    assert constraint["labelSelector"]["matchLabels"].items() <= overlay(name).labels.items()
    assert constraint["matchLabelKeys"] == ["batch.kubernetes.io/controller-uid"]


def test_workers_of_a_slot_are_those_of_the_schedule(tmp_path: Path) -> None:
    """The name of the slot's Job is only known in the cluster; two slots never overlap."""
    run = run_of(write_overlay(tmp_path, "THAW_WORKERS=3", components=("workers", "cron"), namePrefix="mine-"))
    assert (run.name, run.job["completions"]) == ("mine-thaw", 3)
    assert environment(run, 0)["THAW_WORKER_HOST"] == f"{run.name}-{MARK}.thaw-workers"
    assert policy_of(run)["podSelector"]["matchLabels"].items() <= run.labels.items()


@pytest.mark.parametrize(
    ("resource", "components", "literals", "message"),
    [
        ("overlays/gke", (), ["THAW_WORKERS=2"], "the pods of this Job have no index"),
        *slowly(
            ("overlays/cron", (), ["THAW_WORKERS=2"], "the pods of this CronJob have no index"),
            ("overlays/jobset", ("cron",), [], "also has JobSet thaw"),
        ),
    ],
)
def test_a_job_that_cannot_have_workers_is_refused(
    resource: str, components: tuple[str, ...], literals: list[str], message: str, tmp_path: Path
) -> None:
    """Each pod would do all of the work, or none would come."""
    with pytest.raises(CannotRender, match=message):
        run_of(write_overlay(tmp_path, *literals, resource=resource, components=components))


def test_a_runtime_has_no_setting_that_changes_a_result(tmp_path: Path) -> None:
    """It is of all runs of the cluster, and the fingerprint of a run does not know it."""
    shared = tmp_path / "shared"
    shared.mkdir()
    write_overlay(shared, resource="overlays/kubeflow/shared", components=())
    assert Manifests(shared_by_runs(tmp_path)).of_kind("ClusterTrainingRuntime")
    runtime = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "ClusterTrainingRuntime",
        "metadata": {"name": "own"},
    }
    (shared / "runtime.yaml").write_text(yaml.safe_dump(runtime))
    write_overlay(shared, "THAW_SEED=1", resource="base")
    content = yaml.safe_load((shared / "kustomization.yaml").read_text())
    content["resources"].append("runtime.yaml")
    (shared / "kustomization.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(CannotRender, match="would change it for every run"):
        shared_by_runs(tmp_path)


@pytest.mark.parametrize(("name", "same"), [("kubeflow", "gke-workers"), ("kubeflow-one", "gke")])
def test_a_train_job_is_the_run_of_a_job(name: str, same: str) -> None:
    """The runtime has the same pod: what Kubeflow Trainer replaces is the same too, but for names."""
    kubeflow, gke = overlay(name), overlay(same)
    settings, fields = gke.config | gke.literals, gke.fields
    if gke.settings.workers > 1:
        settings["THAW_WORKER_HOST"] = "$(THAW_JOB_NAME)-{worker}.$(JOBSET_NAME)"
        fields |= {"JOBSET_NAME": f"metadata.labels['{JOB_SET_NAME}']"}
    assert (kubeflow.literals, kubeflow.fields) == (settings, fields)
    assert (
        kubeflow.workload["spec"]["runtimeRef"]["name"]
        == kubeflow.of_kind("ClusterTrainingRuntime")[0]["metadata"]["name"]
    )
    for part in (kubeflow, gke):
        assert part.workload["metadata"]["name"] == gke.name
    pods = [part.pod | {"containers": [], "subdomain": ""} for part in (kubeflow, gke)]
    assert pods[0] == pods[1]
    differing = {"name", "env", "envFrom"}
    containers = [{key: it for key, it in part.container.items() if key not in differing} for part in (kubeflow, gke)]
    assert containers[0] == containers[1]
    assert kubeflow.labels["trainer.kubeflow.org/trainjob-ancestor-step"] == "trainer"


@pytest.mark.parametrize("name", ["gke-workers-kueue", *slowly("jobset", "kubeflow")])
def test_kueue_admits_all_pods_or_none(name: str, tmp_path: Path) -> None:
    """By the label of what makes them. A pod that had it would wait alone."""
    folder = write_overlay(tmp_path, resource=f"overlays/{name}", components=("kueue",))
    run, key = run_of(folder), "kueue.x-k8s.io/queue-name"
    assert run.workload["metadata"]["labels"][key] == "thaw"
    assert key not in Manifests([*shared_part(f"overlays/{name}"), *run]).labels
    assert "kueue.x-k8s.io/job-min-parallelism" not in run.workload["metadata"].get("annotations", {})


def test_many_gpus_have_what_each_of_them_needs() -> None:
    """Memory and CPUs as the base has for one; /dev/shm is memory of the pod, and is bounded."""
    many, one = component("gpu-many"), base()
    resources, gib = many.container["resources"], 2**30
    gpus = int(resources["limits"]["nvidia.com/gpu"])
    assert gpus in (2, 4, 8)
    (mount,) = [mount for mount in many.container["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
    (volume,) = [volume for volume in many.pod["volumes"] if volume["name"] == mount["name"]]
    assert volume["emptyDir"]["medium"] == "Memory"
    shm = _bytes(volume["emptyDir"]["sizeLimit"])
    assert shm == gpus * gib // 2
    per_gpu = one.container["resources"]["requests"]
    assert int(resources["requests"]["cpu"]) == gpus * int(per_gpu["cpu"])
    assert _bytes(resources["requests"]["memory"]) == gpus * _bytes(per_gpu["memory"]) + shm
    assert resources["limits"]["memory"] == resources["requests"]["memory"]


def test_only_worker_0_is_a_target_of_prometheus() -> None:
    """A target that nothing serves would be down. Pods without an index stay; no alert asks who is up."""
    (monitor,) = component("monitoring").of_kind("PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (drop,) = [rule for rule in endpoint["relabelings"] if rule.get("action") == "drop"]
    assert drop["sourceLabels"] == [f"__meta_kubernetes_pod_label_{re.sub(r'[^a-z]', '_', INDEX)}"]
    dropped = [index for index in ("", "0", "1", "9", "10", "1023") if re.fullmatch(drop["regex"], index)]
    assert dropped == ["1", "9", "10", "1023"]
    page = (REPOSITORY / "docs/monitoring.md").read_text()
    (config,) = [
        block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "kubernetes_sd_configs" in block
    ]
    relabelings = yaml.safe_load(config)["scrape_configs"][0]["relabel_configs"]
    assert {"source_labels": drop["sourceLabels"], "regex": drop["regex"], "action": "drop"} in relabelings
    (rules,) = component("monitoring").of_kind("PrometheusRule")
    expressions = [rule["expr"] for group in rules["spec"]["groups"] for rule in group["rules"]]
    assert not [expression for expression in expressions if re.search(r"\b(up|absent\w*)\b", expression)]


@every_overlay_of_workers
def test_alerts_about_jobs_know_those_of_workers(name: str) -> None:
    """They recognize a Job of ours by its name."""
    (rules,) = component("monitoring").of_kind("PrometheusRule")
    patterns = set(re.findall(r'job_name=~"([^"]+)"', yaml.safe_dump(rules, width=10_000)))
    assert patterns
    assert all(re.fullmatch(pattern, job_name(overlay(name))) for pattern in patterns)


def test_a_worker_that_lost_another_can_start_again_in_its_pod() -> None:
    """At that code and no other, which the Job must see."""
    (rule,) = component("restart-in-place").container["restartPolicyRules"]
    assert rule == {"action": "Restart", "exitCodes": {"operator": "In", "values": [ExitCode.PEER_LOST]}}


def _bytes(quantity: str) -> int:
    units = {"Mi": 2**20, "Gi": 2**30}
    return int(quantity[:-2]) * units[quantity[-2:]]
