"""One attempt at a run: claim it, do what is left of it, record how the attempt ended, judge the outcome.

A finished run is answered here, in about a second: the pipeline, and TensorFlow with it, is imported only when the
record shows that there is work to do.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from job import memory
from job.errors import ExitCode, StorageError, Superseded, ThawError
from job.observe import events
from job.observe.ledger import by_stage
from job.observe.log import without_native_notes
from job.observe.progress import Context, Progress
from job.report.gate import missed_gate
from job.report.summary import summary
from job.run import lease
from job.run.record import Identity, RunRecord
from job.schema import Holder
from job.settings.resources import estimate
from job.settings.settings import Settings
from job.storage import ObjectStore, scratch


def run_attempt(settings: Settings, *, store: ObjectStore, holder: Holder, context: Context) -> dict[str, Any]:
    """Complete the run, from wherever it is, and return its outcome.

    `store` is the run's own place. Raises a ThawError for every other end: when the outcome is committed and below the
    gate, QualityGateMissed.
    """
    observer, progress = context.observer, context.progress
    with progress.entering("claim", "idle"):
        record = lease.claim(
            store, Identity.of(settings), holder, lease_seconds=settings.lease_seconds, context=context
        )
    attempts = record.content.attempts if record.is_done else record.content.attempts[:-1]
    progress.ledger.earlier = tuple(attempt.seconds for attempt in attempts)
    if record.is_done:
        ended = f"{record.attempt.end:%FT%TZ}"
        observer.event(events.RunAlreadyDone(store.uri, len(attempts), ended=ended, **_outcome(record)))
    else:
        observer.event(events.RunClaimed(store.uri, attempt=record.attempt.number, state=record.content.state))
        _do_what_is_left(settings, store, record, context)
    outcome = _outcome(record)
    progress.stage = "done"
    observer.closing(
        f"Run {record.content.run_id} is complete",
        summary(outcome, report_at=store.uri, durations=by_stage(progress.ledger.of_run())),
    )
    missed = missed_gate(outcome, settings.min_test_accuracy)
    if missed is not None:
        raise missed
    return outcome


def _outcome(record: RunRecord) -> dict[str, Any]:
    assert record.content.outcome is not None
    return record.content.outcome.model_dump(mode="json")


def _do_what_is_left(settings: Settings, store: ObjectStore, record: RunRecord, context: Context) -> None:
    progress = context.progress
    with (
        _recording_the_end(record),
        memory.explained(lambda: _position(progress), lambda: _memory_hint(settings, record)),
        scratch.folder(settings.cache_dir) as folder,
        lease.Renewal(record, lease_seconds=settings.lease_seconds) as renewal,
    ):

        def check_stop() -> None:
            context.check_stop()
            renewal.check()

        # Importing TensorFlow takes as long as a short lease, so the lease is renewed meanwhile. TFDS replaces
        # `__import__` while it is imported, for all threads: no other thread may work then.
        with progress.entering("import", "init"), without_native_notes():
            import job.model.classifier  # noqa: F401  and TensorFlow with it

            with record.quiet():
                from job.run.pipeline import Pipeline
        check_stop()
        Pipeline(settings, store, record, replace(context, check_stop=check_stop), scratch=folder).run()


def _position(progress: Progress) -> str:
    step = f" after step {progress.step}" if progress.step is not None else ""
    return f"in {progress.stage}{step}; what was committed stands"


def _memory_hint(settings: Settings, record: RunRecord) -> str:
    inputs = record.content.inputs
    needed = ""
    if inputs:
        need = estimate(
            settings, num_examples=sum(inputs["data"]["splits"].values()), precision=inputs["arithmetic"]["precision"]
        )
        needed = f" (the run needs about {need.memory / 1e9:.1f} GB)"
    cache = "set THAW_CACHE=disk, " if settings.cache == "memory" else ""
    return (
        f"give it more memory{needed}, {cache}or begin another run with a smaller THAW_BATCH_SIZE or THAW_IMAGE_SIZE, "
        "or a smaller THAW_BACKBONE; the same again ends the same"
    )


@contextlib.contextmanager
def _recording_the_end(record: RunRecord) -> Iterator[None]:
    """Write how the attempt ended into the record, if the store and a newer attempt allow it."""
    exit_code = ExitCode.UNEXPECTED
    try:
        yield
        exit_code = ExitCode.COMPLETE
    except ThawError as error:
        exit_code = error.exit_code
        raise
    finally:
        with contextlib.suppress(Superseded, StorageError):
            record.close_attempt(exit_code)
