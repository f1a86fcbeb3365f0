"""What every part of an attempt is given."""

from collections.abc import Callable
from dataclasses import dataclass

from job.observe.events import Observer
from job.observe.progress import Progress


@dataclass(frozen=True)
class Context:
    """`observer` receives the events, `progress` how far the attempt is; `check_stop` raises when it must end.

    `check_stop` is called often. It raises Interrupted when the process must stop, Superseded when the run is lost.
    """

    observer: Observer
    progress: Progress
    check_stop: Callable[[], None]
