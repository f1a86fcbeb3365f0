"""Workers meet, and know what became of each other: real processes, sockets and kills, without arithmetic."""

import contextlib
import itertools
import json
import random
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.ports import free_ports

PATIENCE_SECONDS = 60
"""Much longer than anything takes, on a busy machine: no test is decided by it."""
Workers = Callable[..., "Worker"]


class Worker:
    """A process of tests/worker_process.py."""

    def __init__(self, port: int, worker: int, num_workers: int, **facts: Any) -> None:
        times = {"poll": 0.05, "refused": 0.3, "reach": 10.0, "beat": 0.2} | facts.pop("times", {})
        facts = {
            "hosts": ["localhost"] * num_workers, "port": port, "worker": worker, "run": "one run", "before": [],
            "history_bytes": 0, "wait_seconds": PATIENCE_SECONDS, "times": times,
        } | facts  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.worker_process", json.dumps(facts)],
            cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        self.worker = worker

    def until(self, what: str) -> dict[str, Any]:
        """What it says about this; everything before is passed over."""
        assert self.process.stdout is not None
        seen = []
        for line in iter(self.process.stdout.readline, b""):
            said = json.loads(line)
            if said["what"] == what:
                return dict(said)
            seen.append(said)
        raise AssertionError(f"worker {self.worker} ended before it said {what}: {seen}")

    def told(self, order: str) -> "Worker":
        assert self.process.stdin is not None
        self.process.stdin.write(f"{order}\n".encode())
        return self

    def ended(self) -> tuple[int, str]:
        """Exit code, and the message of the error."""
        message = str(self.until("error")["message"])
        return self.process.wait(PATIENCE_SECONDS), message

    def signalled(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@pytest.fixture
def port() -> int:
    """The first of the ports of at most 64 workers."""
    return free_ports(70)


@pytest.fixture
def start(port: int) -> Iterator[Workers]:
    begun: list[Worker] = []

    def begin(worker: int, num_workers: int = 3, **facts: Any) -> Worker:
        begun.append(Worker(port, worker, num_workers, **facts))
        return begun[-1]

    yield begin
    for it in begun:
        it.process.kill()
        it.process.communicate()


def met(start: Workers, num_workers: int = 3, **facts: Any) -> list[Worker]:
    workers = [start(worker, num_workers, **facts) for worker in range(num_workers)]
    for worker in workers:
        worker.until("met")
    return workers


def test_workers_meet_whoever_comes_first(start: Workers) -> None:
    """The others wait for worker 0, get its greeting, and go on only when the last has come."""
    others = [start(worker, times={"note": 0.1}) for worker in (2, 1)]
    assert others[0].until("waiting")["workers"] == [0]
    leader = start(0, before=["pause"])
    for other in others:
        assert other.until("greeted")["attempt"] == 3
    assert all(not has_said_more(other) for other in others)
    leader.told("go")
    assert leader.until("workers_met")["num_workers"] == 3
    for worker in others:
        worker.until("met")


def has_said_more(worker: Worker) -> bool:
    """Whether it has said more, or ended, soon after; only to be asked where it must not."""
    assert worker.process.stdout is not None
    return bool(select.select([worker.process.stdout], [], [], 0.3)[0])


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_worker_is_lost_at_once(start: Workers, victim: int) -> None:
    """Silence would be a loss only much later."""
    workers = met(start, times={"silent": 1000.0})
    for worker in workers:
        worker.told("work")
    workers.pop(victim).signalled(signal.SIGKILL)
    for worker in workers:
        code, message = worker.ended()
        assert (code, message.startswith(f"worker {victim} is gone: ")) == (45, True), message


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2])
def test_a_silent_worker_is_lost(start: Workers, victim: int) -> None:
    workers = met(start, times={"silent": 5.0})
    for worker in workers:
        worker.told("work")
    stopped = workers.pop(victim)
    stopped.signalled(signal.SIGSTOP)
    for worker in workers:
        assert worker.ended() == (45, f"worker {victim} was silent for 5 s")
    stopped.signalled(signal.SIGCONT)
    assert stopped.ended()[0] == 45


