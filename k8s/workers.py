"""What follows from the number of workers of a run, and the kinds of other controllers that its Job can be part of.

An overlay has a Job in any case, so whatever changes a Job holds for these kinds too. Beside a JobSet it becomes the
one Job of the set. Beside a TrainJob its image, settings and resources go into that, and the rest of it into the
runtime, which is made of the Job in the folder `shared`.
"""

from job.settings.fields import variable
from job.settings.settings import Settings
from k8s.pods import WORK_BYTES, Manifest, add_labels, container_of, job_spec_of, literals, pod_of

INSTANCE = "app.kubernetes.io/instance"
JOB_SET_NAME = "jobset.sigs.k8s.io/jobset-name"
WORKERS, WORKER_HOST = variable("workers"), variable("worker_host")
RUNTIME, NODE = "ClusterTrainingRuntime", "node"
AROUND_A_JOB = ("JobSet", "TrainJob")


def is_indexed(job: Manifest) -> bool:
    """Whether the pods of the Job, or of the Jobs of a CronJob, have an index each, which makes workers of them."""
    return bool(job_spec_of(job).get("completionMode") == "Indexed")


def is_of_one_run(manifest: Manifest) -> bool:
    """Whether it is a policy that selects by run: all others are of a whole namespace."""
    return manifest["kind"] == "NetworkPolicy" and INSTANCE in manifest["spec"]["podSelector"].get("matchLabels", {})


def count_as_setting(job: Manifest, config: Manifest) -> None:
    """Where the settings do not say how many workers there are, let them have the number of the Job."""
    spec, container = job_spec_of(job), container_of(job)
    container["env"] = [entry for entry in container["env"] if entry["name"] != WORKERS]
    config["data"].setdefault(WORKERS, str(spec.get("completions", 1)))


def scale(job: Manifest, config: Manifest, settings: Settings) -> None:
    """Write the number of workers, which is a setting, into all that has it.

    It goes from the settings to the template, which can never change: pods of one Job must not differ in it.
    """
    spec = job_spec_of(job)
    spec["completions"] = spec["parallelism"] = settings.workers
    config["data"].pop(WORKERS, None)
    container_of(job)["env"].append({"name": WORKERS, "value": str(settings.workers)})


def select(policy: Manifest, name: str, key: str = INSTANCE) -> None:
    """Name a policy by the run, and let it select the pods whose label `key` is this name, and no others."""
    policy["metadata"]["name"] = f"{name}-workers"
    spec = policy["spec"]
    peers = [peer for rule in spec["ingress"] + spec["egress"] for peer in rule.get("from", []) + rule.get("to", [])]
    for selector in (spec["podSelector"], *(peer["podSelector"] for peer in peers)):
        del selector["matchLabels"][INSTANCE]
        # A copy: in YAML several of them may be one.
        selector["matchLabels"] = {**selector["matchLabels"], key: name}


def wrapped(outer: Manifest, job: Manifest, config: Manifest, policies: list[Manifest]) -> list[Manifest]:
    """The manifests of a run whose Job is in a JobSet or a TrainJob."""
    name = job["metadata"]["name"]
    for policy in policies:
        # Pods of a TrainJob have the labels of the runtime, and none of ours that names the run.
        select(policy, name, JOB_SET_NAME if outer["kind"] == "TrainJob" else INSTANCE)
    if outer["kind"] == "TrainJob":
        return [*policies, _train_job(outer, job, config)]
    return [config, *policies, _job_set(outer, job)]


def _job_set(job_set: Manifest, job: Manifest) -> Manifest:
    """The JobSet with the Job as its only one, and with name and labels of the Job."""
    _named_as(job_set, job)
    spec = job_set["spec"]
    if (seconds := job["spec"].pop("ttlSecondsAfterFinished", None)) is not None:
        spec["ttlSecondsAfterFinished"] = seconds  # of the set: without its Job it would make another
    _fill(spec["replicatedJobs"], job)
    return job_set


def _train_job(train_job: Manifest, job: Manifest, config: Manifest) -> Manifest:
    """The TrainJob with what it has of the Job: name and labels, image, number of nodes, settings, resources."""
    _named_as(train_job, job)
    container = container_of(job)
    settings = config["data"] | literals(container)
    for name in (WORKER_HOST, WORK_BYTES):  # the runtime has them
        settings.pop(name, None)
    train_job["spec"]["trainer"] = {
        "image": container["image"],
        "numNodes": job["spec"].get("parallelism", 1),
        "env": [{"name": name, "value": value} for name, value in sorted(settings.items())],
        "resourcesPerNode": container["resources"],
    }
    return train_job


def as_runtime(runtime: Manifest, job: Manifest, config: Manifest) -> Manifest:
    """The ClusterTrainingRuntime with all that the Job has; the settings are in the environment of the pods."""
    spec = runtime["spec"]
    spec.setdefault("mlPolicy", {})["numNodes"] = job["spec"].get("parallelism", 1)
    container = container_of(job)
    container["name"] = NODE  # the one that the Trainer looks for
    for rule in job["spec"]["podFailurePolicy"]["rules"]:
        if "onExitCodes" in rule:
            rule["onExitCodes"]["containerName"] = NODE
    settings = [{"name": name, "value": value} for name, value in sorted(config["data"].items())]
    container["env"] = settings + container["env"]
    del container["envFrom"]
    for field in ("ttlSecondsAfterFinished", "completions", "parallelism"):  # of the TrainJob
        job["spec"].pop(field, None)
    (replicated,) = spec["template"]["spec"]["replicatedJobs"]
    # The Trainer lets in only pods with this label.
    job["spec"]["template"]["metadata"]["labels"] |= replicated["template"]["metadata"]["labels"]
    _fill([replicated], job)
    return runtime


def _named_as(manifest: Manifest, job: Manifest) -> None:
    manifest["metadata"]["name"] = job["metadata"]["name"]
    add_labels(manifest, job)


def _fill(replicated_jobs: list[Manifest], job: Manifest) -> None:
    """Make the Job the template of the one entry. Its pods are in the Service of their JobSet."""
    (replicated,) = replicated_jobs
    container, pod = container_of(job), pod_of(job)
    hosts = [entry for entry in container["env"] if entry["name"] == WORKER_HOST]
    if hosts and "subdomain" in pod:
        field = {"apiVersion": "v1", "fieldPath": f"metadata.labels['{JOB_SET_NAME}']"}
        name = {"name": "JOBSET_NAME", "valueFrom": {"fieldRef": field}}
        container["env"].insert(container["env"].index(hosts[0]), name)
        hosts[0]["value"] = hosts[0]["value"].replace(f".{pod.pop('subdomain')}", ".$(JOBSET_NAME)")
    template = replicated.setdefault("template", {})
    add_labels(template, job["spec"]["template"])
    template["spec"] = job["spec"]
