"""Who holds a run: a process, on a host, perhaps of a Kubernetes Job; and whether it is still there.

What can be known for certain is little: a process of this very host, since its last start, and in this very process
namespace, is there or not. Of any other, the lease decides.
"""

import os
import socket
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict


class Holder(BaseModel):
    """One process. `started` is its start in seconds since the epoch, by its host's clock.

    `boot_id` tells machines of one host name apart, and `process_namespace` containers; both are empty where there are
    none. `job_uid` is the uid of the Kubernetes Job, empty outside of one. Its name and the node's tell a person where
    to look; nothing is decided by them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    pid: int
    started: float
    boot_id: str = ""
    process_namespace: str = ""
    job_uid: str = ""
    job_name: str = ""
    node_name: str = ""

    def __str__(self) -> str:
        process = f"{self.host}:{self.pid}"
        job = f" of Job {self.job_name or self.job_uid}" if self.job_name or self.job_uid else ""
        return process + job + (f" on node {self.node_name}" if self.node_name else "")

    def must_yield_to(self, other: "Holder") -> bool:
        """Whether `other` may take the run over at once: it is of the same Job, or knows that this process is gone."""
        if self.job_uid and self.job_uid == other.job_uid:
            return True
        return self._place == other._place and not _is_there(self.pid, self.started)

    @property
    def _place(self) -> tuple[str, str, str]:
        """Where a process id means one process."""
        return self.host, self.boot_id, self.process_namespace


def this_process(job_uid: str | None, *, job_name: str | None = None, node_name: str | None = None) -> Holder:
    """The holder that this process would be."""
    boot_id, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    return Holder(
        host=socket.gethostname(),
        pid=os.getpid(),
        started=psutil.Process().create_time(),
        boot_id=boot_id.read_text().strip() if boot_id.is_file() else "",
        process_namespace=str(namespace.readlink()) if namespace.is_symlink() else "",
        job_uid=job_uid or "",
        job_name=job_name or "",
        node_name=node_name or "",
    )


def _is_there(pid: int, started: float) -> bool:
    """Whether a process exists, and is not another that was given the same number later."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
