"""Who is told of an attempt: the log, Prometheus, and Kubeflow Trainer where this process is part of a TrainJob.

None of them changes how an attempt ends: what they cannot do is a warning.
"""

import contextlib
from collections.abc import Iterator, Mapping

from job.errors import ExitCode, ThawError
from job.observe import events
from job.observe.events import Observer, Observers
from job.observe.log import Console
from job.observe.metrics import Metrics, push, serving
from job.observe.progress import Progress
from job.settings.settings import Settings

PUSH_SECONDS, HASTY_PUSH_SECONDS = 5.0, 1.0
"""For the outcome to be pushed; the second one when the process was told to stop."""


class StoreObserver:
    """What a store reports: requests to the metrics, and a wait for a lock to everyone who reads of the attempt."""

    def __init__(self, metrics: Metrics, observer: Observer) -> None:
        self.request, self.retry, self.conflict = metrics.request, metrics.retry, metrics.conflict
        self._observer = observer

    def waiting(self, lock: str, at_most_seconds: float) -> None:
        self._observer.event(events.WaitingForLock(lock, at_most_seconds))


@contextlib.contextmanager
def observing(
    settings: Settings, *, progress: Progress, console: Console, environ: Mapping[str, str]
) -> Iterator[tuple[Observer, Metrics]]:
    """Everyone who reads of an attempt as one, and the metrics, which are served inside.

    How the inside ends is the outcome that is pushed afterwards.
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
    exit_code = ExitCode.UNEXPECTED
    try:
        with serving(metrics.registry, settings.metrics_port, console), _kubeflow(environ, console) as reporters:
            yield Observers(console, metrics, *reporters), metrics
        exit_code = ExitCode.COMPLETE
    except ThawError as error:
        exit_code = error.exit_code
        raise
    finally:
        # An attempt that another one keeps from running has nothing to say of the run: that one does.
        if settings.pushgateway_url is not None and exit_code != ExitCode.SUPERSEDED:
            push(
                metrics.outcome(exit_code),
                settings.pushgateway_url,
                grouping={"dataset": settings.dataset},
                timeout_seconds=HASTY_PUSH_SECONDS if exit_code == ExitCode.INTERRUPTED else PUSH_SECONDS,
                observer=console,
            )


@contextlib.contextmanager
def _kubeflow(environ: Mapping[str, str], observer: Observer) -> Iterator[list[Observer]]:
    if "KUBEFLOW_TRAINER_SERVER_URL" not in environ:
        yield []
        return
    # Imported here: it brings an HTTP client, and only a TrainJob needs it.
    from job.observe.kubeflow import Reporter

    with Reporter.of(environ, observer) as reporter:
        yield [reporter]
