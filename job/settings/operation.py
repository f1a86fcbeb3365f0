"""The settings that leave the result as it is: where the run is kept, who works at it, and how it is watched."""

from typing import Literal

from pydantic import BaseModel

from job.settings.fields import (
    KUBERNETES_NAME,
    Devices,
    LocalPath,
    NumBytes,
    StoreUri,
    Worker,
    WorkerHost,
    WorkerPort,
    setting_group,
)
from job.storage.uri import PLACES

_run = setting_group("run", changes_result=False)
_workers = setting_group("workers", changes_result=False)
_operation = setting_group("operation", changes_result=False)


class RunSettings(BaseModel):
    """Which run it is."""

    run_id: str | None = _run(
        None, "name of the run, one path segment; the same name continues it [default: <dataset>-<fingerprint>]",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$",
    )  # fmt: skip
    storage_uri: StoreUri = _run("./runs", f"where runs are kept: {PLACES}")
    sweep: LocalPath | None = _run(
        None, "file with a row of settings for each run of a sweep, of which this start is one [default: no sweep]"
    )
    sweep_index: int | None = _run(
        None, "row of this start, from 0 [default: the index of the pod in an Indexed Job]", ge=0, le=1023
    )


class OperationSettings(BaseModel):
    """Who works at the run, and how it is watched."""

    workers: int = _workers(
        1, "pods or machines that share the run; each runs a process for each of its DEVICES", ge=1, le=1024
    )
    worker: Worker = _workers(
        None,
        "which of them this is, from 0 [default: the index of the pod in an Indexed Job; else 0, where WORKERS is 1]",
        ge=0,
        le=1023,
    )
    worker_host: WorkerHost = _workers(
        "localhost",
        "host of each worker: a name with {worker} in it, or a list separated by commas",
        pattern=r"^[\w.:{}$()-]+(, ?[\w.:{}$()-]+)*$",
    )
    worker_port: WorkerPort = _workers(
        2222, "first of the ports by which workers meet, one more for each process; on one machine free ones",
        ge=1024, le=65535,
    )  # fmt: skip
    worker_wait_seconds: float = _workers(600, "seconds to wait for the other workers to come", ge=1, le=86_400)
    devices: Devices = _workers(
        "auto", "processes of each worker, one for each device: auto is one a GPU, and one without a GPU",
        pattern=r"^(auto|[1-9][0-9]?)$",
    )  # fmt: skip

    device: Literal["auto", "cpu", "gpu"] = _operation(
        "auto",
        "what trains: auto is a GPU where one works; gpu ends at once where none does; cpu leaves GPUs alone",
    )
    microbatch_size: int | None = _operation(
        None, "gradient accumulation: most images that a device computes at once; of a larger batch it adds up the "
        "gradients of parts, which takes less memory and changes the result only by rounding [default: no limit]",
        ge=1, le=65_536,
    )  # fmt: skip
    steps_per_execution: int = _operation(
        1, "steps in one call of the device, as in Keras's compile; a stop, and a commit that is due, wait for its end",
        ge=1, le=1000,
    )  # fmt: skip
    checkpoint_every_seconds: float = _operation(120, "seconds between commits inside an epoch", ge=0, le=86_400)
    keep_checkpoints: int = _operation(2, "newest checkpoints kept, at least 1", ge=1, le=1000)
    lease_seconds: float = _operation(60, "seconds an attempt holds a run without renewing", ge=5, le=3600)
    wait_seconds: float = _operation(
        0, "seconds to wait for another attempt that holds the run and is alive, but at least LEASE_SECONDS; of "
        "several processes only that", ge=0, le=86_400,
    )  # fmt: skip
    grace_seconds: float = _operation(15, "seconds from SIGTERM until the process must be gone", gt=0, le=3600)
    job_uid: str | None = _operation(
        None, "uid of the Kubernetes Job (downward API): its next pod takes over at once [default: none]",
        pattern=KUBERNETES_NAME,
    )  # fmt: skip
    job_name: str | None = _operation(
        None, "name of the Kubernetes Job (downward API), recorded with the holder of the run [default: none]",
        pattern=KUBERNETES_NAME,
    )  # fmt: skip
    node_name: str | None = _operation(
        None, "name of the Kubernetes node (downward API), recorded likewise [default: none]", pattern=KUBERNETES_NAME
    )
    namespace: str | None = _operation(
        None, "Kubernetes namespace (downward API), recorded likewise [default: none]", pattern=KUBERNETES_NAME
    )
    cache_dir: LocalPath | None = _operation(
        None, "folder for temporary files and mirrored data; each user has a part of their own "
        "[default: thaw in the user's cache folder]",
    )  # fmt: skip
    work_bytes: NumBytes | None = _operation(
        None, "limit of the volume of CACHE_DIR, its sizeLimit: bytes, or a size such as 20Gi; a run that does not fit "
        "ends at its start [default: only the free space counts]", ge=1,
    )  # fmt: skip
    termination_log: LocalPath | None = _operation(
        None, "file for the termination message [default: /dev/termination-log where it exists]"
    )
    min_test_accuracy: float | None = _operation(
        None, "quality gate, 0 to 1: below it the exit code is 6 [default: no gate]", ge=0, le=1
    )
    min_test_balanced_accuracy: float | None = _operation(
        None, "the same of the balanced accuracy, in which every class counts the same [default: no gate]", ge=0, le=1
    )  # fmt: skip
    metrics_port: int = _operation(9090, "port of /metrics; 0 = off", ge=0, le=65535)
    pushgateway_url: str | None = _operation(
        None, "Pushgateway for the outcome metrics, without user, password or query [default: no push]",
        pattern=r"^https?://[^\s@?#]+$",
    )  # fmt: skip
    log_format: Literal["auto", "console", "json"] = _operation(
        "auto",
        "console, json, or auto: a table on a terminal, json elsewhere; console is lines with every fact",
    )
