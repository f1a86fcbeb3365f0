"""Many small tasks on a few threads: what reads files and what fills a mirror waits for a disk or the network."""

import contextlib
import itertools
import queue
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

NUM_THREADS = 8
AHEAD = 8
"""So many tasks for each thread are begun before their results are used: a million of them take no memory."""

POLL_SECONDS = 0.2

T = TypeVar("T")


def in_threads(
    tasks: Iterable[Callable[[], T]],
    *,
    use: Callable[[T], None],
    tick: Callable[[], None],
    num_threads: int = NUM_THREADS,
) -> None:
    """Call all tasks on threads, and `use` with each result, here, in the order in which they end.

    `tick` is called here now and then, and may raise to leave. What it or a task raises ends the call; a task that has
    begun then is not waited for.
    """
    finished: queue.SimpleQueue[Future[T]] = queue.SimpleQueue()
    executor = ThreadPoolExecutor(num_threads, thread_name_prefix="task")
    remaining, num_left = iter(tasks), 0
    try:
        while True:
            for task in itertools.islice(remaining, AHEAD * num_threads - num_left):
                executor.submit(task).add_done_callback(finished.put)
                num_left += 1
            if not num_left:
                return
            with contextlib.suppress(queue.Empty):
                use(finished.get(timeout=POLL_SECONDS).result())
                num_left -= 1
            tick()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
