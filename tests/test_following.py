"""A worker that follows: it reads what worker 0 names, and believes nothing of it unchecked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.cli.observers import FollowersLog
from job.errors import InputError, PeerLost, StorageError
from job.observe import events
from job.observe.log import JsonLines
from job.observe.progress import Progress
from job.run.following import FollowedCheckpoints, FollowedRecord
from job.run.record import RunRecord
from job.schema import Holder
from job.workers.team import Alone
from tests.runs import IDENTITY, never
from tests.stores import MemoryStore


class Told(Alone):
    """A team whose worker 0 tells this, whatever it is asked for."""

    def __init__(self, content: Any) -> None:
        super().__init__(never)
        self._content = content

    def hear(self, subject: str) -> Any:
        return self._content


@pytest.fixture
def store() -> MemoryStore:
    """With a run that worker 0 holds as attempt 1."""
    store = MemoryStore()
    RunRecord.open(store, IDENTITY).take(Holder(host="here", pid=1, started=0.0), lease_seconds=60, num_workers=2)
    return store


def followed(store: MemoryStore, told: Any, attempt: object = 1) -> FollowedRecord:
    return FollowedRecord.read(store, IDENTITY, Told(told), attempt=attempt)


@pytest.mark.parametrize("attempt", [None, "1", 1.0, True, [1]])
def test_an_attempt_that_is_no_number_is_refused(store: MemoryStore, attempt: object) -> None:
    with pytest.raises(PeerLost, match="worker 0 sent for the attempt"):
        followed(store, None, attempt)


def test_a_record_of_a_later_attempt_is_not_followed(store: MemoryStore) -> None:
    """Another process has taken the place of worker 0 meanwhile: a loss, which costs no retry of a Job."""
    RunRecord.open(store, IDENTITY).take(Holder(host="there", pid=1, started=0.0), lease_seconds=60)
    with pytest.raises(PeerLost, match="worker 0 is attempt 1 at run 'run', and the newest is 2"):
        followed(store, None, 1)


def test_storage_that_is_not_that_of_worker_0_is_named(store: MemoryStore) -> None:
    """A folder of this machine alone, say: nobody has superseded anything."""
    with pytest.raises(StorageError, match="1 attempts, and worker 0 is attempt 2 there") as raised:
        followed(store, None, 2)
    assert "same storage" in raised.value.hint


@pytest.mark.parametrize("told", [None, [], {}, {"precision": "float8"}, "two\nlines\x1b[31m"])
def test_nonsense_is_not_believed(store: MemoryStore, told: Any, tmp_path: Path) -> None:
    """And shown as one line."""
    record = followed(store, told)
    asked: list[Callable[[], Any]] = [record.arithmetic, record.wait_for_outcome]
    if told is not None:
        checkpoints = FollowedCheckpoints(store, record, Told(told), folder=tmp_path)
        asked.append(lambda: checkpoints.restore(lambda *_: None))
    for ask in asked:
        with pytest.raises(PeerLost, match="what no worker sends") as raised:
            ask()
        assert raised.value.message.isprintable()


def test_other_inputs_than_those_of_worker_0_are_refused(store: MemoryStore) -> None:
    inputs = {"data": {"sha256": "a"}, "backbone_sha256": "b", "arithmetic": {"precision": "float32"}}
    followed(store, inputs).pin_inputs(inputs)
    with pytest.raises(InputError, match="other inputs than worker 0: backbone_sha256 differ"):
        followed(store, inputs | {"backbone_sha256": "c"}).pin_inputs(inputs)


def test_the_log_of_a_follower_says_what_it_waits_for(capsys: pytest.CaptureFixture[str]) -> None:
    """It may wait for long. Of what worker 0 says too it has nothing."""
    log = FollowersLog(JsonLines(Progress()))
    log.event(events.WaitingForWorkers([0], at_most_seconds=600))
    log.event(events.WorkersMet(2, 1.0))
    assert ['"event": "waiting"' in line for line in capsys.readouterr().out.splitlines()] == [True]
