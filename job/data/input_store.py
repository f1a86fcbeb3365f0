"""The stores that data and weights are read from. One that does not answer is reported, and a stop ends the wait."""

import time
from collections.abc import Callable

from job.observe import events
from job.observe.observer import Observer
from job.storage import ObjectStore, open_store
from job.storage.protocol import Unobserved

LOOK_SECONDS = 0.1


class StoreWaits:
    """Makes events of the waits that a store reports."""

    def __init__(self, report: Callable[[events.Event], object]) -> None:
        self._report = report

    def waiting(self, lock: str, at_most_seconds: float) -> None:
        self._report(events.WaitingForLock(lock, at_most_seconds))

    def unanswered(self, reason: str, at_most_seconds: float) -> None:
        self._report(events.WaitingForStore(reason, at_most_seconds))


class OnlyWaits(StoreWaits, Unobserved):
    """Ignores every other report."""


def open_input(uri: str, *, observer: Observer, check_stop: Callable[[], None]) -> ObjectStore:
    """The store of a place, as `open_store` opens it. Its waits raise what `check_stop` raises."""

    def pause(seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            check_stop()
            time.sleep(min(LOOK_SECONDS, left))

    return open_store(uri, observer=OnlyWaits(observer.event), pause=pause)
