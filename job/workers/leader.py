"""Worker 0's side: the others connect to it, and it passes on to each what happened to any."""

import asyncio
import socket
import time
import uuid
from typing import Any, Self

from job.errors import PeersMissing
from job.observe.events import WorkersMet
from job.observe.progress import Context
from job.wording import some
from job.workers import ports
from job.workers.meeting import Meeting
from job.workers.messages import SMALL_BYTES, Link, MalformedMessage, Message, framed, number, one_line, text
from job.workers.peers import Milestone, Peers

MAX_STRANGERS = 256
"""Connections at a time that have not said yet which worker they are."""
NUM_SHOWN = 8


class Leader(Peers):
    """Listens from the beginning of the context on, and gives `greeting`, a JSON object, to each that comes.

    Entering raises InvalidSettings when the port is taken.
    """

    def __init__(self, meeting: Meeting, context: Context, *, greeting: dict[str, Any]) -> None:
        super().__init__(meeting, 0, context)
        self._welcome = framed("welcome", session=uuid.uuid4().hex, greeting=greeting)
        self._sock: socket.socket | None = None
        self._num_strangers = 0
        self._claimed: set[int] = set()
        self._links: dict[int, Link] = {}
        self._at: dict[int, Milestone] = {}
        self._problems: dict[int, str] = {}
        self._refused: dict[int, str] = {}

    def __enter__(self) -> Self:
        self._sock = ports.listen(self.meeting.addresses.port, "at which workers meet")
        return super().__enter__()

    def meet(self) -> None:
        began = time.monotonic()
        super().meet()
        seconds = round(time.monotonic() - began, 1)
        self.context.observer.event(WorkersMet(self.meeting.num_workers, seconds))

    def tell(self, subject: str, content: Any) -> None:
        self._call(self._announce, framed("tell", subject=subject, content=content))

    def hear(self, subject: str) -> Any:
        raise NotImplementedError("worker 0 sends, and is sent nothing")

    def dismiss(self) -> None:
        self._is_dismissed = True
        self._loss = None

    def _look_who_is_missing(self, milestone: Milestone, waited_seconds: float) -> list[int]:
        missing = [worker for worker in range(self.meeting.num_workers) if self._at.get(worker, -1) < milestone]
        if not missing and self._problems:
            raise self._unreachable()
        patience = self.meeting.wait_seconds + (self.times.reach if milestone is Milestone.REACHED else 0)
        if missing and waited_seconds > patience:
            raise self._missing(missing)
        return missing

    def _missing(self, workers: list[int]) -> PeersMissing:
        def state(worker: int) -> str:
            if worker in self._links:
                return f"{worker} (came, and was not ready)"
            return f"{worker} ({self._refused[worker]})" if worker in self._refused else str(worker)

        shown = some([state(worker) for worker in workers], most=NUM_SHOWN, shown=str)
        return PeersMissing(
            f"of {self.meeting.num_workers} workers, these did not come within "
            f"{self.meeting.wait_seconds:g} s: {shown}",
            hint="see why they did not start, or set THAW_WORKER_WAIT_SECONDS higher; they are expected to reach "
            f"worker 0 at {self.meeting.addresses.leader_text}",
        )

    def _unreachable(self) -> PeersMissing:
        problems = [self._problems[worker] for worker in sorted(self._problems)]
        more = f"; {len(problems) - 1} other workers have such a problem" if len(problems) > 1 else ""
        first, last = self.meeting.addresses.port, self.meeting.addresses.port + self.meeting.num_workers
        return PeersMissing(
            f"{problems[0]}{more}",
            hint=f"let all workers reach each other at ports {first} to {last}, as by a NetworkPolicy, and see "
            "that THAW_WORKER_HOST is the right name of each",
        )

    # In the thread of the loop.

    async def _attend(self) -> None:
        # A plain function: in Python 3.11 a coroutine that is cancelled here ends with a traceback on standard error.
        server = await asyncio.start_server(lambda *streams: self._begin(self._answer(*streams)), sock=self._sock)
        try:
            await asyncio.Event().wait()
        finally:
            server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(reader, writer)
        try:
            worker = await self._accept(link)
            if worker is not None:
                await self._attend_to(worker, link)
        except Exception:  # as of OSError, EOFError, MalformedMessage
            pass  # No worker, or one that comes again: whatever strangers send, it harms nothing here.
        finally:
            link.abort()

    async def _accept(self, link: Link) -> int | None:
        """Which worker it is, if it may come in."""
        if self._num_strangers >= MAX_STRANGERS:
            return None
        self._num_strangers += 1
        try:
            async with asyncio.timeout(self.times.answer):
                hello = await link.receive(SMALL_BYTES)
                worker, run = number(hello, "worker", self.meeting.num_workers), text(hello, "run")
                if hello["kind"] != "hello" or worker == 0:
                    raise MalformedMessage("no hello of another worker")
                if hello["run"] == self.meeting.run:
                    self._refused.pop(worker, None)
                    why = self._why_not(worker)
                    if why is None:
                        self._claimed.add(worker)
                        return worker
                    link.send(framed("refused", why=why))
                else:
                    self._refused[worker] = f"one came from {link.peer} that is of {run}"
                    link.send(framed("refused", why="it is of another run", run=one_line(self.meeting.run)))
                link.finish()
                await link.receive(SMALL_BYTES)  # until the other side has it, and ends the connection
        finally:
            self._num_strangers -= 1
        return None

    def _why_not(self, worker: int) -> str | None:
        if worker in self._claimed:
            return f"another process is worker {worker} already"
        if self._is_bound:
            return "the workers have met already"
        if self._loss is not None or self._stop is not None or self._is_closing:
            return "it is ending"
        return None

    async def _attend_to(self, worker: int, link: Link) -> None:
        how = "its connection ended"
        try:
            await link.send_slowly(self._welcome)
            self._links[worker] = link
            if self._stop is not None:
                link.send(framed("stop", reason=self._stop))
            if self._loss is not None:
                link.send(framed("lost", loss=self._loss))
            while True:
                self._receive(worker, await link.receive(SMALL_BYTES))
        except (OSError, MalformedMessage) as error:
            how = str(getattr(error, "strerror", None) or error)
        except EOFError:
            pass
        finally:
            self._claimed.discard(worker)
            self._links.pop(worker, None)
            if self._is_bound or self._stop is not None:
                self._lose(f"worker {worker} is gone: {how}")
            else:
                self._at.pop(worker, None)
                self._problems.pop(worker, None)

    def _receive(self, worker: int, message: Message) -> None:
        if message["kind"] == "at":
            milestone = Milestone(number(message, "stage", len(Milestone)))
            self._arrive(worker, milestone, text(message, "problem") if message.get("problem") is not None else None)
        elif not (self._is_dismissed or self._take(worker, message)):
            raise MalformedMessage(f"unknown: {message['kind'][:20]!r}")

    def _come(self, milestone: Milestone, problem: str | None) -> None:
        self._arrive(0, milestone, problem)

    def _arrive(self, worker: int, milestone: Milestone, problem: str | None) -> None:
        self._at[worker] = milestone
        if problem is not None:
            self._problems[worker] = problem
        if milestone <= self._released:
            # It came again, while the others are further.
            self._links[worker].send(framed("go", stage=self._released))
        elif (
            all(self._at.get(other, -1) >= milestone for other in range(self.meeting.num_workers))
            and not self._problems
        ):
            if milestone >= Milestone.REACHED:
                self._is_bound = True
                self._hear_all()
            self._announce(framed("go", stage=milestone))
            self._begin(self._go_last(milestone))
        self._notify()

    async def _go_last(self, milestone: Milestone) -> None:
        """Let this worker go on when the others may: what it does next may let no thread run until they do too."""
        while not all(link.has_sent_all for link in self._links.values()):
            await asyncio.sleep(0.01)
        self._released = max(self._released, milestone)
        self._notify()

    def _hear_all(self) -> None:
        for link in self._links.values():
            link.heard_at = time.monotonic()

    def _announce(self, frame: bytes) -> None:
        for link in self._links.values():
            link.send(frame)

    def _beat(self, stood_still: bool) -> None:
        if stood_still:
            self._hear_all()
        self._announce(framed("beat"))
        if self._is_bound:
            for worker, link in list(self._links.items()):
                if time.monotonic() - link.heard_at > self.times.silent:
                    self._lose(f"worker {worker} was silent for {self.times.silent:g} s")
                    link.abort()

    async def _end_links(self) -> None:
        for link in self._links.values():
            link.finish()
        while self._links:
            await asyncio.sleep(0.01)
