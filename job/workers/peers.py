"""What a worker knows of the others; `leader` and `follower` are the two sides.

All that is sent and received is in one thread with an event loop; the thread of the run only looks at what is known,
and waits for it. They meet at milestones, each of which all have come to before worker 0 lets any go on: READY, each
listens at its port for tensors; REACHED, each was answered there by every other; CLOSED, the ports are free for
TensorFlow. Until REACHED is complete, a worker may go away and come again: importing TensorFlow keeps a process
silent for a while, and a pod may be moved. From then on, one that goes away or falls silent is lost, and the first
loss is known to all at once. A stop is not a loss, nor is what happens after it.
"""

import asyncio
import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from enum import IntEnum
from types import TracebackType
from typing import Any, Self, TypeVar

from job.errors import RESUME, ExitCode, Interrupted, PeerLost, ThawError
from job.observe.events import WaitingForWorkers
from job.observe.progress import Context
from job.workers import ports
from job.workers.meeting import Meeting
from job.workers.messages import Message, framed, number, one_line, text
from job.workers.share import Share
from job.workers.team import Team

T = TypeVar("T")
LOOK_SECONDS = 0.1
FINISH_SECONDS = 2.0


class Milestone(IntEnum):
    """How far a meeting is."""

    READY = 0
    REACHED = 1
    CLOSED = 2


