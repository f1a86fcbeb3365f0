"""The store of a place that a question is about, which says so when it does not answer."""

import sys
from collections.abc import Callable

from job.observe import events
from job.observe.wording import printable, sentence
from job.storage import ObjectStore, open_store
from job.storage.protocol import Unobserved


class StoreWaits:
    """What a store reports of its waits, as events."""

    def __init__(self, tell: Callable[[events.Event], object]) -> None:
        self._tell = tell

    def waiting(self, lock: str, at_most_seconds: float) -> None:
        self._tell(events.WaitingForLock(lock, at_most_seconds))

    def unanswered(self, reason: str, at_most_seconds: float) -> None:
        self._tell(events.WaitingForStore(reason, at_most_seconds))


class Telling(StoreWaits, Unobserved):
    """Tells a person why nothing happens, on standard error: the answer is on the other one."""

    def __init__(self) -> None:
        super().__init__(_tell)


def open_asked(uri: str) -> ObjectStore:
    """The store of a place, as `open_store` opens it."""
    return open_store(uri, observer=Telling())


def _tell(event: events.Event) -> None:
    print(f"warning: {printable(sentence(event))}", file=sys.stderr, flush=True)
