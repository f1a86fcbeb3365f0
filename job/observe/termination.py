"""The termination message, which Kubernetes shows of a container that has ended (`kubectl describe pod`).

One line of JSON of at most 4096 bytes, in the file that the container's `terminationMessagePath` names.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from job.observe.progress import Progress
from job.paths import expanded
from job.redaction import redacted_value

MAX_BYTES = 4096
DEFAULT_PATH = Path("/dev/termination-log")


def message(*, exit_code: int, reason: str, hint: str, progress: Progress) -> bytes:
    """The message; reason and hint are cut where it would be too long."""
    content: dict[str, Any] = {
        "exit_code": exit_code,
        "reason": reason,
        "hint": hint,
        "phase": progress.stage,
        "step": progress.step,
        "last_commit": progress.last_commit,
    }
    for key in ("reason", "hint"):
        text = str(content[key])
        while len(json.dumps(content).encode()) > MAX_BYTES and text:
            # A character takes up to twelve bytes of JSON.
            text = text[: -max(1, (len(json.dumps(content).encode()) - MAX_BYTES) // 12)]
            content[key] = f"{text}..."
    return json.dumps(content).encode()


def leave(path: Path | str | None, data: bytes) -> None:
    """Write a message to `path`, or to Kubernetes' default place if that exists.

    A failure is only a warning, on standard error.
    """
    target = path or (DEFAULT_PATH if DEFAULT_PATH.exists() else None)
    if target is None:
        return
    try:
        target = expanded(target)
        # Not blocking: a named pipe without a reader is an error then.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK
        with os.fdopen(os.open(target, flags, 0o666), "wb") as file:
            file.write(data)
    except (OSError, ValueError) as error:
        problem = f"{target}: {error.strerror if isinstance(error, OSError) else error}"
        print(f"warning: no termination message: {redacted_value(problem)}", file=sys.stderr)
