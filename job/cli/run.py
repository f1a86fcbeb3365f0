"""`thaw`: one attempt at a run."""

from collections.abc import Callable, Mapping
from typing import NoReturn, Protocol

from job.cli.arguments import AttemptOptions
from job.errors import InvalidSettings
from job.observe.log import Log
from job.observe.observer import Observer
from job.observe.progress import Progress
from job.settings.settings import Settings


class Stop(Protocol):
    """The signals to stop: `observer` gets an event of the first one; from then on `check` raises Interrupted.

    `pause` waits for so many seconds, or raises the same.
    """

    observer: Observer

    def check(self) -> None: ...
    def pause(self, seconds: float) -> None: ...
    def end(self, exit_code: int, reason: str) -> NoReturn: ...


class Options(AttemptOptions):
    """Fine-tune a pre-trained image classifier: one run, safe to start any number of times."""


def check_worker(settings: Settings) -> None:
    """Raise InvalidSettings where this process cannot know which of the workers it is: all would be the first one."""
    if settings.workers > 1 and settings.worker is None:
        raise InvalidSettings(
            f"THAW_WORKERS={settings.workers}, and THAW_WORKER does not say which of them this is",
            hint=f"set THAW_WORKER, on each to another number from 0 to {settings.workers - 1}; the pods of an Indexed "
            "Job know it by themselves",
        )


def is_complete(settings: Settings, *, pause: Callable[[float], None]) -> bool:
    """Whether the run has its result, so that one process can answer for all. Raises as a start does."""
    from job.cli.asked import open_asked
    from job.run.record import Identity, RunRecord

    return RunRecord.open(open_asked(settings.run_uri(), pause=pause), Identity.of(settings)).is_done


def answer(options: Options, *, log: Log, progress: Progress, stop: Stop, environ: Mapping[str, str]) -> None:
    """Make one attempt. Raises ThawError unless the result is committed."""
    from job.cli.observers import StoreObserver, observing
    from job.observe.progress import Context
    from job.run import holder, lease
    from job.run.attempt import run_attempt
    from job.storage import open_store

    settings = options.settings
    progress.phases = [phase.name for phase in settings.training_phases()]
    log.bind(run_id=settings.resolved_run_id())
    if settings.workers > 1:
        worker = settings.worker or 0
        log.bind(worker=worker)
        progress.commits = worker == 0
    with observing(settings, progress=progress, log=log, environ=environ) as (observer, metrics):
        stop.observer = observer
        run_attempt(
            settings,
            store=open_store(
                settings.run_uri(),
                observer=StoreObserver(metrics, observer),
                timeout_seconds=lease.request_seconds(settings.lease_seconds),
                pause=stop.pause,
            ),
            holder=holder.this_process(
                settings.job_uid,
                job_name=settings.job_name,
                node_name=settings.node_name,
                namespace=settings.namespace,
            ),
            context=Context(observer, progress, stop.check, stop.end),
        )
