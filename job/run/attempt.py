"""One attempt at a run: claim it, do what is left of it, record how the attempt ended, judge the outcome.

Of several workers the first one does this; the others join it, and see the same outcome or the same end. A finished run
is answered here, in about a second: the pipeline, and TensorFlow with it, is imported only when the record shows that
there is work to do.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from job import __version__, memory
from job.errors import ExitCode, PeerLost, StorageError, Superseded, ThawError
from job.imports import importing_tensorflow
from job.observe import events
from job.observe.ledger import by_stage
from job.observe.progress import Context, Progress
from job.report.gate import missed_gate
from job.report.summary import summary
from job.run import disk_space, lease, standing
from job.run.following import FollowedRecord
from job.run.record import Identity, RunRecord
from job.schema import Holder, Record
from job.settings import machine
from job.settings.resources import Need, estimate, images_at_once, with_other_cache, with_smaller_parts
from job.settings.settings import Settings
from job.storage import ObjectStore, scratch
from job.wording import either
from job.workers.follower import Follower
from job.workers.leader import Leader
from job.workers.meeting import Meeting
from job.workers.team import Alone, Team

SMALLER_RUN = "begin another run with a smaller THAW_IMAGE_SIZE or THAW_BACKBONE"


def run_attempt(settings: Settings, *, store: ObjectStore, holder: Holder, context: Context) -> dict[str, Any]:
    """Complete the run, from wherever it is, and return its outcome.

    `store` is the run's own place. Raises a ThawError for every other end: when the outcome is committed and below the
    gate, QualityGateMissed.
    """
    progress = context.progress
    record = _follow(settings, store, context) if settings.worker else _lead(settings, store, holder, context)
    assert record.outcome is not None
    outcome = record.outcome.model_dump(mode="json")
    progress.stage = "done"
    context.observer.closing(
        f"Run {record.run_id} is complete",
        summary(outcome, report_at=store.uri, durations=by_stage(progress.ledger.of_run())),
    )
    missed = missed_gate(outcome, settings.gates())
    if missed is not None:
        raise missed
    return outcome


def _lead(settings: Settings, store: ObjectStore, holder: Holder, context: Context) -> Record:
    """Claim the run and complete it, alone or with the other workers; returns the record of the finished run."""
    progress = context.progress
    num_workers = settings.workers
    with progress.entering("claim", "idle"):
        record = lease.claim(
            store,
            Identity.of(settings),
            holder,
            lease_seconds=settings.lease_seconds,
            num_workers=num_workers,
            # The others of several would wait in vain meanwhile.
            wait_seconds=settings.wait_seconds if num_workers == 1 else 0.0,
            context=context,
        )
    attempts = record.content.attempts if record.is_done else record.content.attempts[:-1]
    progress.ledger.earlier = tuple(attempt.seconds for attempt in attempts)
    if record.is_done:
        _report_done(record.content, store, context)
        return record.content
    context.observer.event(events.RunClaimed(store.uri, attempt=record.attempt.number, state=record.content.state))
    _report_killed(settings, record.content, context)
    with (
        _recording_the_end(record),
        lease.Renewal(record, lease_seconds=settings.lease_seconds) as renewal,
        _team(settings, store, record, context) as team,
    ):

        def check_stop() -> None:
            renewal.check()
            team.check()

        _do_what_is_left(settings, store, record, team, replace(context, check_stop=check_stop))
    return record.content


def _follow(settings: Settings, store: ObjectStore, context: Context) -> Record:
    """Join worker 0, and do this worker's part; returns the record with the outcome."""
    identity = Identity.of(settings)

    def look_again() -> None:
        if _finished_by_now(store, identity) is not None:
            raise PeerLost("worker 0 has completed the run")

    with context.progress.entering("join", "idle"):
        done = _finished(store, identity)
    if done is None:
        try:
            meeting, worker = _meeting(settings, store), settings.worker or 0
            with Follower(meeting, context, worker=worker, look_again=look_again) as team:
                record = FollowedRecord.read(store, identity, team, attempt=team.greeting().get("attempt"))
                context.observer.event(events.Joined(store.uri, attempt=record.attempt.number))
                _do_what_is_left(settings, store, record, team, replace(context, check_stop=team.check))
                return record.content
        except PeerLost:
            # Worker 0 may have finished without this worker, which was late or whose end it did not need.
            done = _finished_by_now(store, identity)
            if done is None:
                raise
    _report_done(done, store, context)
    return done


def _finished(store: ObjectStore, identity: Identity) -> Record | None:
    """The record, if the run is complete; nothing is written. Raises as `RunRecord.open` does."""
    record = RunRecord.open(store, identity)
    return record.content if record.is_done else None


def _finished_by_now(store: ObjectStore, identity: Identity) -> Record | None:
    """The record of the run if it is finished, for a worker that has another error, or may wait.

    A store that does not answer is no error of its own.
    """
    with contextlib.suppress(StorageError):
        return _finished(store, identity)
    return None


