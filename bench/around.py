"""What there is around the training: start, compilation, commits, metrics, the answer of a finished run, a resume."""

import sys
import time
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

from bench.measuring import JOB, Row, finished, interleaved
from bench.training import FINE_TUNE, drawn_steps, new_state
from bench.workload import BATCH_SIZE, Workload
from job.observe import events
from job.observe.events import StepDone
from job.observe.metrics import Metrics
from job.observe.observer import Observers
from job.observe.progress import Context, Progress
from job.run.checkpoint import Checkpoints
from job.run.committer import Committer
from job.run.curves import Curves
from job.run.record import Identity, RunRecord
from job.schema import Holder
from job.storage import LocalStore
from job.train import numerics
from job.train.state import PhaseState
from job.train.step import Recipe

REPETITIONS = 5
RECORDED_STEPS = 10_000
COMMIT_EVERY_SECONDS = 10
WARM_UP_STEPS = 3
WINDOW_STEPS = 4
WINDOWS = 24


def rows(load: Workload) -> Iterable[Row]:
    """Everything around a run, in seconds and in shares of what it is around."""
    yield from starts(load, REPETITIONS)
    yield from _answers(load)
    yield from beside_training(load)


def starts(load: Workload, repetitions: int) -> Iterable[Row]:
    """From the start of the process to the first step: of a new run, and of one that was killed after a commit."""
    splits = load.splits(64, 32, 32)
    fresh: list[float] = []
    resumed: list[float] = []
    compiled: dict[str, list[float]] = {"head": [], "fine_tune": []}
    for repetition in range(repetitions):
        settings = {"HEAD_EPOCHS": 0, "FINE_TUNE_EPOCHS": 2, "CHECKPOINT_EVERY_SECONDS": 0}
        env = load.environment(f"resume-{repetition}", splits, **settings)
        begun = finished(JOB, env, kill_at='"event": "committed"')
        fresh.append(begun.seconds_until(events.StepCompiled.name))
        ended = finished(JOB, env)
        assert '"event": "restored"' in ended.output
        resumed.append(ended.seconds_until(events.StepCompiled.name))
        whole, _ = load.run(f"start-{repetition}", splits, HEAD_EPOCHS=1, FINE_TUNE_EPOCHS=1)
        for phase, seconds in compiled.items():
            started = whole.seconds_until(events.PhaseStarted.name, phase=phase)
            seconds.append(whole.seconds_until(events.StepCompiled.name, phase=phase) - started)
    yield Row("start to the first fine-tune step, compiled and done", "s", fresh)
    yield Row("the same, resumed from a commit", "s", resumed)
    yield Row("a resume over a start", "s", [b - a for a, b in zip(fresh, resumed, strict=True)], "at most 3 s")
    for phase, seconds in compiled.items():
        yield Row(f"first step of {phase}, traced, compiled and done", "s", seconds)


def _answers(load: Workload) -> Iterable[Row]:
    """A finished run, answered, against a Python that only imports what every job needs."""
    env = load.environment("start-0", load.splits(64, 32, 32), HEAD_EPOCHS=1, FINE_TUNE_EPOCHS=1)
    python = [sys.executable, "-c", "import numpy, pydantic"]
    answers, imports = interleaved(REPETITIONS, lambda: finished(JOB, env), lambda: finished(python, env))
    yield Row("a finished run, answered", "s", [process.seconds for process in answers], "under 1.5 s")
    yield Row("Python with NumPy and pydantic, imported", "s", [process.seconds for process in imports])


