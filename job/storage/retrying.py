"""A store in a network, as a run needs it: each call is tried again while that may help, and each try is reported.

The store inside makes one try for each call. What it raises says whether another one may help:

- A StorageError itself may pass: the call is made again after a delay that grows, for `retry_seconds` in all.
- ObjectDamaged and AnswerMalformed are faults of the moment: the call is made again at once, `TRIES` times in all. A
  write that the store holds with other bytes than were sent is repeated on the version that it has there.
- PreconditionFailed may be the work of an earlier try of the same call, whose answer was lost. So the object is looked
  up. If it is still what the write expected, the refusal was false, and the write is sent again. If it is what was
  sent, the write is a success. Only else did another process write it.
- AccessDenied is final, unless this store has granted a request of the same kind before (read, write, list, delete):
  then credentials are being renewed, or rights changed, and it is as an outage.
- All others, such as ObjectMissing and StorageRefused, are final.
"""

import contextlib
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from job.errors import AccessDenied, AnswerMalformed, ObjectDamaged, ObjectMissing, PreconditionFailed, StorageError
from job.storage.protocol import Digest, ObjectStore, RequestObserver, StoredObject, Unobserved, digest_of

T = TypeVar("T")

TRIES = 3
REPORT_AFTER_SECONDS = 5.0
"""A failure that lasts so long is reported, before it is given up."""
DELAY_GROWTH, MAX_DELAY_FACTOR = 2.0, 20.0
_UNSEEDED = random.Random()
"""Python's own generator has the seed of the run, so all its workers would try again at the same moments."""
PASSING = "it may pass: start the run again, nothing is lost"
NO_BUCKET = "create it, or correct its name: in THAW_STORAGE_URI, or wherever it was given"


class RemoteStore(ObjectStore, Protocol):
    """An object store that makes one try for each call."""

    def holds(self, name: str, source: bytes | Path) -> str | None:
        """The version of the object if its bytes are those of `source`; else None. Raises ObjectMissing."""


class RetryingStore(ObjectStore):
    """A remote store with retries, as the docstring of this module has them.

    The first delay is a random part of `first_delay_seconds`; each one after that is a part of twice as much, up to
    twenty times the first. `pause` waits for so many seconds, and may raise to give up.
    """

    def __init__(
        self,
        store: RemoteStore,
        *,
        observer: RequestObserver | None = None,
        retry_seconds: float = 120.0,
        first_delay_seconds: float = 1.0,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.remote = store
        self.uri = store.uri
        self.observer = observer or Unobserved()
        self._retry_seconds = retry_seconds
        self._first_delay_seconds = first_delay_seconds
        self.pause = pause
        self._granted: set[str] = set()

    def read(self, name: str) -> StoredObject:
        return self._ask("read", lambda: self.remote.read(name))

    def peek(self, name: str) -> bytes:
        return self._ask("read", lambda: self.remote.peek(name))

    def write(self, name: str, data: bytes, *, if_version: str) -> str:
        return self._sent(name, data, if_version, partial(self.remote.write, name, data), lambda version: version)

    def upload(self, name: str, source: Path, *, if_version: str, may_move: bool = False) -> Digest:
        # It is not moved: another try may need it.
        return self._sent(
            name, source, if_version, partial(self.remote.upload, name, source), lambda _: digest_of(source)
        )

    def download(self, name: str, target: Path) -> Digest:
        return self._ask("read", lambda: self.remote.download(name, target))

    def version(self, name: str) -> str:
        return self._ask("read", lambda: self.remote.version(name))

    def age_seconds(self, name: str) -> float | None:
        return self._ask("read", lambda: self.remote.age_seconds(name))

    # An empty listing is requested twice: an answer may lack its items, and obstore 0.12 takes one that it does not
    # understand for an empty one.

    def folders(self) -> list[str]:
        return self._ask("list", self.remote.folders) or self._ask("list", self.remote.folders)

    def versions(self, prefix: str) -> dict[str, str]:
        def ask() -> dict[str, str]:
            return self._ask("list", lambda: self.remote.versions(prefix))

        return ask() or ask()

    def delete(self, name: str) -> None:
        self._ask("delete", lambda: self.remote.delete(name))

    def _sent(
        self,
        name: str,
        source: bytes | Path,
        if_version: str,
        send: Callable[..., T],
        result: Callable[[str], T],
    ) -> T:
        """Write `source` with `send`, which takes the version to write on as `if_version`.

        Where an earlier try has written it, `result` makes the result from the version that the object has.
        """
        expected = if_version
        fault: StorageError | None = None
        for number in range(TRIES):
            if number > 0:
                self.observer.retry("write")
            try:
                return self._ask("write", partial(send, if_version=expected), tries=1)
            except AnswerMalformed as error:
                # The object may be there: then every further try is refused.
                fault = error
            except ObjectDamaged as error:
                expected, fault = error.written or expected, error
            except PreconditionFailed:
                if self.version(name) == expected:
                    continue
                with contextlib.suppress(ObjectMissing):
                    held = self._ask("read", lambda: self.remote.holds(name, source))
                    if held is not None:
                        return result(held)
                if fault is not None:
                    raise fault from None
                self.observer.conflict(name)
                raise
        raise fault or StorageError(
            f"{self.uri}/{name} is of the expected version, and a write on it is refused", hint=PASSING
        )

    def _ask(self, operation: str, request: Callable[[], T], *, tries: int = TRIES) -> T:
        """Make a request until it is answered; at most `tries` times after faults of the moment."""
        delay, failing_since, is_reported = self._first_delay_seconds, None, False
        while True:
            began = time.monotonic()
            try:
                answer = request()
            except StorageError as error:
                now = time.monotonic()
                self.observer.request(operation, error.code, now - began)
                # A transfer may have gone well for long before it failed.
                failing_since = max(began, now - REPORT_AFTER_SECONDS) if failing_since is None else failing_since
                if isinstance(error, (ObjectDamaged, AnswerMalformed)):
                    tries, seconds = tries - 1, 0.0
                    if tries == 0:
                        raise
                elif type(error) is StorageError or (isinstance(error, AccessDenied) and operation in self._granted):
                    seconds = _UNSEEDED.uniform(delay / 2, delay)
                    delay = min(DELAY_GROWTH * delay, MAX_DELAY_FACTOR * self._first_delay_seconds)
                    if now + seconds - failing_since > self._retry_seconds:
                        raise _given_up(error, now - failing_since) from error
                    if not is_reported and now - failing_since >= REPORT_AFTER_SECONDS:
                        is_reported = True
                        self.observer.unanswered(error.message, self._retry_seconds)
                else:
                    raise
                self.observer.retry(operation)
                self.pause(seconds)
            else:
                self.observer.request(operation, "ok", time.monotonic() - began)
                self._granted.add(operation)
                return answer


def _given_up(error: StorageError, seconds: float) -> StorageError:
    return StorageError(f"{error.message} (tried for {seconds:.1f} s)", hint=error.hint)
