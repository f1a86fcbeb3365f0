"""Ports of this machine that were free just now, for programs that cannot pick one themselves."""

import os
import random
import socket

FIRST_PORT, LAST_PORT = 10_000, 30_000


def free_ports(count: int) -> int:
    """The first of so many free ports in a row, at most 100, below those that the system gives out.

    Each process of pytest-xdist has ports of its own. Python's own generator has the seed of a model in many tests.
    """
    process, num_processes = xdist_worker()
    while True:
        first = random.SystemRandom().randrange(FIRST_PORT + 100 * process, LAST_PORT, 100 * num_processes)
        if all(_is_free(port) for port in range(first, first + count)):
            return first


def free_port() -> int:
    """One of them."""
    return free_ports(1)


def xdist_worker() -> tuple[int, int]:
    """Which of pytest-xdist's processes this is, and how many there are."""
    name, count = os.environ.get("PYTEST_XDIST_WORKER", "gw0"), os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    return int(name.removeprefix("gw")), int(count)


def _is_free(port: int) -> bool:
    with socket.socket() as listening:
        try:
            listening.bind(("", port))
        except OSError:
            return False
        return True
