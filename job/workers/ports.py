"""Ports of workers: opened on all interfaces, and asked for before TensorFlow needs them.

TensorFlow's workers wait for one another inside a call that lets no other thread of Python run. A port that is taken,
or a network that lets nothing through, must be known before.
"""

import asyncio
import errno
import socket
import time

from job.errors import InvalidSettings
from job.workers.addresses import Addresses

BACKLOG = 1024
ASK_SECONDS = 5.0
MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.1, 2.0
NUM_AT_ONCE = 32
MAX_ANSWER_BYTES = 64


def listen(port: int, purpose: str) -> socket.socket:
    """A socket that listens on all interfaces, of IPv6 too where there is that. Raises InvalidSettings."""
    try:
        if socket.has_dualstack_ipv6():
            try:
                return socket.create_server(("", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
            except OSError as error:
                # The system knows IPv6, and may have no address of it.
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
        return socket.create_server(("", port), backlog=BACKLOG)
    except OSError as error:
        reason = "it is taken" if error.errno == errno.EADDRINUSE else error.strerror
        raise InvalidSettings(
            f"port {port}, {purpose}, cannot be opened: {reason}",
            hint="set THAW_WORKER_PORT so that it and one port more for each worker are free",
        ) from error


class _Answer(asyncio.Protocol):
    """Says which worker it is. The side that closes first keeps the port for a while, and that is the other side."""

    def __init__(self, worker: int) -> None:
        self._worker = worker

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(_answer_of(self._worker))
        asyncio.get_running_loop().call_later(ASK_SECONDS, transport.abort)


async def answer(worker: int, sock: socket.socket) -> asyncio.Server:
    """Answer each connection to this socket with the number of the worker, until the server is closed."""
    return await asyncio.get_running_loop().create_server(lambda: _Answer(worker), sock=sock)


async def unreachable(addresses: Addresses, worker: int, seconds: float) -> str | None:
    """Ask all other workers at their ports for tensors for so long; says which do not answer this one, and why."""
    until = time.monotonic() + seconds
    limit = asyncio.Semaphore(NUM_AT_ONCE)
    others = [other for other in range(len(addresses.hosts)) if other != worker]
    problems = await asyncio.gather(*(_problem_of(addresses, other, until, limit) for other in others))
    found = [f"worker {other} {problem}" for other, problem in zip(others, problems, strict=True) if problem]
    more = f", and {len(found) - 1} others neither" if len(found) > 1 else ""
    return f"worker {worker} cannot reach {found[0]}{more}" if found else None


async def _problem_of(addresses: Addresses, worker: int, until: float, limit: asyncio.Semaphore) -> str | None:
    host, port = addresses.tensors(worker)
    pause = MIN_PAUSE_SECONDS
    while True:
        async with limit:
            problem = await _ask(host, port, worker)
        if problem is None or time.monotonic() + pause > until:
            return problem and f"at {host}:{port}: {problem}"
        await asyncio.sleep(pause)
        pause = min(2 * pause, MAX_PAUSE_SECONDS)


async def _ask(host: str, port: int, worker: int) -> str | None:
    try:
        async with asyncio.timeout(ASK_SECONDS):
            reader, writer = await asyncio.open_connection(host, port, limit=MAX_ANSWER_BYTES)
            try:
                answer = await reader.readline()
            finally:
                writer.close()
    except TimeoutError:
        return "no answer"
    except (OSError, ValueError) as error:
        return str(error)
    return None if answer == _answer_of(worker) else "another program answers there"


def _answer_of(worker: int) -> bytes:
    return f"thaw worker {worker}\n".encode()
