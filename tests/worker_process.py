"""A worker that does no arithmetic: it meets the others, and then does what its standard input says, line by line.

Each thing that it learns is a line of JSON. It ends with the exit code of its error.
"""

import contextlib
import ctypes
import json
import os
import socket
import sys
import threading
import time
from typing import Any

from job.__main__ import StopSignal
from job.errors import ExitCode, ThawError
from job.observe.events import Event
from job.observe.observer import Observer
from job.observe.progress import Context, Progress
from job.workers.addresses import Addresses
from job.workers.follower import Follower
from job.workers.leader import Leader
from job.workers.meeting import Meeting, Times


def say(what: str, **facts: Any) -> None:
    os.write(1, (json.dumps({"what": what, **facts}) + "\n").encode())


class Saying(Observer):
    def event(self, event: Event) -> None:
        say(event.name, **event.fields())


def stuck(exit_code: int, reason: str) -> None:
    say("stuck", exit_code=exit_code, reason=reason)
    os._exit(99)


def obey(team: Leader | Follower, order: str) -> None:
    name, _, value = order.partition(" ")
    if name == "work":
        while True:
            team.check()
            time.sleep(0.01)
    elif name == "steps":
        with team.steps():
            while not team.is_stopping:
                team.check()
                time.sleep(0.01)
            team.check()
        say("agreed")
        raise team.interrupted()
    elif name == "fail":
        raise ThawError(value) if value else ValueError("of this test")
    elif name == "collective":
        raise team.failed(RuntimeError("the collective failed"))
    elif name == "tell":
        team.tell("outcome", {"accuracy": 0.5})
    elif name == "shout":
        team.tell("noise", "x" * int(value))
        say("shouted")
    elif name == "hear":
        content = team.hear(value or "outcome")
        say("heard", content=content if value == "" else len(content))
    elif name == "dismiss":
        assert isinstance(team, Leader)
        team.dismiss()
    elif name == "hold":
        say("holding")
        ctypes.PyDLL(None).sleep(int(value))  # no other thread of Python runs meanwhile
    elif name == "hang":
        threading.Event().wait()
    elif name == "assemble":
        from job.train.collective import assemble  # TensorFlow is only imported where it is needed

        say("assembling")
        assemble(team, team.meeting.addresses)
        say("assembled")
    elif name == "end":
        raise SystemExit(0)


def main() -> None:
    facts = json.loads(sys.argv[1])
    stop = StopSignal(Progress())
    stop.grace_seconds = 600.0
    stop.install()
    addresses = Addresses(tuple(facts["hosts"]), facts["port"])
    meeting = Meeting(addresses, facts["run"], facts["wait_seconds"], Times(**facts["times"]))
    context = Context(Saying(), Progress(), stop.check, give_up=stuck)
    worker = facts["worker"]
    leader = (
        Leader(meeting, context, greeting={"attempt": 3, "history": "x" * facts["history_bytes"]})
        if worker == 0
        else None
    )
    with leader or Follower(meeting, context, worker=worker) as team:
        say("open")
        if isinstance(team, Follower):
            greeting = team.greeting()
            say("greeted", attempt=greeting["attempt"], history_bytes=len(greeting["history"]))
        for order in facts["before"]:
            obey(team, order)
        with contextlib.suppress(IndexError):
            if facts["before"][-1] == "pause":
                sys.stdin.readline()
        team.meet()
        socket.create_server(("", addresses.tensors(worker)[1])).close()
        say("met", worker=worker)
        for line in sys.stdin:
            obey(team, line.strip())


def carried_out() -> int:
    """The exit code, once the error is forgotten, as in the program."""
    try:
        main()
    except ThawError as error:
        say("error", kind=type(error).__name__, message=error.message, hint=error.hint)
        return error.exit_code
    except Exception as error:
        say("error", kind=type(error).__name__, message=str(error))
        return ExitCode.UNEXPECTED
    return 0


if __name__ == "__main__":
    os._exit(carried_out())
