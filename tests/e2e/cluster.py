"""A namespace of a cluster through kubectl: what is applied to it, what its pods log, how its Jobs end."""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from k8s.render import Manifest, as_text

T = TypeVar("T")
Event = dict[str, Any]
"""A line of the program's log."""

WAIT_SECONDS = 420
POLL_SECONDS = 0.3
CANNOT_START = (
    "ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName", "CreateContainerConfigError",
)  # fmt: skip

SIGNAL = """
import os, pathlib, signal, sys
os.kill(int(pathlib.Path("/proc/1/task/1/children").read_text()), signal.Signals[sys.argv[1]])
"""


def kubectl(*argv: str, stdin: str | None = None) -> str:
    """What kubectl says on both its streams, a warning of the server included; fails when kubectl does."""
    done = _kubectl(*argv, stdin=stdin)
    assert done.returncode == 0, f"kubectl {' '.join(argv)}: {done.stderr}"
    return done.stdout + done.stderr


def get(*argv: str) -> Manifest:
    """An object, or a list of them, as the server has it."""
    done = _kubectl("get", *argv, "--output=json")
    assert done.returncode == 0, f"kubectl get {' '.join(argv)}: {done.stderr}"
    return dict(json.loads(done.stdout))


def _kubectl(*argv: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["kubectl", *argv], input=stdin, capture_output=True, text=True, timeout=WAIT_SECONDS)


def wait_for(what: str, condition: Callable[[], T | None]) -> T:
    """The first answer of `condition` that is not None."""
    until = time.monotonic() + WAIT_SECONDS
    while (answer := condition()) is None:
        assert time.monotonic() < until, f"waited {WAIT_SECONDS} s for {what}"
        time.sleep(POLL_SECONDS)
    return answer


def seconds_until(event: str, *, pod: Manifest, log: list[Event]) -> float:
    """From the moment at which a pod got a node until its program logged an event."""
    (scheduled,) = [it for it in pod["status"]["conditions"] if it["type"] == "PodScheduled"]
    logged = next(line for line in log if line["event"] == event)
    began = datetime.fromisoformat(scheduled["lastTransitionTime"])
    return (datetime.fromisoformat(logged["time"]) - began).total_seconds()


@dataclass(frozen=True)
class Namespace:
    """One namespace. Jobs and pods are named as the server names them."""

    name: str

    def kubectl(self, *argv: str, stdin: str | None = None) -> str:
        return kubectl(f"--namespace={self.name}", *argv, stdin=stdin)

    def get(self, *argv: str) -> Manifest:
        return get(f"--namespace={self.name}", *argv)

    def apply(self, manifests: list[Manifest]) -> str:
        """Apply manifests as `make deploy` would print them; returns what kubectl says of each."""
        return self.kubectl("apply", "--filename=-", stdin=as_text(manifests))

    def pods(self, job: str, index: int | None = None) -> list[Manifest]:
        """The pods of a Job, the newest last. One that was deleted is gone from here, too.

        `index` asks for those of one worker.
        """
        selector = f"batch.kubernetes.io/job-name={job}"
        if index is not None:
            selector += f",batch.kubernetes.io/job-completion-index={index}"
        pods = self.get("pods", f"--selector={selector}")["items"]
        return sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def newest_pod(self, job: str, index: int | None = None) -> str | None:
        """The name of a Job's newest pod, or of that of a worker. Fails when that can never start."""
        pods = self.pods(job, index)
        if not pods:
            return None
        for container in pods[-1]["status"].get("containerStatuses", []):
            waiting = container["state"].get("waiting", {})
            assert waiting.get("reason") not in CANNOT_START, (
                f"{waiting}\nthe image must be in the cluster: `kind load docker-image`, or push it and set IMAGE"
            )
        return str(pods[-1]["metadata"]["name"])

    def log(self, pod: str) -> list[Event]:
        """The lines that the program in a pod has logged so far."""
        done = _kubectl(f"--namespace={self.name}", "logs", pod)
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    def run(self, pod: str, *argv: str) -> str:
        """Run a command beside the program in a pod, as its user; returns what it prints."""
        done = _kubectl(f"--namespace={self.name}", "exec", pod, "--", *argv)
        assert done.returncode == 0, f"{' '.join(argv)} in {pod}: {done.stderr}"
        return done.stdout

    def signal(self, pod: str, name: str) -> None:
        """Send a signal to the program in a pod: the only child of its first process."""
        # A signal that ends the container may end what sent it, too: so kubectl's exit code says nothing.
        _kubectl(f"--namespace={self.name}", "exec", pod, "--", "python", "-c", SIGNAL, name)

    def wait_for_event(self, job: str, event: str, *, index: int | None = None, **facts: Any) -> str:
        """Wait until a pod of a Job, or of a worker, logs an event with these facts; returns the pod's name."""
        wanted = {"event": event, **facts}

        def found() -> str | None:
            pod = self.newest_pod(job, index)
            return pod if pod and any(wanted.items() <= line.items() for line in self.log(pod)) else None

        return wait_for(f"{wanted} of Job {job}", found)

    def wait_for_end(self, job: str) -> Manifest:
        """Wait until a Job is complete or has failed; returns that condition of it."""

        def ended() -> Manifest | None:
            self.newest_pod(job)
            conditions = self.get("job", job)["status"].get("conditions", [])
            return next(
                (it for it in conditions if it["type"] in ("Complete", "Failed") and it["status"] == "True"), None
            )

        return wait_for(f"the end of Job {job}", ended)

    def terminated(self, pod: str) -> Manifest:
        """How the container of a pod ended: exit code, message, times. Waits until it has."""

        def state() -> Manifest | None:
            statuses = self.get("pod", pod)["status"].get("containerStatuses", [])
            return statuses[0]["state"].get("terminated") if statuses else None

        return wait_for(f"the end of pod {pod}", state)