class Peers(Team, ABC):
    """One side; a context manager. Leaving it with an error tells the others why.

    Another thread too calls `check_stop` of the context, and, when this worker has not left long after another one has,
    `give_up`. `look_again` is called now and then while others are missing, and raises when there is nothing to wait
    for any more.
    """

    def __init__(
        self, meeting: Meeting, worker: int, context: Context, look_again: Callable[[], None] = lambda: None
    ) -> None:
        self.share = Share(worker, meeting.num_workers)
        self.meeting, self.times, self.context = meeting, meeting.times, context
        self._look_again = look_again
        self._changed = threading.Condition()
        self._loss: str | None = None
        self._stop: str | None = None
        self._has_announced_stop = False
        self._is_left_in_stop = False
        self._in_steps = False
        self._is_closing = False
        self._is_dismissed = False  # what becomes of the others does not matter any more
        self._is_bound = False  # from now on, one that goes away is lost
        self._released = -1  # the milestone that all have come to
        self._received: dict[str, deque[Any]] = {}
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._talk, daemon=True, name="workers")

    # What the run asks, in its own thread.

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and self._loss is None and self._stop is None:
            exit_code = error.exit_code if isinstance(error, ThawError) else ExitCode.UNEXPECTED
            reason = str(error) or type(error).__name__
            if exit_code == ExitCode.INTERRUPTED:
                self._call(self._stopped, self._stop_text(reason))
            else:
                self._call(self._announce, framed("leaving", code=exit_code, reason=one_line(reason)))
        with contextlib.suppress(TimeoutError, RuntimeError):
            asyncio.run_coroutine_threadsafe(self._finish(), self._loop).result(2 * FINISH_SECONDS)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(FINISH_SECONDS)

    @property
    def is_stopping(self) -> bool:
        return self._stop is not None

    def check(self) -> None:
        self._look_for_signal()
        if self._loss is not None:
            raise self._lost()
        if self._stop is not None and not self._in_steps:
            raise self.interrupted()

    @contextlib.contextmanager
    def steps(self) -> Iterator[None]:
        self._in_steps = True
        try:
            yield
        finally:
            self._in_steps = False

    def interrupted(self) -> Interrupted:
        with self._changed:
            # They may have agreed before the message came that says which worker was stopped.
            self._changed.wait_for(lambda: self._stop is not None, FINISH_SECONDS)
        return Interrupted(f"{self._stop or 'stopped'}; what was committed stands", hint=RESUME)

    def failed(self, error: Exception) -> Exception:
        until = time.monotonic() + self.times.cause
        with self._changed:
            while time.monotonic() < until and not self._is_dismissed:
                if self._loss is not None:
                    return self._lost()
                if self._is_left_in_stop:
                    return self.interrupted()
                self._changed.wait(LOOK_SECONDS)
        return error

    def hear(self, subject: str) -> Any:
        return self._wait(lambda: (queue.popleft(),) if (queue := self._received.get(subject)) else None)[0]

    def meet(self) -> None:
        addresses, worker = self.meeting.addresses, self.share.worker
        sock = ports.listen(addresses.tensors(worker)[1], f"at which worker {worker} shares tensors")
        with contextlib.ExitStack() as stack:
            stack.callback(self._call, sock.close)
            server = self._run(ports.answer(worker, sock))
            stack.callback(self._call, server.close)
            self._pass(Milestone.READY, None)
            problem = self._run(ports.unreachable(addresses, worker, self.times.reach))
            self._pass(Milestone.REACHED, problem)
        self._pass(Milestone.CLOSED, None)

    # What each side does for that.

    @abstractmethod
    def _come(self, milestone: Milestone, problem: str | None) -> None:
        """This worker has come to a milestone, with what it cannot do there."""

    @abstractmethod
    def _look_who_is_missing(self, milestone: Milestone, waited_seconds: float) -> list[int]:
        """Who has not come to a milestone yet, as far as is known here; raises when it has waited for too long."""

    @abstractmethod
    def _announce(self, frame: bytes) -> None:
        """Send to all that this side is connected with."""

    @abstractmethod
    async def _attend(self) -> None:
        """Connect, and receive; for as long as the loop runs."""

    @abstractmethod
    async def _end_links(self) -> None:
        """Nothing more is sent; wait until the others have taken all."""

    @abstractmethod
    def _beat(self, stood_still: bool) -> None:
        """Give a sign of life and look for those of others, unless this process stood still and read none."""

    def _pass(self, milestone: Milestone, problem: str | None) -> None:
        """Say that this worker has come to a milestone, and wait until all have."""
        self._call(self._come, milestone, problem)
        self._wait_for(lambda: self._released >= milestone or None, milestone)

    def _wait_for(self, look: Callable[[], T | None], milestone: Milestone) -> T:
        """Wait for what `look` finds once the others are at a milestone; raises when they are missing for too long."""
        began = time.monotonic()
        note_at = began + self.times.note / 6

        def look_or_give_up() -> T | None:
            nonlocal note_at
            found, now = look(), time.monotonic()
            if found is None:
                missing = self._look_who_is_missing(milestone, now - began)
                if missing and now >= note_at:
                    note_at = now + self.times.note
                    self.context.observer.event(WaitingForWorkers(missing, at_most_seconds=self.meeting.wait_seconds))
                    self._look_again()
            return found

        return self._wait(look_or_give_up)

    def _wait(self, look: Callable[[], T | None]) -> T:
        """Wait until `look` finds something; raises as `check` does, but not about what came after that."""
        while True:
            error = None
            try:
                self.check()
            except ThawError as raised:
                error = raised
            found = look()
            if found is not None:
                return found
            if error is not None:
                raise error
            with self._changed:
                self._changed.wait(LOOK_SECONDS)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it in the loop; raises as `check` does meanwhile."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        future.add_done_callback(lambda _: self._notify())
        try:
            return self._wait(lambda: (future.result(),) if future.done() else None)[0]
        except BaseException:
            future.cancel()
            raise

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _lost(self) -> PeerLost:
        return PeerLost(self._loss or "", hint=RESUME)

    def _look_for_signal(self) -> None:
        if self._stop is None:
            try:
                self.context.check_stop()
            except Interrupted as error:
                self._stop = self._stop_text(error.message)
                self._call(self._stopped, self._stop)

    def _stop_text(self, message: str) -> str:
        return one_line(f"{message.partition(';')[0]} at worker {self.share.worker}")

    def _call(self, function: Callable[..., object], *values: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(function, *values)

    # The thread of the loop.

    def _talk(self) -> None:
        asyncio.set_event_loop(self._loop)
        for work in (self._attend(), self._keep_beating(), self._watch_signal()):
            self._begin(work)
        try:
            self._loop.run_forever()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        finally:
            self._loop.close()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._lose(f"worker {self.share.worker} cannot follow the others: {type(error).__name__}: {error}")

    async def _keep_beating(self) -> None:
        before = time.monotonic()
        while True:
            await asyncio.sleep(self.times.beat)
            now = time.monotonic()
            self._beat(stood_still=now - before > self.times.silent / 2)
            before = now

    async def _watch_signal(self) -> None:
        while True:
            with contextlib.suppress(ThawError):  # which the thread of the run sees for itself
                self._look_for_signal()
            await asyncio.sleep(LOOK_SECONDS)

    def _stopped(self, reason: str) -> None:
        """Any worker was stopped. Worker 0 announces it to all, and another worker to worker 0."""
        self._stop = self._stop or reason
        self._notify()
        if not self._has_announced_stop:
            self._has_announced_stop = True
            self._announce(framed("stop", reason=self._stop))

    def _lose(self, loss: str) -> None:
        """A worker is gone. Only the first loss counts, and none after a stop: workers leave one after the other."""
        if self._is_closing or self._is_dismissed or self._loss is not None or self._is_left_in_stop:
            return
        if self._stop is None:
            self._loss = loss
        self._is_left_in_stop = self._stop is not None
        self._notify()
        self._announce(framed("lost", loss=loss))
        # After a stop, worker 0 may still have to commit; the others have nothing left to do.
        may_commit = self._loss is None and self.share.worker == 0
        seconds = self.times.commit if may_commit else self.times.leave
        self._loop.call_later(seconds, self._stuck, loss, seconds)

    def _stuck(self, loss: str, seconds: float) -> None:
        if not (self._is_closing or self._is_dismissed):
            exit_code = ExitCode.PEER_LOST if self._stop is None else ExitCode.INTERRUPTED
            self.context.give_up(exit_code, f"{loss}; this worker had not ended {seconds:g} s later")

    def _take(self, worker: int, message: Message) -> bool:
        """Take a message that either side may get; whether it was one."""
        kind = message["kind"]
        if kind == "stop":
            self._stopped(text(message, "reason"))
        elif kind == "leaving":
            code, reason = number(message, "code", 256), text(message, "reason")
            self._lose(f"worker {worker} ended with exit code {code}: {reason}")
        elif kind == "lost":
            self._lose(text(message, "loss"))
        else:
            return kind == "beat"
        return True

    async def _finish(self) -> None:
        self._is_closing = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._end_links(), FINISH_SECONDS)
