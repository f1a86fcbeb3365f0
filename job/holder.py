"""Who holds a run: a process, on a host, perhaps of a Kubernetes Job; and whether it is still there.

What can be known for certain is little: a process of this very host, since its last start, and in this very process
namespace, is there or not. Of any other, the lease decides.
"""

import os
import socket
import time
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has a character that cannot be printed")
    return text


Text = Annotated[str, Field(max_length=1000), AfterValidator(_printable)]
"""What can be shown in one line as it is, and moves no cursor."""


class Holder(BaseModel):
    """One process. `start_ticks` is its start in clock ticks since its host was started, which no clock changes.

    It is None where there is no /proc, and in records of earlier versions. `started`, in seconds since the epoch by the
    clock of the host, is for people. `boot_id` tells machines of one host name apart, and `process_namespace`
    containers; both are empty where there are none. `job_uid` is the uid of the Kubernetes Job, empty outside of one.
    Its name and the node's tell a person where to look; nothing is decided by them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: Text
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    started: FiniteFloat
    start_ticks: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    boot_id: Text = ""
    process_namespace: Text = ""
    job_uid: Text = ""
    job_name: Text = ""
    node_name: Text = ""

    def __str__(self) -> str:
        process = f"{self.host}:{self.pid}"
        job = f" of Job {self.job_name or self.job_uid}" if self.job_name or self.job_uid else ""
        return process + job + (f" on node {self.node_name}" if self.node_name else "")

    def must_yield_to(self, other: "Holder") -> bool:
        """Whether `other` may take the run over at once: it is of the same Job, or knows that this process is gone."""
        return bool(self.job_uid and self.job_uid == other.job_uid) or self.is_there(other) is False

    def is_there(self, other: "Holder") -> bool | None:
        """Whether the process exists, as `other` can see, which is this very process; None where it cannot know."""
        if self.start_ticks is None or not self.boot_id or self._place != other._place:
            return None
        found = _look(self.pid)
        if found is None:
            # /proc may hide the processes of other users, and be gone in the meantime: the number alone is asked for.
            return None if psutil.pid_exists(self.pid) else False
        state, start_ticks = found
        return start_ticks == self.start_ticks and state not in ("Z", "X")

    @property
    def _place(self) -> tuple[str, str, str]:
        """Where a process id means one process."""
        return self.host, self.boot_id, self.process_namespace


def this_process(job_uid: str | None, *, job_name: str | None = None, node_name: str | None = None) -> Holder:
    """The holder that this process would be."""
    boot_id, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    found = _look(os.getpid())
    return Holder(
        host=_shown(socket.gethostname()),
        pid=os.getpid(),
        started=time.time(),
        start_ticks=found[1] if found else None,
        boot_id=boot_id.read_text().strip() if boot_id.is_file() else "",
        process_namespace=str(namespace.readlink()) if namespace.is_symlink() else "",
        job_uid=_shown(job_uid or ""),
        job_name=_shown(job_name or ""),
        node_name=_shown(node_name or ""),
    )


def _shown(name: str) -> str:
    """A name from outside as a `Text`."""
    return "".join(char if char.isprintable() else "?" for char in name)[:1000]


def _look(pid: int) -> tuple[str, int] | None:
    """State and start ticks of a process, fields 3 and 22 of proc_pid_stat(5); None where they are not shown."""
    try:
        # The second field is the command's name in parentheses, which may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
