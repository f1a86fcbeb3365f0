"""What there is around the training: start, compilation, commits, metrics, the answer of a finished run, a resume."""

import sys
import time
from collections.abc import Generator, Iterable

import tensorflow as tf

from bench.measuring import JOB, Row, finished, interleaved
from bench.workload import Workload
from job.data.splits import DataRequest, load_splits
from job.model.classifier import ModelRequest, build_classifier
from job.observe import events
from job.observe.events import PHASE_STARTED, Readers, StepDone
from job.observe.ledger import Ledger
from job.observe.metrics import Metrics
from job.observe.progress import Progress
from job.run.checkpoint import Checkpoints
from job.run.commits import Commits
from job.run.record import RunRecord
from job.schema import Holder
from job.storage import LocalStore
from job.train import loop, numerics
from job.train.state import PhaseState

REPETITIONS = 5
RECORDED_STEPS = 10_000
COMMIT_EVERY_SECONDS = 10
WINDOW_STEPS = 4
WINDOWS = 24


def rows(load: Workload) -> Iterable[Row]:
    """Everything around a run, in seconds and in shares of what it is around."""
    yield from _starts(load)
    yield from _answers(load)
    step_seconds = yield from _commits(load)
    yield from _recording(step_seconds)


def _starts(load: Workload) -> Iterable[Row]:
    """From the start of the process to the first step: of a new run, and of one that was killed after a commit."""
    splits = load.splits(64, 32, 32)
    fresh: list[float] = []
    resumed: list[float] = []
    compiled: dict[str, list[float]] = {"head": [], "fine_tune": []}
    for repetition in range(REPETITIONS):
        settings = {"HEAD_EPOCHS": 0, "FINE_TUNE_EPOCHS": 2, "CHECKPOINT_EVERY_SECONDS": 0}
        env = load.environment(f"resume-{repetition}", splits, **settings)
        begun = finished(JOB, env, kill_at='"event": "committed"')
        fresh.append(begun.seconds_until(events.STEP_COMPILED))
        ended = finished(JOB, env)
        assert '"event": "restored"' in ended.output
        resumed.append(ended.seconds_until(events.STEP_COMPILED))
        env = load.environment(f"start-{repetition}", splits, HEAD_EPOCHS=1, FINE_TUNE_EPOCHS=1)
        whole = finished(JOB, env)
        for phase, seconds in compiled.items():
            started = whole.seconds_until(events.PHASE_STARTED, phase=phase)
            seconds.append(whole.seconds_until(events.STEP_COMPILED, phase=phase) - started)
    yield Row("start to the first fine-tune step, compiled and done", "s", fresh)
    yield Row("the same, resumed from a commit", "s", resumed)
    yield Row("a resume over a start", "s", [b - a for a, b in zip(fresh, resumed, strict=True)], "at most 3 s")
    for phase, seconds in compiled.items():
        yield Row(f"first step of {phase}, traced, compiled and done", "s", seconds)


def _answers(load: Workload) -> Iterable[Row]:
    """A finished run, answered, against a Python that only imports what every job needs."""
    env = load.environment("start-0", load.splits(64, 32, 32), HEAD_EPOCHS=1, FINE_TUNE_EPOCHS=1)
    python = [sys.executable, "-c", "import numpy, pydantic_settings"]
    answers, imports = interleaved(REPETITIONS, lambda: finished(JOB, env), lambda: finished(python, env))
    yield Row("a finished run, answered", "s", [process.seconds for process in answers], "under 1.5 s")
    yield Row("Python with NumPy and pydantic-settings, imported", "s", [process.seconds for process in imports])


