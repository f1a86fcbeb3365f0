"""The side of every worker but 0: it connects to worker 0 for as long as that takes, and learns from it."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from job.errors import RESUME, InvalidSettings, PeerLost
from job.observe.progress import Context
from job.workers.meeting import Meeting
from job.workers.messages import MAX_BYTES, Link, MalformedMessage, Message, framed, number, one_line, text
from job.workers.peers import Milestone, Peers


class Follower(Peers):
    """Connects from the beginning of the context on. What does not resolve, refuses or resets is not there yet."""

    def __init__(
        self, meeting: Meeting, context: Context, *, worker: int, look_again: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(meeting, worker, context, look_again)
        self._link: Link | None = None
        self._is_welcome = False
        self._problem = "no connection"
        self._heard_at = time.monotonic()  # of the connection before
        self._session: str | None = None
        self._greeting: dict[str, Any] | None = None
        self._has_read_greeting = False
        self._at: tuple[Milestone, str | None] | None = None
        self._other_run: str | None = None
        self._refused_at: float | None = None

    def greeting(self) -> dict[str, Any]:
        """What worker 0 sends to each that connects; waits for it.

        Raises InvalidSettings when worker 0 is of another run, PeerLost when it does not answer, and as `check` does.
        """
        return self._wait_for(self._read_greeting, Milestone.READY)

    def tell(self, subject: str, content: Any) -> None: ...
    def dismiss(self) -> None: ...

    def _read_greeting(self) -> dict[str, Any] | None:
        self._has_read_greeting = self._has_read_greeting or self._greeting is not None
        return self._greeting

    def _look_who_is_missing(self, milestone: Milestone, waited_seconds: float) -> list[int]:
        """Worker 0, where that does not answer: only that one knows of the others, and says when it gives up."""
        now, link, refused_at = time.monotonic(), self._link, self._refused_at
        address, wait_seconds = self.meeting.addresses.leader_text, self.meeting.wait_seconds
        heard_at = link.heard_at if link is not None and self._is_welcome else self._heard_at
        if refused_at is not None and now - refused_at > min(self.times.refused, wait_seconds):
            raise InvalidSettings(
                f"worker 0 at {address} is of {self._other_run}, and worker {self.share.worker} of "
                f"{one_line(self.meeting.run)}; expected the same run, settings and version of all workers",
                hint="start all workers with the same image and the same settings",
            )
        if min(waited_seconds, now - heard_at) > wait_seconds:
            raise PeerLost(
                f"worker 0 did not answer at {address} within {wait_seconds:g} s: {self._problem}",
                hint=f"see what became of worker 0, THAW_WORKER_HOST and a NetworkPolicy; then {RESUME}",
            )
        return [] if self._is_welcome else [0]

    # In the thread of the loop.

    async def _attend(self) -> None:
        while not self._is_closing:
            try:
                async with asyncio.timeout(self.times.answer):
                    reader, writer = await asyncio.open_connection(*self.meeting.addresses.leader)
            except TimeoutError:
                self._problem, self._refused_at = "no connection in time", None
            except (OSError, ValueError) as error:
                self._problem, self._refused_at = str(error), None
            else:
                await self._converse(Link(reader, writer))
                if self._is_bound or self._loss is not None:
                    self._lose(f"worker 0 is gone: {self._problem}")
                    return
            await asyncio.sleep(self.times.poll)

    async def _converse(self, link: Link) -> None:
        self._link = link
        try:
            link.send(framed("hello", worker=self.share.worker, run=self.meeting.run))
            while self._receive(await link.receive(MAX_BYTES)):
                self._notify()
        except (OSError, EOFError, MalformedMessage) as error:
            self._problem = str(getattr(error, "strerror", None) or error)
        finally:
            if self._is_welcome:
                self._heard_at = link.heard_at
            self._is_welcome, self._link = False, None
            link.abort()

    def _receive(self, message: Message) -> bool:
        """Take a message; whether there is more to expect."""
        kind = message["kind"]
        if kind == "refused":
            self._problem = f"it refused: {text(message, 'why')}"
            self._other_run = text(message, "run") if "run" in message else None
            self._refused_at = (self._refused_at or time.monotonic()) if self._other_run is not None else None
            return False
        if kind == "welcome":
            return self._is_taken_in(message)
        if not self._is_welcome:
            raise MalformedMessage("neither welcome nor refused")
        if kind == "go":
            self._released = max(self._released, number(message, "stage", len(Milestone)))
            self._is_bound = self._released >= Milestone.REACHED
        elif kind == "tell":
            self._received.setdefault(text(message, "subject"), deque()).append(message.get("content"))
        elif not self._take(0, message):
            raise MalformedMessage(f"unknown: {kind[:20]!r}")
        return True

    def _is_taken_in(self, message: Message) -> bool:
        session, greeting = text(message, "session"), message.get("greeting")
        if not isinstance(greeting, dict):
            raise MalformedMessage("the greeting is no object")
        if self._has_read_greeting and session != self._session:
            # This worker may know older things than that one; a new process in its place will not.
            self._problem = "it began anew"
            self._lose("worker 0 began anew")
            return False
        self._session, self._greeting = session, greeting
        self._is_welcome, self._refused_at, self._problem = True, None, "it fell silent"
        if self._at is not None:
            self._come(*self._at)
        return True

    def _come(self, milestone: Milestone, problem: str | None) -> None:
        self._at = milestone, problem
        if self._is_welcome:
            self._announce(framed("at", stage=milestone, problem=problem))

    def _announce(self, frame: bytes) -> None:
        if self._link is not None and self._is_welcome:
            self._link.send(frame)

    def _beat(self, stood_still: bool) -> None:
        link = self._link
        if link is None:
            return
        if stood_still:
            link.heard_at = time.monotonic()
        self._announce(framed("beat"))
        if (self._is_bound or not self._is_welcome) and time.monotonic() - link.heard_at > self.times.silent:
            if self._is_bound:
                self._lose(f"worker 0 was silent for {self.times.silent:g} s")
            link.abort()

    async def _end_links(self) -> None:
        if self._link is not None:
            self._link.finish()
        while self._link is not None:
            await asyncio.sleep(0.01)
