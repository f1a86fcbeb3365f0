"""The terms on which workers meet and stay together."""

from dataclasses import dataclass

from job.workers.addresses import Addresses


@dataclass(frozen=True)
class Times:
    """All in seconds."""

    beat: float = 1.0  # between two signs of life
    silent: float = 20.0  # until silence is a loss
    cause: float = 25.0  # for the cause of a failure of common work to become known
    leave: float = 30.0  # until a process that has not left after a loss is stuck
    commit: float = 300.0  # the same of worker 0 after a stop, which has still to commit
    poll: float = 0.5  # between two attempts to connect
    answer: float = 5.0  # for a connection, or the first message on it
    reach: float = 60.0  # for the ports for tensors to answer
    refused: float = 30.0  # until it is believed that worker 0 is of another run: that one may be about to end
    note: float = 30.0  # between two notes on who is missing


@dataclass(frozen=True)
class Meeting:
    """Where workers meet, and on which terms: `run` is equal on all, and one waits `wait_seconds` for the others."""

    addresses: Addresses
    run: str
    wait_seconds: float
    times: Times = Times()

    @property
    def num_workers(self) -> int:
        return len(self.addresses.hosts)
