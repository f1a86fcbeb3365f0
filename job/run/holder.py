"""The holder of a run: a process, on a host, perhaps of a Kubernetes Job; and whether it still exists.

Only of a process on this very host, since its last start, and in this very process namespace, it can be known whether
it exists. For any other process the lease decides.
"""

import os
import socket
import time
from pathlib import Path

import psutil

from job.schema import Holder


def can_be_taken_over_by(holder: Holder, other: Holder) -> bool:
    """Whether `other` may take the run at once: it is of the same Job, or knows that the holder's process is gone."""
    return bool(holder.job_uid and holder.job_uid == other.job_uid) or is_there(holder, seen_from=other) is False


def is_there(holder: Holder, *, seen_from: Holder) -> bool | None:
    """Whether the process exists, as seen from `seen_from`, which is this very process; None when that is unknown."""
    if holder.start_ticks is None or not holder.boot_id or _place(holder) != _place(seen_from):
        return None
    found = state_and_start(holder.pid)
    if found is None:
        # /proc may hide the processes of other users, or the process has just ended: only its number is checked.
        return None if psutil.pid_exists(holder.pid) else False
    state, start_ticks = found
    return start_ticks == holder.start_ticks and state not in ("Z", "X")


def _place(holder: Holder) -> tuple[str, str, str]:
    """Within this place a process id means one process."""
    return holder.host, holder.boot_id, holder.process_namespace


def this_process(
    job_uid: str | None,
    *,
    job_name: str | None = None,
    node_name: str | None = None,
    namespace: str | None = None,
) -> Holder:
    """This process as a holder."""
    boot_id, processes = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    found = state_and_start(os.getpid())
    return Holder(
        host=_shown(socket.gethostname()),
        pid=os.getpid(),
        started=time.time(),
        start_ticks=found[1] if found else None,
        boot_id=boot_id.read_text().strip() if boot_id.is_file() else "",
        process_namespace=str(processes.readlink()) if processes.is_symlink() else "",
        job_uid=_shown(job_uid or ""),
        job_name=_shown(job_name or ""),
        node_name=_shown(node_name or ""),
        namespace=_shown(namespace or ""),
    )


def _shown(name: str) -> str:
    """A name from outside as a `Text`."""
    return "".join(char if char.isprintable() else "?" for char in name)[:1000]


def state_and_start(pid: int) -> tuple[str, int] | None:
    """State and start ticks of a process, fields 3 and 22 of proc_pid_stat(5); None where they are not shown."""
    try:
        # The second field is the command's name in parentheses, which may contain anything.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
