"""Opens the store of a question. While no store answers, standard error says so."""

import sys
import time
from collections.abc import Callable

from job.observe import events
from job.observe.sentences import sentence
from job.storage import ObjectStore, open_store
from job.storage.protocol import Unobserved
from job.wording import printable


class StoreWaits:
    """Makes events of the waits that a store reports."""

    def __init__(self, report: Callable[[events.Event], object]) -> None:
        self._report = report

    def waiting(self, lock: str, at_most_seconds: float) -> None:
        self._report(events.WaitingForLock(lock, at_most_seconds))

    def unanswered(self, reason: str, at_most_seconds: float) -> None:
        self._report(events.WaitingForStore(reason, at_most_seconds))


class WaitWarnings(StoreWaits, Unobserved):
    """Warns of waits on standard error: standard output has the answer alone."""

    def __init__(self) -> None:
        super().__init__(_warn)


def open_asked(uri: str, *, pause: Callable[[float], None] = time.sleep) -> ObjectStore:
    """The store of a place, as `open_store` opens it."""
    return open_store(uri, observer=WaitWarnings(), pause=pause)


def _warn(event: events.Event) -> None:
    print(f"warning: {printable(sentence(event))}", file=sys.stderr, flush=True)
