"""Opens the store of a question. While no store answers, standard error says so."""

import sys
import time
from collections.abc import Callable

from job.data.input_store import OnlyWaits
from job.observe import events
from job.observe.observer import Observer
from job.observe.sentences import sentence
from job.storage import ObjectStore, open_store
from job.wording import printable


class WaitWarnings(OnlyWaits):
    """Warns of waits on standard error: standard output has the answer alone."""

    def __init__(self) -> None:
        super().__init__(_warn)


class Warnings(Observer):
    """Says on standard error what an answer has to wait for, and nothing else of what happens."""

    def event(self, event: events.Event) -> None:
        if event.level != "info":
            _warn(event)


def open_asked(uri: str, *, pause: Callable[[float], None] = time.sleep) -> ObjectStore:
    """The store of a place, as `open_store` opens it."""
    return open_store(uri, observer=WaitWarnings(), pause=pause)


def _warn(event: events.Event) -> None:
    print(f"warning: {printable(sentence(event))}", file=sys.stderr, flush=True)
