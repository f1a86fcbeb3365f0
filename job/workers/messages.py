"""Messages between two workers: JSON objects on a TCP connection, each after its length. Nothing in them is believed.

A message is four bytes, big-endian, with the number of bytes of a JSON object that has a text as `kind`. What does not
fit ends the connection: a port scanner, or a browser, is no worker.
"""

import asyncio
import contextlib
import json
import socket
import struct
import time
from typing import Any

Message = dict[str, Any]

LENGTH = struct.Struct(">I")
SMALL_BYTES = 64 << 10
"""At most, of any message to worker 0."""
MAX_BYTES = 128 << 20
"""At most, of any message from worker 0; run.json has at most half of that."""
MAX_WAITING_BYTES = 2 * MAX_BYTES
"""Written and not taken yet; more ends the connection."""
CHUNK_BYTES = 1 << 18
MAX_CHARACTERS = 500
KEEP_ALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}


class MalformedMessage(ValueError):
    """What came is no message of a worker."""


def framed(kind: str, **content: Any) -> bytes:
    """A message as it is sent; ValueError where it is too long, or has what JSON has not."""
    data = json.dumps({"kind": kind, **content}).encode()
    if len(data) > MAX_BYTES:
        raise ValueError(f"a message about {kind} of {len(data)} bytes, expected at most {MAX_BYTES}")
    return LENGTH.pack(len(data)) + data


def text(message: Message, name: str) -> str:
    """One line of a message, cut short where it is long."""
    value = message.get(name)
    if not isinstance(value, str):
        raise MalformedMessage(f"{name} of {message.get('kind')} is no text")
    return one_line(value)


def one_line(value: str) -> str:
    """The first line that has something to print, cut short where it is long."""
    for line in value.splitlines():
        words = "".join(character if character.isprintable() else " " for character in line).split()
        if words:
            return " ".join(words)[:MAX_CHARACTERS]
    return ""


def number(message: Message, name: str, below: int) -> int:
    """A whole number of a message, from 0."""
    value = message.get(name)
    if type(value) is not int or not 0 <= value < below:
        raise MalformedMessage(f"{name} of {message.get('kind')} is no number below {below}")
    return value


class Link:
    """A connection with another worker; used by the thread of its event loop only. No method but `receive` waits."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.heard_at = time.monotonic()
        peer = writer.get_extra_info("peername")
        self.peer = str(peer[0]) if peer else "unknown"
        # A machine that is gone says nothing: the system asks it, even while Python stands still.
        sock: socket.socket = writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in KEEP_ALIVE.items():
                if hasattr(socket, name):
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, frame: bytes) -> None:
        """Send it when the other side takes it; a side that takes nothing any more is given up."""
        transport = self._writer.transport
        if transport.is_closing():
            return
        if transport.get_write_buffer_size() > MAX_WAITING_BYTES:
            transport.abort()
            return
        self._writer.write(frame)

    async def send_slowly(self, frame: bytes) -> None:
        """Send a long message, without a copy of what the other side has not taken yet. Raises OSError."""
        view = memoryview(frame)
        for start in range(0, len(view), CHUNK_BYTES):
            self._writer.write(view[start : start + CHUNK_BYTES])
            await self._writer.drain()

    async def receive(self, max_bytes: int) -> Message:
        """The next message. Raises EOFError at the end, OSError, and MalformedMessage."""
        (length,) = LENGTH.unpack(await self._exactly(LENGTH.size))
        if length > max_bytes:
            raise MalformedMessage(f"a message of {length} bytes, expected at most {max_bytes}")
        try:
            message = json.loads(await self._exactly(length))
        except (ValueError, RecursionError) as error:
            raise MalformedMessage(f"no JSON: {error}") from error
        if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
            raise MalformedMessage("no object with a kind")
        return message

    async def _exactly(self, num_bytes: int) -> bytes:
        data = bytearray()
        while len(data) < num_bytes:
            chunk = await self._reader.read(min(num_bytes - len(data), CHUNK_BYTES))
            if not chunk:
                raise EOFError("its connection ended")
            self.heard_at = time.monotonic()
            data += chunk
        return bytes(data)

    @property
    def has_sent_all(self) -> bool:
        """Whether the system has all that was to be sent."""
        return self._writer.transport.get_write_buffer_size() == 0

    def finish(self) -> None:
        """Nothing more is sent. What was sent still arrives, which closing at once would not promise."""
        with contextlib.suppress(OSError, RuntimeError):
            if self._writer.can_write_eof() and not self._writer.transport.is_closing():
                self._writer.write_eof()

    def abort(self) -> None:
        self._writer.transport.abort()
