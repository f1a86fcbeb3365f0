"""Where the time of a run goes: every second of an attempt belongs to one stage and one category.

A stage is a part of the run ("head", "export"); a category is the use of a second, in any stage. Only one of each is
open at a time, so the seconds of an attempt add up to its wall time by construction.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, get_args

Category = Literal[
    "productive", "init", "download", "cache", "compile", "data_wait", "checkpoint_blocking", "restore", "recompute",
    "validate", "evaluate", "export", "idle",
]  # fmt: skip
"""`productive` are steps done for the first time, `recompute` those that an earlier attempt had done and lost."""

CATEGORIES: tuple[str, ...] = get_args(Category)

Seconds = Mapping[str, Mapping[str, float]]
"""Seconds by stage, then by category."""


class Ledger:
    """The seconds of this attempt, and of those before it. Threads may read it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._stage, self._category = "start", "init"
        self._closed: dict[str, dict[str, float]] = {}
        self._lock = threading.Lock()
        self.earlier: tuple[Seconds, ...] = ()

    @contextmanager
    def stage(self, name: str, category: Category) -> Iterator[None]:
        """Count the time inside for this stage, and for this category unless another one is opened inside."""
        before = self._enter(name, category)
        try:
            yield
        finally:
            self._enter(*before)

    def during(self, category: Category) -> AbstractContextManager[None]:
        """Count the time inside for this category, in the open stage."""
        return self.stage(self._stage, category)

    def _enter(self, stage: str, category: str) -> tuple[str, str]:
        with self._lock:
            now = self._clock()
            seconds = self._closed.setdefault(self._stage, {})
            seconds[self._category] = seconds.get(self._category, 0.0) + now - self._since
            before = self._stage, self._category
            self._stage, self._category, self._since = stage, category, now
        return before

    def seconds(self) -> dict[str, dict[str, float]]:
        """The seconds of this attempt up to now."""
        with self._lock:
            seconds = {stage: dict(categories) for stage, categories in self._closed.items()}
            open_stage = seconds.setdefault(self._stage, {})
            open_stage[self._category] = open_stage.get(self._category, 0.0) + self._clock() - self._since
        return seconds

    def of_run(self) -> tuple[Seconds, ...]:
        """The seconds of all attempts, this one up to now."""
        return (*self.earlier, self.seconds())


def by_stage(attempts: Iterable[Seconds]) -> dict[str, float]:
    """Seconds by stage over attempts."""
    total: dict[str, float] = {}
    for attempt in attempts:
        for stage, categories in attempt.items():
            total[stage] = total.get(stage, 0.0) + sum(categories.values())
    return total


def by_category(attempts: Iterable[Seconds]) -> dict[str, float]:
    """Seconds by category over attempts: every category, and those of attempts of another version."""
    total = dict.fromkeys(CATEGORIES, 0.0)
    for attempt in attempts:
        for categories in attempt.values():
            for category, seconds in categories.items():
                total[category] = total.get(category, 0.0) + seconds
    return total


def goodput(attempts: Iterable[Seconds]) -> float:
    """The share of productive seconds, 0 to 1; 0 before the first second."""
    seconds = by_category(attempts)
    whole = sum(seconds.values())
    return seconds["productive"] / whole if whole else 0.0