@pytest.mark.parametrize("victim", [0, 1])
def test_a_worker_says_why_it_ends(start: Workers, victim: int) -> None:
    """The others name it with its exit code and the first line of its message."""
    workers = met(start)
    for worker in workers:
        worker.told("fail" if worker.worker == victim else "work")
    assert workers.pop(victim).ended() == (1, "of this test")
    for worker in workers:
        assert worker.ended() == (45, f"worker {victim} ended with exit code 1: of this test")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stop_of_one_is_a_stop_of_all(start: Workers, victim: int) -> None:
    """All end with 42; none takes another for lost, also where it was in a collective that the stop broke."""
    workers = met(start)
    for worker, order in zip(workers, ("steps", "steps", "work"), strict=True):
        worker.told(order)
    workers[victim].signalled(signal.SIGTERM)
    for worker in workers[:2]:
        worker.until("agreed")
    for worker in workers:
        assert worker.ended() == (42, f"stopped by SIGTERM at worker {victim}; what was committed stands")


def test_a_stop_before_all_have_come_ends_those_who_are_there(start: Workers) -> None:
    leader, other = start(0), start(1)
    other.until("greeted")
    other.signalled(signal.SIGTERM)
    assert [leader.ended(), other.ended()] == [(42, "stopped by SIGTERM at worker 1; what was committed stands")] * 2


def test_a_broken_collective_names_its_cause(start: Workers) -> None:
    """One that fails before the loss is known waits for it."""
    workers = met(start, times={"silent": 30.0})
    for worker in workers[:2]:
        worker.told("collective")
    workers[2].signalled(signal.SIGKILL)
    for worker in workers[:2]:
        code, message = worker.ended()
        assert (code, message.startswith("worker 2 is gone: ")) == (45, True), message


def test_a_broken_collective_of_a_stop_is_a_stop(start: Workers) -> None:
    workers = met(start, times={"silent": 30.0})
    for worker, order in zip(workers, ("collective", "collective", "work"), strict=True):
        worker.told(order)
    workers[2].signalled(signal.SIGTERM)
    assert [worker.ended()[0] for worker in workers] == [42, 42, 42]


def test_a_broken_collective_without_a_cause_is_its_own(start: Workers) -> None:
    workers = met(start, 2, times={"cause": 0.2})
    workers[0].told("collective")
    assert workers[0].ended() == (1, "the collective failed")


def test_what_fails_once_the_others_are_dismissed_is_its_own_at_once(start: Workers) -> None:
    """As in the export: it does not wait for a cause that it would not heed."""
    workers = met(start, 2, times={"cause": 10_000.0})
    workers[0].told("dismiss").told("collective")
    assert workers[0].ended() == (1, "the collective failed")


def test_what_worker_0_told_is_heard_whenever(start: Workers) -> None:
    """Before it is asked for, and after; also when worker 0 has gone since."""
    workers = met(start)
    workers[1].told("hear")
    workers[0].told("dismiss").told("tell").told("end")
    assert workers[0].process.wait(PATIENCE_SECONDS) == 0
    workers[2].told("hear")
    assert [worker.until("heard")["content"] for worker in workers[1:]] == [{"accuracy": 0.5}] * 2


@pytest.mark.slow
def test_dismissed_workers_may_go(start: Workers) -> None:
    workers = met(start)
    workers[0].told("dismiss").told("tell")
    for worker in workers[1:]:
        worker.told("hear").until("heard")
    workers[1].signalled(signal.SIGKILL)
    workers[2].told("fail")
    assert workers[2].ended()[0] == 1
    workers[0].told("work")
    assert not has_said_more(workers[0])
    workers[0].signalled(signal.SIGTERM)
    assert workers[0].ended()[0] == 42


@pytest.mark.slow
def test_one_that_hangs_after_a_loss_is_stuck(start: Workers) -> None:
    workers = met(start, 2, times={"leave": 0.2})
    workers[0].told("hang")
    workers[1].signalled(signal.SIGKILL)
    stuck = workers[0].until("stuck")
    assert (stuck["exit_code"], stuck["reason"].startswith("worker 1 is gone: ")) == (45, True)
    assert workers[0].process.wait(PATIENCE_SECONDS) == 99


