"""How long each stage of a run took, summed over all its attempts."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class Durations:
    """Seconds by stage: what earlier attempts recorded, plus what this one has spent."""

    def __init__(self, recorded: Mapping[str, float], clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = dict(recorded)
        self._clock = clock
        self._open: tuple[str, float] | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time inside as `name`; stages do not nest."""
        self._open = (name, self._clock())
        try:
            yield
        finally:
            self._seconds = self.so_far()
            self._open = None

    def so_far(self) -> dict[str, float]:
        """Seconds by stage, the open one included up to now."""
        seconds = dict(self._seconds)
        if self._open is not None:
            name, since = self._open
            seconds[name] = seconds.get(name, 0.0) + self._clock() - since
        return seconds
