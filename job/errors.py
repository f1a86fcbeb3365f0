"""Every way in which a run can fail, and the exit code that reports it to Kubernetes.

    ThawError
    ├── InvalidSettings         2   settings are wrong, all in one message; nothing was started
    ├── RunMismatch             3   the run id belongs to other settings, which the message lists
    ├── InputError              4   data or weights are not what the run needs, or not those that it began with
    │   ├── DataUnavailable         the data set is not where it was looked for, and cannot be downloaded
    │   ├── DataCorrupt             examples, which the message names, cannot be decoded
    │   ├── WeightsUnusable         weights are missing, unreadable, or not of this backbone
    │   ├── DeviceUnavailable       the GPU that was asked for cannot be used
    │   │   └── DeviceMissing           there is none
    │   ├── DiskTooSmall            what the run has still to write does not fit; nothing of it was written
    │   ├── RunUnavailable          a run is not there, or has not come far enough for the question
    │   └── RecordDamaged           run.json is missing beside checkpoints, unreadable, or of another run
    ├── DeviceFailed            1   the driver cannot start its GPU: not yet, or on this node
    ├── TrainingDiverged        5   the loss or a weight stopped being a finite number; no such state was committed
    ├── QualityGateMissed       6   the accuracy is below the gate; the result of a run is committed
    ├── MemoryExhausted         7   a device or the host has no memory left for a step; what was committed stands
    ├── Interrupted            42   asked to stop, by a signal; what was committed stands
    ├── Superseded             43   another attempt has written the record since this one last did
    ├── PeerLost               45   another worker has ended, or does not answer; what was committed stands
    ├── PeersMissing           46   other workers of the run never came; nothing was begun
    └── StorageError           44   the object store does not answer, or not as it should
        ├── StorageRefused       4  it refuses, and would again: bucket, name, kind of file
        │   └── AccessDenied            no credentials or permission; what was allowed before, may be allowed again
        ├── AnswerMalformed         an answer is not understood, or contradicted by another one
        ├── ObjectMissing           an object is not there
        ├── ObjectDamaged           an object is not what was sent, or not what the store has a checksum for
        ├── PreconditionFailed      the object is not of the version that the write was conditional on
        ├── ScratchUnavailable      a temporary file cannot be written or read back
        └── CheckpointDamaged       a checkpoint is not, byte for byte, what the record names

An error says what failed, on which value, and what was expected; its `hint` says what to do next.
Of the program nothing but `__main__` turns an error into an exit code.
"""

from enum import IntEnum
from typing import ClassVar

from job.redaction import redacted

RESUME = "start the same run again to carry on"
"""The hint after a stop and after the loss of a worker, or the end of one."""


class ExitCode(IntEnum):
    """How a process ends; the manifest's podFailurePolicy relies on the numbers.

    `meaning` says what happened, `retry` what another start of the same run does. The help and the reference in docs/
    are made from this table.
    """

    meaning: str
    retry: str

    def __new__(cls, code: int, meaning: str = "", retry: str = "") -> "ExitCode":
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning, member.retry = meaning, retry
        return member

    COMPLETE = 0, "complete: the result is committed, now or earlier", "does nothing"
    UNEXPECTED = 1, "unexpected error: a bug, or a GPU that its driver cannot start", "may help"
    INVALID_SETTINGS = 2, "invalid settings", "will not help"
    RUN_MISMATCH = 3, "the run id belongs to other settings", "will not help"
    BAD_INPUT = (
        4,
        "data, weights, a GPU, the run's record or access to the store missing, or damaged, or not what the run began "
        "with",
        "will not help",
    )
    DIVERGED = 5, "training diverged: the loss or a weight is not a finite number", "will not help"
    QUALITY_GATE = (
        6,
        "an accuracy below its gate (THAW_MIN_TEST_ACCURACY); the results are committed",
        "will not help",
    )
    MEMORY_EXHAUSTED = 7, "memory exhausted, of the GPU or of the host; what was committed stands", "will not help"
    INTERRUPTED = 42, "interrupted; what was committed stands", "carries on"
    SUPERSEDED = 43, "held by another attempt, or superseded by one", "waits, then carries on or finds the run complete"
    STORAGE_UNAVAILABLE = 44, "storage unavailable", "carries on"
    PEER_LOST = 45, "another worker of the run is gone; what was committed stands", "carries on"
    PEERS_MISSING = 46, "other workers of the run did not come in THAW_WORKER_WAIT_SECONDS", "may help"


class ThawError(Exception):
    """A failure that a person can act on; the message names the value and the rule, `hint` what to do next.

    Neither ever has the secrets of a URL, wherever its text comes from.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.UNEXPECTED

    def __init_subclass__(cls, *, exit_code: ExitCode | None = None) -> None:
        cls.exit_code = exit_code or cls.exit_code

    def __init__(self, message: str, *, hint: str = "") -> None:
        self.message = redacted(message)
        self.hint = redacted(hint)
        super().__init__(self.message)


class InvalidSettings(ThawError, exit_code=ExitCode.INVALID_SETTINGS): ...


class RunMismatch(ThawError, exit_code=ExitCode.RUN_MISMATCH): ...


class InputError(ThawError, exit_code=ExitCode.BAD_INPUT): ...


class DataUnavailable(InputError): ...


class DataCorrupt(InputError): ...


class WeightsUnusable(InputError): ...


class DeviceUnavailable(InputError): ...


class DeviceMissing(DeviceUnavailable): ...


class DiskTooSmall(InputError): ...


class RunUnavailable(InputError): ...


class RecordDamaged(InputError): ...


class DeviceFailed(ThawError): ...


class TrainingDiverged(ThawError, exit_code=ExitCode.DIVERGED): ...


class QualityGateMissed(ThawError, exit_code=ExitCode.QUALITY_GATE): ...


class MemoryExhausted(ThawError, exit_code=ExitCode.MEMORY_EXHAUSTED): ...


class Interrupted(ThawError, exit_code=ExitCode.INTERRUPTED): ...


class Superseded(ThawError, exit_code=ExitCode.SUPERSEDED): ...


class PeerLost(ThawError, exit_code=ExitCode.PEER_LOST): ...


class PeersMissing(ThawError, exit_code=ExitCode.PEERS_MISSING): ...


class StorageError(ThawError, exit_code=ExitCode.STORAGE_UNAVAILABLE):
    """`code` says how, for metrics: an HTTP status where there was one."""

    code = "error"


class StorageRefused(StorageError, exit_code=ExitCode.BAD_INPUT):
    code = "refused"


class AccessDenied(StorageRefused): ...


class AnswerMalformed(StorageError):
    code = "malformed"


class ObjectDamaged(StorageError):
    """`written` is the version of the object, where it is this process that wrote it so.

    `stored` are bytes and version of a small object that is not what it was written with, as it arrived.
    """

    code = "damaged"
    written = ""
    stored: tuple[bytes, str] | None = None


class ObjectMissing(StorageError):
    code = "missing"


class PreconditionFailed(StorageError):
    code = "conflict"


class ScratchUnavailable(StorageError): ...


class CheckpointDamaged(StorageError): ...


def proxy_hint() -> str:
    """The end of a hint about a download: names the proxy, if there is one, for a wrong one looks like no network."""
    # Imported here: it would delay every start, and hardly any needs it.
    import urllib.request

    proxy = urllib.request.getproxies().get("https")
    return f"; https_proxy={proxy} is in use: correct it, or unset it" if proxy else ""