@pytest.mark.slow
def test_one_that_hangs_after_a_stop_was_interrupted(start: Workers) -> None:
    workers = met(start, 2, times={"leave": 0.2})
    workers[1].told("hang").signalled(signal.SIGTERM)
    workers[0].told("work")
    assert workers[0].ended()[0] == 42
    assert workers[1].until("stuck")["exit_code"] == 42


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, 45), (signal.SIGTERM, 42)])
@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_ends_while_tensorflow_connects_the_workers_is_no_secret(
    start: Workers, victim: int, number: signal.Signals, code: int
) -> None:
    """TensorFlow itself waits for it for an hour, and no other thread of Python runs meanwhile; nor does it keep this
    process from ending with its exit code.
    """
    workers = met(start, 2)
    other = workers[1 - victim].told("assemble")
    other.until("assembling")
    assert not has_said_more(other)
    workers[victim].told("work").signalled(number)
    assert other.ended()[0] == code


@pytest.mark.slow
def test_a_stop_while_tensorflow_connects_the_workers_is_heard(start: Workers) -> None:
    workers = met(start, 2)
    workers[0].told("assemble").until("assembling")
    assert not has_said_more(workers[0])
    workers[0].signalled(signal.SIGTERM)
    workers[1].told("work")
    assert [worker.ended() for worker in workers] == [
        (42, "stopped by SIGTERM at worker 0; what was committed stands")
    ] * 2


def test_worker_0_names_who_did_not_come(start: Workers) -> None:
    """Those who are there end as well, and say so."""
    other = start(1, 4)
    leader = start(0, 4, before=["pause"], wait_seconds=4, times={"note": 0.3})
    other.until("greeted")
    leader.told("go")
    assert {2, 3} <= set(leader.until("waiting")["workers"])
    code, message = leader.ended()
    assert (code, message) == (46, "of 4 workers, these did not come within 4 s: 2, 3")
    assert other.ended() == (45, f"worker 0 ended with exit code 46: {message}")


@pytest.mark.slow
def test_a_worker_names_the_address_where_nobody_answers(start: Workers, port: int) -> None:
    code, message = start(1, wait_seconds=1).ended()
    assert code == 45
    assert message.startswith(f"worker 0 did not answer at localhost:{port} within 1 s: ")


@pytest.mark.slow
def test_a_host_that_does_not_resolve_is_not_there_yet(start: Workers) -> None:
    code, message = start(1, hosts=["nowhere.invalid", "localhost", "localhost"], wait_seconds=1).ended()
    assert (code, "nowhere.invalid" in message) == (45, True)


def test_another_run_is_refused(start: Workers) -> None:
    leader, other = start(0, run="run a"), start(1, run="run b")
    code, message = other.ended()
    assert (code, "run a" in message, "run b" in message) == (2, True, True)
    assert leader.process.poll() is None


def test_a_second_process_waits_until_the_first_has_gone(start: Workers) -> None:
    """It may be the successor of one that is on its way out."""
    leader, first = start(0, 2, before=["pause"]), start(1, 2)
    first.until("greeted")
    second = start(1, 2, times={"note": 0.3})
    second.until("waiting")
    first.signalled(signal.SIGKILL)
    second.until("greeted")
    leader.told("go")
    for worker in (leader, second):
        worker.until("met")


def test_one_that_goes_away_while_the_ports_are_tried_may_come_again(start: Workers, port: int) -> None:
    leader = start(0, 2)
    leader.until("open")
    with Peer(port) as peer:
        peer.send(kind="hello", worker=1, run="one run")
        assert peer.receive()["kind"] == "welcome"
        peer.send(kind="at", stage=0, problem=None)
        assert peer.receive() == {"kind": "go", "stage": 0}
    for worker in (leader, start(1, 2)):
        worker.until("met")


@pytest.mark.slow
def test_a_second_process_learns_why_it_waits(start: Workers) -> None:
    start(0, 2, before=["pause"])
    start(1, 2).until("greeted")
    code, message = start(1, 2, wait_seconds=5).ended()
    assert (code, message.endswith("it refused: another process is worker 1 already")) == (45, True)


@pytest.mark.slow
def test_worker_0_may_not_begin_anew_under_one_that_has_its_greeting(start: Workers) -> None:
    """What it greets with may be older than what the new one knows."""
    leader, other = start(0), start(1)
    other.until("greeted")
    leader.signalled(signal.SIGKILL)
    leader.process.wait()
    workers = [start(worker) for worker in (0, 2)]
    assert other.ended() == (45, "worker 0 began anew")
    for worker in (*workers, start(1)):
        worker.until("met")


