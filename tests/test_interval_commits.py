"""Commits inside an epoch: which states, and when they are submitted."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from job.errors import PeerLost
from job.observe import events
from job.phases import Phase
from job.run.following import NoCommits
from job.run.record import Identity, RunRecord
from job.run.training import Training
from job.schema import Holder
from job.storage import LocalStore
from job.train import loop
from job.train.collective import Collective
from job.train.state import PhaseState
from job.train.step import Recipe
from job.workers.share import Share
from job.workers.team import Alone
from tests.classifiers import build
from tests.conftest import Recorder
from tests.runs import context, never

PHASE = Phase(name="head", unfreeze="none", learning_rate=1e-3, epochs=1)
DONE = events.StepDone(
    phase="head", epoch=0, step=0, num_steps=4, batch=0, num_batches=4, num_examples=8, seconds=0.1,
    data_wait_seconds=0.0, is_first=False,
)  # fmt: skip


NO_SPLITS: Any = SimpleNamespace(train=None, validation=None)


class OneOf(Alone):
    """Worker `worker` of a team, as far as its share goes."""

    def __init__(self, worker: int, num_workers: int) -> None:
        super().__init__(never)
        self.share = Share(worker, num_workers)


class Submitted(NoCommits):
    """Notes the step of each snapshot, the steps that its state is after, and after which step it was submitted."""

    def __init__(self) -> None:
        super().__init__()
        self.newest, self.found = 0, list[tuple[int, int, int]]()

    def submit(self, arrays: Callable[[], dict[str, np.ndarray]], *, step: int = 0, **_: object) -> None:
        self.found.append((step, int(arrays()["totals"][2]), self.newest))


def three_steps(committer: Submitted) -> Callable[..., Iterator[loop.Fact]]:
    """Steps that count themselves in the totals; the fourth finds that a worker is gone."""

    def train_phase(state: PhaseState, **_: Any) -> Iterator[loop.Fact]:
        for step in (1, 2, 3):
            state.totals += [0.0, 0.0, 1.0]
            committer.newest = step
            yield replace(DONE, step=step, batch=step)
        raise PeerLost("worker 1 is gone")

    return train_phase


@pytest.mark.parametrize(
    ("share", "expected"),
    [((0, 1), [(1, 1, 1), (2, 2, 2), (3, 3, 3)]), ((0, 2), [(1, 1, 2)]), ((1, 2), [])],
    ids=["alone", "worker 0", "worker 1"],
)
def test_of_several_workers_a_state_waits_until_the_next_step_has_followed(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, share: tuple[int, int], expected: list[tuple[int, int, int]]
) -> None:
    """What the last step before a loss left behind is never submitted: its sum may be none."""
    committer = Submitted()
    monkeypatch.setattr(loop, "train_phase", three_steps(committer))
    record = RunRecord.open(store, Identity(run_id="r", fingerprint="", settings={}))
    record.take(Holder(host="h", pid=1, started=0.0), lease_seconds=60)
    training = Training(
        context=context(Recorder()), record=record, checkpoints=None, committer=committer,  # type: ignore[arg-type]
        collective=Collective(OneOf(*share)), phases=[PHASE], checkpoint_every_seconds=0,
    )  # fmt: skip
    with pytest.raises(PeerLost):
        training.train(PHASE, build(), NO_SPLITS, Recipe(8, 0, xla=False))
    assert committer.found == expected
