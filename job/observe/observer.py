"""What follows a run, and gets every event and every step of it."""

from collections.abc import Callable

from job.observe.events import Event, StepDone

RunningMeans = Callable[[], tuple[float, float]]
"""Loss and accuracy of the epoch so far; calling it waits for the device."""


class Observer:
    """What a run reports to; this one ignores everything. Nothing in it may change how the run ends.

    `step` must cost next to nothing. `closing` is the result of a run as a table, for people.
    """

    def event(self, event: Event) -> None: ...
    def step(self, done: StepDone, running_means: RunningMeans) -> None: ...
    def closing(self, title: str, rows: dict[str, str]) -> None: ...


class Observers(Observer):
    """Several observers as one, in order."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def event(self, event: Event) -> None:
        for observer in self._observers:
            observer.event(event)

    def step(self, done: StepDone, running_means: RunningMeans) -> None:
        for observer in self._observers:
            observer.step(done, running_means)

    def closing(self, title: str, rows: dict[str, str]) -> None:
        for observer in self._observers:
            observer.closing(title, rows)