@pytest.mark.parametrize(("offset", "worker"), [(0, 0), (1, 0), (3, 2)])
def test_a_port_that_is_taken_is_named(start: Workers, port: int, offset: int, worker: int) -> None:
    with socket.create_server(("", port + offset)):
        workers = [start(worker) for worker in range(3)] if worker else [start(0)]
        message = workers[worker].until("error")
    assert (message["kind"], f"port {port + offset}" in message["message"]) == ("InvalidSettings", True)
    assert "THAW_WORKER_PORT" in message["hint"]
    assert workers[worker].process.wait(PATIENCE_SECONDS) == 2


def test_workers_that_cannot_reach_each_other_do_not_meet(start: Workers) -> None:
    """As where a NetworkPolicy is missing: TensorFlow would hang."""
    hosts = ["localhost", "localhost", "127.0.0.1"]
    workers = [start(worker, hosts=hosts, times={"reach": 3.0}) for worker in (0, 2)]
    workers.append(start(1, hosts=["localhost", "localhost", "nowhere.invalid"], times={"reach": 3.0}))
    message = workers[0].until("error")
    assert message["kind"] == "PeersMissing"
    assert message["message"].startswith("worker 1 cannot reach worker 2 at nowhere.invalid:")
    assert "NetworkPolicy" in message["hint"]
    assert [worker.ended()[0] for worker in workers[1:]] == [45, 45]


HOSTILE = [
    b"",
    b"GET / HTTP/1.1\r\nHost: worker\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    b"\xff" * 100_000,
    b"\x00\x00\x00\x02{}",
    b"\x00\x00\x00\x04null",
    b"\x00\x00\x00\x05{\x00\xff\xfe}",
    b"\x00\x00\x90\x00" + b"[" * 0x9000,
    *(
        len(data).to_bytes(4, "big") + data
        for data in (
            json.dumps(message).encode()
            for message in (
                {"kind": "hello"},
                {"kind": "hello", "worker": True, "run": "one run"},
                {"kind": "hello", "worker": 0, "run": "one run"},
                {"kind": "hello", "worker": 3, "run": "one run"},
                {"kind": "hello", "worker": 1e300, "run": "one run"},
                {"kind": "hello", "worker": 1, "run": ["one run"]},
                {"kind": "stop", "reason": "stopped by nobody"},
                {"kind": "leaving", "worker": 1, "code": 1, "reason": "none"},
            )
        )
    ),
]


def test_connections_that_are_no_workers_harm_nothing(start: Workers, port: int) -> None:
    """Before the meeting, while workers are there, and after it; kept open, cut and reset."""
    leader = start(0, before=["pause"])
    leader.until("open")
    with contextlib.ExitStack() as stack:

        def intrude(ports: Sequence[int]) -> None:
            for data, port in itertools.product(HOSTILE, ports):
                for is_kept in (True, False):
                    intruder = socket.create_connection(("localhost", port))
                    with contextlib.suppress(ConnectionError):
                        intruder.sendall(data)
                    if is_kept:
                        stack.enter_context(intruder)
                    else:
                        intruder.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                        intruder.close()

        intrude([port])
        others = [start(worker) for worker in (1, 2)]
        for other in others:
            other.until("greeted")
        intrude([port])
        leader.told("go")
        for worker in (leader, *others):
            worker.until("met")
            worker.told("steps")
        intrude([port])
        assert all(worker.process.poll() is None for worker in (leader, *others))
        leader.signalled(signal.SIGTERM)
        for worker in (leader, *others):
            worker.until("agreed")