def _commits(load: Workload) -> Generator[Row, None, float]:
    """Some steps of fine-tuning beside which a commit is made against as many without one, in turn, in one process.

    Returns the seconds of a step.
    """
    size = load.image_size
    scratch = load.place / "commits"
    scratch.mkdir()
    request = DataRequest(
        dataset=load.dataset, data_dir=str(load.data_dir), specs=load.splits(320, 32, 32), image_size=size,
        cache="memory", cache_dir=scratch,
    )  # fmt: skip
    splits = load_splits(request, check_stop=lambda: None)
    model = ModelRequest(
        backbone="Xception", weights=load.weights, image_size=size, num_classes=2, dropout=0.2, flip="horizontal",
        rotation=0.1, policy=numerics.dtype_policy(numerics.choose(precision="auto", xla="auto")["precision"]), seed=0,
    )  # fmt: skip
    classifier = build_classifier(model)
    state = PhaseState(classifier, phase="fine_tune", trainable=("backbone", "head"), learning_rate=1e-5)
    record = RunRecord.open(LocalStore(scratch / "store"), run_id="commits", fingerprint="", settings={})
    record.take(Holder(host="bench", pid=1, started=0.0), lease_seconds=3600)
    progress = Progress()
    commits = Commits(
        Checkpoints(LocalStore(scratch / "store"), record, keep=2, scratch=scratch), reader=Readers(), progress=progress
    )
    facts = loop.train_phase(
        state, train=splits.train, validation=splits.validation, batch_size=32, epochs=10**6, seed=0, xla=False,
        first_epoch=0, step=0, strategy=tf.distribute.get_strategy(), check_stop=lambda: None, ledger=Ledger(),
        steps_lost=0,
    )  # fmt: skip
    warmed_up = 0
    while warmed_up < 3:
        warmed_up += isinstance(next(facts), StepDone)

    def window(*, commits_first: bool) -> float:
        """Seconds of some steps, validation left out; a commit that the first begins is also done in them."""
        steps, spent = 0, 0.0
        while steps < WINDOW_STEPS:
            began = time.monotonic()
            if commits_first and not steps:
                commits.submit(state.arrays, state="fine_tune", step=int(state.optimizer.iterations.numpy()), reason="")
            fact = next(facts)
            commits.report()
            if isinstance(fact, StepDone):
                spent += time.monotonic() - began
                steps += 1
        began = time.monotonic()
        commits.flush()
        return spent + time.monotonic() - began

    with commits.running(()):
        with_commit, without = interleaved(
            WINDOWS, lambda: window(commits_first=True), lambda: window(commits_first=False)
        )
    costs = [a - b for a, b in zip(with_commit, without, strict=True)]
    yield Row("a fine-tune step", "s", [seconds / WINDOW_STEPS for seconds in without])
    yield Row("a commit: how much longer the steps beside it take", "s", costs)
    shares = [100 * cost / COMMIT_EVERY_SECONDS for cost in costs]
    yield Row(f"commits, one every {COMMIT_EVERY_SECONDS} s, of fine-tuning", "%", shares, "at most 2 %")
    return min(without) / WINDOW_STEPS


def _recording(step_seconds: float) -> Iterable[Row]:
    """Processor time of telling a step to metrics, and what share of a step that is; no step writes a log line."""
    metrics = Metrics(Progress(), constants={"run_id": "", "fingerprint": "", "dataset": "", "backbone": ""}, disks=[])
    metrics.event(PHASE_STARTED, phase="head", epoch=0, step=0, learning_rate=1e-3)

    def seconds_a_step(readers: Readers) -> float:
        started = time.thread_time()
        for step in range(RECORDED_STEPS):
            done = StepDone(
                phase="head", epoch=0, step=step, num_steps=RECORDED_STEPS, batch=step, num_batches=RECORDED_STEPS,
                num_examples=32, seconds=0.1, data_wait_seconds=0.0, is_first=False,
            )  # fmt: skip
            readers.step(done, lambda: (0.0, 0.0))
        return (time.thread_time() - started) / RECORDED_STEPS

    told, untold = interleaved(REPETITIONS, lambda: seconds_a_step(Readers(metrics)), lambda: seconds_a_step(Readers()))
    yield Row("a step recorded as metrics", "us", [1e6 * seconds for seconds in told])
    yield Row("a step told to nobody", "us", [1e6 * seconds for seconds in untold])
    shares = [100 * (a - b) / step_seconds for a, b in zip(told, untold, strict=True)]
    yield Row("metrics, of a fine-tune step", "%", shares, "under 0.5 %")
