"""Small runs in this process: started, stopped at a step, crashed at an event, and what is left of them."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from job.errors import Interrupted
from job.observe.events import Event, StepDone
from job.observe.observer import Observer, Observers, RunningMeans
from job.observe.progress import Context, Progress
from job.run.attempt import run_attempt
from job.run.record import RECORD_NAME, Identity
from job.schema import Holder, Record
from job.settings.settings import Settings
from job.storage import LocalStore, ObjectStore
from tests.conftest import Recorder
from tests.stores import Crash

ONE_PHASE: dict[str, Any] = {"fine_tune_epochs": 0}
"""Changes of the small run to two epochs of one phase: where it does not matter that another one follows."""

HOLDER = Holder(host="test", pid=1, started=0.0, job_uid="uid")
"""Of one Job: the next start takes the run over at once."""

IDENTITY = Identity(run_id="run", fingerprint="f", settings={})

Undisturbed = tuple[LocalStore, Recorder, Settings]
Whole = Callable[..., Undisturbed]
Small = Callable[..., Settings]


FEW = 6
"""Calls of one kind in a row; a run has no more of them before its files are written."""


def places(operations: Sequence[str]) -> list[int]:
    """Where in a sequence of calls to a store something may strike, by number from 0.

    At each of them, but for the many files of a finished run, which are alike: there the first, the middle, the last.
    """
    struck: list[int] = []
    for _, calls in itertools.groupby(enumerate(operations), key=lambda call: call[1]):
        alike = [at for at, _ in calls]
        struck += alike if len(alike) <= FEW else [alike[0], alike[len(alike) // 2], alike[-1]]
    return struck


class StopAtStep(Recorder):
    """Stops a run right after the call that has done a step of a phase, counted from 0."""

    def __init__(self, phase: str, step: int) -> None:
        super().__init__()
        self._position = (phase, step + 1)
        self._reached = False

    def step(self, done: StepDone, running_means: RunningMeans) -> None:
        self._reached |= done.phase == self._position[0] and done.step >= self._position[1]

    def check_stop(self) -> None:
        if self._reached:
            raise Interrupted("now")


def never() -> None:
    pass


def context(
    observer: Observer | None = None, progress: Progress | None = None, check_stop: Callable[[], None] = never
) -> Context:
    return Context(observer or Observers(), progress or Progress(), check_stop)


def start(
    settings: Settings,
    store: ObjectStore,
    *,
    observer: Recorder | Observers | None = None,
    check_stop: Callable[[], None] = never,
    progress: Progress | None = None,
) -> Any:
    """One attempt in this process; returns its observer, by default a `Recorder`."""
    observer = observer or Recorder()
    run_attempt(settings, store=store, holder=HOLDER, context=context(observer, progress, check_stop))
    return observer


def stop(settings: Settings, store: ObjectStore, phase: str, step: int) -> None:
    """One attempt that is stopped after this step of a phase, counted from 0."""
    observer = StopAtStep(phase, step)
    with pytest.raises(Interrupted):
        start(settings, store, observer=observer, check_stop=observer.check_stop)


def record_of(store: ObjectStore) -> Record:
    return Record.model_validate_json(store.read(RECORD_NAME).data)


def result_of(store: ObjectStore) -> dict[str, Any]:
    """What must be the same however often a run was interrupted."""
    record = record_of(store)
    assert record.outcome is not None
    learned = [epoch.model_dump(exclude={"train_seconds", "validation_seconds", "images_per_second", "ended"})
               for epoch in record.history]  # fmt: skip
    return {"outcome": record.outcome.model_dump(mode="json"), "history": learned}


class CrashOn(Recorder):
    """Ends the process at an event of this kind with these fields."""

    def __init__(self, kind: type[Event], **fields: Any) -> None:
        super().__init__()
        self._kind, self._fields = kind, fields

    def event(self, event: Event) -> None:
        super().event(event)
        if isinstance(event, self._kind) and self._fields.items() <= vars(event).items():
            raise Crash(event.name)