class Peer:
    """A connection with worker 0 on which a test says what it likes."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("localhost", port))
        self._stream = self._socket.makefile("rwb")

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._socket.close()

    def send(self, **message: Any) -> None:
        data = json.dumps(message).encode()
        self._stream.write(len(data).to_bytes(4, "big") + data)
        self._stream.flush()

    def receive(self) -> dict[str, Any]:
        while True:
            message = json.loads(self._stream.read(int.from_bytes(self._stream.read(4), "big")))
            if message["kind"] != "beat":
                return dict(message)


NONSENSE: list[tuple[dict[str, Any], str]] = [
    ({"kind": "leaving", "code": "none", "reason": ""}, "is gone: code of leaving is no number below 256"),
    ({"kind": "leaving", "code": 4, "reason": 7}, "is gone: reason of leaving is no text"),
    ({"kind": "at", "stage": 3, "problem": None}, "is gone: stage of at is no number below 3"),
    ({"kind": "tell", "subject": "outcome", "content": 1}, "is gone: unknown: 'tell'"),
    ({"kind": "beat", "more": "x" * 70_000}, "is gone: a message of 70028 bytes, expected at most 65536"),
    (
        {"kind": "leaving", "code": 4, "reason": "\n \x1b[31mno\t\ud800 disk" + "!" * 9_000 + "\nmore"},
        "ended with exit code 4: [31mno disk" + "!" * 489,
    ),
]


@pytest.mark.parametrize(
    ("nonsense", "how"),
    [*NONSENSE[:-1], pytest.param(*NONSENSE[-1], marks=pytest.mark.slow)],
    ids=range(len(NONSENSE)),
)
def test_nothing_of_a_worker_is_believed(start: Workers, port: int, nonsense: dict[str, Any], how: str) -> None:
    """One that is among them and sends nonsense is lost; text is one line that can be printed."""
    leader = start(0, 2)
    leader.until("open")
    with Peer(port) as peer:
        peer.send(kind="hello", worker=1, run="one run")
        assert peer.receive()["greeting"]["attempt"] == 3
        with socket.create_server(("", port + 2)) as tensors:
            peer.send(kind="at", stage=0, problem=None)
            assert peer.receive() == {"kind": "go", "stage": 0}
            connection, _ = tensors.accept()
            with connection:
                connection.sendall(b"thaw worker 1\n")
        for stage in (1, 2):
            peer.send(kind="at", stage=stage, problem=None)
            assert peer.receive() == {"kind": "go", "stage": stage}
        leader.until("met")
        leader.told("work")
        peer.send(**nonsense)
        assert leader.ended() == (45, f"worker 1 {how}")


@pytest.mark.slow
@pytest.mark.parametrize("importing", [0, 1])
def test_silence_before_the_meeting_is_no_loss(start: Workers, importing: int) -> None:
    """Importing TensorFlow lets no other thread of Python run for a while."""
    workers = [start(worker, before=["hold 8"] * (worker == importing), times={"silent": 5.0}) for worker in (0, 1, 2)]
    for worker in workers:
        worker.until("met")


@pytest.mark.slow
def test_a_long_greeting_arrives(start: Workers) -> None:
    """A record may have 64 MiB; a worker that stands still keeps none of the others from it."""
    leader, first = start(0, history_bytes=64 << 20, before=["pause"]), start(1)
    leader.until("open")
    first.until("open")
    first.signalled(signal.SIGSTOP)
    assert start(2).until("greeted")["history_bytes"] == 64 << 20
    first.signalled(signal.SIGCONT)
    assert first.until("greeted")["history_bytes"] == 64 << 20


@pytest.mark.slow
def test_one_that_takes_nothing_does_not_keep_the_others(start: Workers) -> None:
    """More is told than the system's buffers hold: it goes to the others, and the one that stands still is lost."""
    workers = met(start, times={"silent": 5.0})
    workers[2].signalled(signal.SIGSTOP)
    workers[0].told("shout 20000000").until("shouted")
    assert workers[1].told("hear noise").until("heard")["content"] == 20_000_000
    for worker in workers[:2]:
        assert worker.told("work").ended() == (45, "worker 2 was silent for 5 s")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "stop"])
def test_64_workers(start: Workers, how: str) -> None:
    """They meet, in any order, though one comes twice; and all know of the same loss or stop."""
    order = list(range(64))
    random.Random(16).shuffle(order)
    begun = {worker: start(worker, 64) for worker in order}
    begun[7].until("open")
    begun[7].signalled(signal.SIGKILL)
    begun[7] = start(7, 64)
    for worker in begun.values():
        worker.until("met")
        worker.told("work")
    victim = 40
    begun[victim].signalled(signal.SIGTERM if how == "stop" else signal.SIGKILL)
    if how != "stop":
        del begun[victim]
    ends = {worker.ended() for worker in begun.values()}
    assert {code for code, _ in ends} == {42 if how == "stop" else 45}
    assert all(f"worker {victim}" in message for _, message in ends), ends
