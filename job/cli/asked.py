"""The store of a place that a question is about, which says so when it does not answer."""

import sys

from job.observe import events
from job.observe.wording import printable, sentence
from job.storage import ObjectStore, open_store
from job.storage.protocol import Unobserved


class Telling(Unobserved):
    """Tells a person why nothing happens, on standard error: the answer is on the other one."""

    def waiting(self, lock: str, at_most_seconds: float) -> None:
        _tell(events.WaitingForLock(lock, at_most_seconds))

    def unanswered(self, reason: str, at_most_seconds: float) -> None:
        _tell(events.WaitingForStore(reason, at_most_seconds))


def open_asked(uri: str) -> ObjectStore:
    """The store of a place, as `open_store` opens it."""
    return open_store(uri, observer=Telling())


def _tell(event: events.Event) -> None:
    print(f"warning: {printable(sentence(event))}", file=sys.stderr, flush=True)