def beside_training(load: Workload, *, window_seconds: float = 0.0) -> Iterable[Row]:
    """A step of fine-tuning, and what commits and metrics cost it.

    The steps beside a commit should take longer than it does: on a GPU a few would be over before.
    """
    precision = numerics.choose(precision="auto", xla="auto")["precision"]
    state = new_state(
        FINE_TUNE, backbone=str(load.settings.get("BACKBONE", "Xception")), weights=load.weights,
        image_size=load.image_size, precision=precision,
    )  # fmt: skip
    steps = drawn_steps(state, Recipe(BATCH_SIZE, 0, xla=False))
    steps(WARM_UP_STEPS)
    done, seconds = steps(WARM_UP_STEPS)
    num_steps = max(WINDOW_STEPS, round(window_seconds * done / seconds))
    seconds_of_step = yield from _commits(load.place / "commits", state, lambda: steps(num_steps))
    yield from _recording(seconds_of_step)


def _commits(
    scratch: Path, state: PhaseState, some_steps: Callable[[], tuple[int, float]]
) -> Generator[Row, None, float]:
    """Some steps of fine-tuning beside which a commit is made against as many without one, in turn, in one process.

    Returns the seconds of a step.
    """
    scratch.mkdir()
    store = LocalStore(scratch / "store")
    record = RunRecord.open(store, Identity(run_id="commits", fingerprint="", settings={}))
    record.take(Holder(host="bench", pid=1, started=0.0), lease_seconds=3600)
    context = Context(Observers(), Progress(), check_stop=lambda: None)
    checkpoints = Checkpoints(store, record, keep=2, folder=scratch)
    committer = Committer(checkpoints, context, Curves(store, record, scratch))

    def window(*, with_commit: bool) -> tuple[int, float]:
        """Steps, and their seconds; a commit that is begun before them is also done in them."""
        began = time.monotonic()
        if with_commit:
            step = int(state.optimizer.iterations.numpy())
            committer.submit(state.arrays, phase=state.phase.name, step=step, reason="")
        done, _ = some_steps()
        committer.flush()
        return done, time.monotonic() - began

    with committer:
        windows = interleaved(WINDOWS, lambda: window(with_commit=True), lambda: window(with_commit=False))
    with_commit, without = ([seconds for _, seconds in some] for some in windows)
    num_steps = windows[0][0][0]
    costs = [a - b for a, b in zip(with_commit, without, strict=True)]
    yield Row("a fine-tune step", "s", [seconds / num_steps for seconds in without])
    yield Row("a commit: how much longer the steps beside it take", "s", costs)
    shares = [100 * cost / COMMIT_EVERY_SECONDS for cost in costs]
    yield Row(f"commits, one every {COMMIT_EVERY_SECONDS} s, of fine-tuning", "%", shares, "at most 2 %")
    return min(without) / num_steps


def _recording(seconds_of_step: float) -> Iterable[Row]:
    """Processor time of recording a step as metrics, and what share of a step that is; no step writes a log line."""
    metrics = Metrics(Progress(), constants={"run_id": "", "fingerprint": "", "dataset": "", "backbone": ""}, disks=[])
    metrics.event(events.PhaseStarted("head", epoch=0, step=0, learning_rate=1e-3))

    def seconds_a_step(observers: Observers) -> float:
        started = time.thread_time()
        for step in range(RECORDED_STEPS):
            done = StepDone(
                phase="head", epoch=0, step=step, num_steps=RECORDED_STEPS, batch=step, num_batches=RECORDED_STEPS,
                num_examples=32, seconds=0.1, data_wait_seconds=0.0, is_first=False,
            )  # fmt: skip
            observers.step(done, lambda: (0.0, 0.0))
        return (time.thread_time() - started) / RECORDED_STEPS

    recorded, bare = interleaved(
        REPETITIONS, lambda: seconds_a_step(Observers(metrics)), lambda: seconds_a_step(Observers())
    )
    yield Row("a step recorded as metrics", "us", [1e6 * seconds for seconds in recorded])
    yield Row("a step without metrics", "us", [1e6 * seconds for seconds in bare])
    shares = [100 * (a - b) / seconds_of_step for a, b in zip(recorded, bare, strict=True)]
    yield Row("metrics, of a fine-tune step", "%", shares, "under 0.5 %")
