"""Many small tasks on a few threads."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest

from job.data.threads import AHEAD, in_threads
from job.errors import Interrupted


def test_a_million_tasks_are_not_begun_before_their_results_are_used() -> None:
    """Tasks are made as they are needed, all are done, and each result is used once."""
    num_made = 0
    used: list[int] = []

    def tasks() -> Iterator[Callable[[], int]]:
        nonlocal num_made
        for number in range(1000):
            num_made += 1
            yield partial(abs, -number)

    def tick() -> None:
        assert num_made - len(used) <= AHEAD * 2

    in_threads(tasks(), use=used.append, tick=tick, num_threads=2)
    assert sorted(used) == list(range(1000))


def test_what_a_task_or_a_tick_raises_ends_it() -> None:
    """A stop is seen after the first result."""
    used: list[int] = []

    def stop() -> None:
        raise Interrupted("now")

    with pytest.raises(Interrupted):
        in_threads([partial(abs, 1)] * 9, use=used.append, tick=stop)
    assert used == [1]
    with pytest.raises(ValueError, match="invalid literal"):
        in_threads([partial(int, "x")], use=used.append, tick=lambda: None)
