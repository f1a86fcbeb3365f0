"""The observers of an attempt: the log, Prometheus, and Kubeflow Trainer where this process is part of a TrainJob.

Of several workers the first one reports the run; the log of each other has what is its own. None of them changes how an
attempt ends: what they cannot do is a warning.
"""

import contextlib
from collections.abc import Iterator, Mapping

from job.data.input_store import StoreWaits
from job.errors import ExitCode, ThawError
from job.observe import events
from job.observe.log import Log
from job.observe.metrics import Metrics, push, serving
from job.observe.observer import Observer, Observers
from job.observe.progress import Progress
from job.settings.settings import Settings

OF_EACH_WORKER = (events.WaitingForWorkers, events.Joined, events.RunAlreadyDone, events.Stopping)
PUSH_SECONDS, HASTY_PUSH_SECONDS = 5.0, 1.0
"""How long the push of the outcome may take; the second one after a signal to stop."""


class StoreObserver(StoreWaits):
    """What a store reports to: requests go to the metrics, a wait to every observer."""

    def __init__(self, metrics: Metrics, observer: Observer) -> None:
        super().__init__(observer.event)
        self.request, self.retry, self.conflict = metrics.request, metrics.retry, metrics.conflict


class FollowersLog(Observer):
    """Of the log what is a worker's own: the rest would be the same lines as those of worker 0."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def event(self, event: events.Event) -> None:
        if event.level != "info" or isinstance(event, OF_EACH_WORKER):
            self._log.event(event)


@contextlib.contextmanager
def observing(
    settings: Settings, *, progress: Progress, log: Log, environ: Mapping[str, str]
) -> Iterator[tuple[Observer, Metrics]]:
    """The observers of an attempt as one, and the metrics, which worker 0 serves inside.

    Afterwards it pushes the outcome, with the exit code of how the inside ended.
    """
    metrics = Metrics(
        progress,
        constants={
            "run_id": settings.resolved_run_id(),
            "fingerprint": settings.fingerprint(),
            "dataset": settings.dataset,
            "backbone": settings.backbone,
        },
        disks=settings.local_folders(),
    )
    if settings.worker:
        # Worker 0 serves and pushes the metrics; here they are only what a store can report to.
        yield FollowersLog(log), metrics
        return
    exit_code = ExitCode.UNEXPECTED
    try:
        with contextlib.ExitStack() as stack:
            observers: list[Observer] = [log, metrics]
            stack.enter_context(serving(metrics.registry, settings.metrics_port, log))
            if "KUBEFLOW_TRAINER_SERVER_URL" in environ:
                # Imported only here: it brings an HTTP client, which only a TrainJob needs.
                from job.observe.kubeflow import Reporter

                observers.append(stack.enter_context(Reporter(environ, log)))
            yield Observers(*observers), metrics
        exit_code = ExitCode.COMPLETE
    except ThawError as error:
        exit_code = error.exit_code
        raise
    finally:
        # Another attempt holds the run then, and will push its own outcome.
        if settings.pushgateway_url is not None and exit_code != ExitCode.SUPERSEDED:
            push(
                metrics.outcome(exit_code),
                settings.pushgateway_url,
                grouping={"dataset": settings.dataset},
                timeout_seconds=HASTY_PUSH_SECONDS if exit_code == ExitCode.INTERRUPTED else PUSH_SECONDS,
                observer=log,
            )