def _report_done(record: Record, store: ObjectStore, context: Context) -> None:
    assert record.outcome is not None
    assert record.attempts[-1].end is not None
    ended, outcome = f"{record.attempts[-1].end:%FT%TZ}", record.outcome.model_dump(mode="json")
    context.observer.event(events.RunAlreadyDone(store.uri, len(record.attempts), ended=ended, **outcome))


def _team(
    settings: Settings, store: ObjectStore, record: RunRecord, context: Context
) -> contextlib.AbstractContextManager[Team]:
    """The workers of a run that this process has claimed."""
    if settings.workers == 1:
        return contextlib.nullcontext(Alone(context.check_stop))
    return Leader(_meeting(settings, store), context, greeting={"attempt": record.attempt.number})


def _meeting(settings: Settings, store: ObjectStore) -> Meeting:
    addresses = settings.addresses()
    run = (
        f"{store.uri} with fingerprint {settings.fingerprint()}, thaw {__version__}, {len(addresses.hosts)} workers, "
        f"THAW_STEPS_PER_EXECUTION={settings.steps_per_execution}, THAW_MICROBATCH_SIZE={settings.microbatch_size}"
    )
    return Meeting(addresses, run, settings.worker_wait_seconds)


def _do_what_is_left(settings: Settings, store: ObjectStore, record: RunRecord, team: Team, context: Context) -> None:
    progress = context.progress
    with (
        memory.explained(lambda: _position(progress), lambda text: _memory_hint(settings, record.content, text)),
        scratch.folder(settings.cache_dir) as folder,
    ):
        memory.check_address_space()
        # Importing TensorFlow takes as long as a short lease, so the lease is renewed meanwhile. TFDS replaces
        # `__import__` while it is imported, for all threads: no other thread may work then.
        with progress.entering("import", "init"), importing_tensorflow():
            import job.model.classifier  # noqa: F401  and TensorFlow with it

            with record.quiet():
                from job.run.pipeline import Pipeline
                from job.train import device
                from job.train.collective import assemble
        if unused := device.use(settings.device):
            context.observer.event(events.GpuNotUsed(unused.message, unused.hint))
        context.check_stop()
        with progress.entering("meet", "idle"):
            team.meet()
            collective = assemble(team, settings.addresses())
        Pipeline(settings, store, record, context, collective, folder=folder).run()


def _position(progress: Progress) -> str:
    step = f" after step {progress.step}" if progress.step is not None else ""
    return f"in {progress.stage}{step}; what was committed stands"


def _report_killed(settings: Settings, record: Record, context: Context) -> None:
    """Say that the last attempt ended without a word, and where: it could not say so itself."""
    killed = standing.killed(record, is_running=True)
    if killed is None:
        return
    need, limit = _need(settings, record), machine.memory_limit_bytes()
    is_short = killed.in_a_row > 1 or (need is not None and limit is not None and need.memory > limit)
    hint = "the run carries on; if it was killed for memory, the status of the pod says OOMKilled"
    context.observer.event(
        events.PreviousKilled(
            killed.attempt.number,
            killed.attempt.holder,
            killed.stage,
            reason=str(killed),
            hint=_memory_hint(settings, record, "") if is_short else hint,
            in_a_row=killed.in_a_row,
            last_step=killed.step,
            memory_limit_bytes=limit,
            needed_bytes=need.memory if need else None,
            oom_kills=machine.oom_kills(),
        )
    )


def _need(settings: Settings, record: Record) -> Need | None:
    """What this worker needs, and of memory what all of its host need together; None before the data is known.

    Those are the processes of one pod, which has one limit of memory for them all.
    """
    inputs = record.inputs
    if not inputs:
        return None
    need = estimate(
        settings,
        num_examples=sum(inputs["data"]["splits"].values()),
        precision=inputs["arithmetic"]["precision"],
    )
    num_here = len(settings.addresses().beside(settings.worker or 0))
    return replace(need, memory=disk_space.memory_of_host(settings, need, num_here))


def _memory_hint(settings: Settings, record: Record, text: str) -> str:
    """What to do about exhausted memory, of which an error of TensorFlow's has this text."""
    need = _need(settings, record)
    parts = with_smaller_parts(images_at_once(settings, settings.workers))
    if memory.is_of_gpu(text):
        needed = f"about {need.device / 1e9:.1f} GB of a GPU's memory" if need else "more memory of a GPU"
        cache = "set THAW_CACHE=memory" if settings.cache == "device" else ""
        ways = either(cache, parts, "see that no other program uses the GPU", "take a larger one", SMALLER_RUN)
        return f"the run needs {needed}: {ways}; more memory of the pod does not help"
    needed = f" (the run needs about {need.memory / 1e9:.1f} GB)" if need else ""
    ways = either(f"give it more memory{needed}", with_other_cache(settings), parts, SMALLER_RUN)
    return f"{ways}; the same again ends the same"


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
