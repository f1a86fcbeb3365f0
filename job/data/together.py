"""Many small tasks on a few threads: what fetches and what fills a mirror waits for the network most of the time."""

import contextlib
import queue
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

NUM_THREADS = 8
POLL_SECONDS = 0.2

T = TypeVar("T")


def together(tasks: Iterable[Callable[[], T]], *, use: Callable[[T], None], tick: Callable[[], None]) -> None:
    """Call all tasks on threads, and `use` with each result, here, in the order in which they end.

    `tick` is called here now and then, and may raise to leave. What it or a task raises ends the call; a task that has
    begun then is not waited for.
    """
    finished: queue.SimpleQueue[Future[T]] = queue.SimpleQueue()
    executor = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="together")
    try:
        num_left = 0
        for task in tasks:
            executor.submit(task).add_done_callback(finished.put)
            num_left += 1
        while num_left:
            with contextlib.suppress(queue.Empty):
                use(finished.get(timeout=POLL_SECONDS).result())
                num_left -= 1
            tick()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
