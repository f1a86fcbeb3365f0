"""The program on a GPU, as a user starts it: runs as processes, what they say, and what is around the training."""

import contextlib
import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from bench.gpu_steps import REPETITIONS, Measurement, Scale, rates
from bench.measuring import JOB, Finished, Row, Said, finished
from job import nvidia
from job.errors import ExitCode
from job.observe import events
from job.settings.resources import estimate
from job.settings.settings import Settings

DEMO = {"BACKBONE": "Tiny", "WEIGHTS": "none", "IMAGE_SIZE": 64, "FINE_TUNE_LEARNING_RATE": 2e-3}
"""Of `make demo`; the epochs are below."""
ON_DEVICE: dict[str, object] = {"CACHE": "device", "STEPS_PER_EXECUTION": 8}
RUNS: dict[str, dict[str, object]] = {
    "as it is": {},
    "images on the device, 8 steps a call": ON_DEVICE,
    "float32": {"PRECISION": "float32"},
}
EVALUATED = 2048
LOOK_SECONDS = 0.05
WINDOW_SECONDS = 3.0
START_REPETITIONS = 2
TOO_LARGE = {"BATCH_SIZE": 16_384, "IMAGE_SIZE": 500, "HEAD_EPOCHS": 0, "FINE_TUNE_EPOCHS": 1}
"""Of the data all images are one batch: with Xception more than 300 GB."""
PARTS = 32


def program(scale: Scale, results: Mapping[str, Any]) -> Iterable[Measurement]:
    """The demo, whole runs, and one that is killed."""
    del results
    yield Measurement("the demo", _demo, (scale,))
    for name, settings in RUNS.items():
        yield Measurement(f"{scale.backbone}, {name}", _run, (scale, name, settings))
    yield Measurement("deterministic runs", _deterministic, (scale,))


def around(scale: Scale, results: Mapping[str, Any]) -> Iterable[Measurement]:
    """What is around the training, and a run with XLA."""
    del results
    yield Measurement("commits and metrics beside training", _beside_training, (scale,))
    yield Measurement("evaluation", _evaluation, (scale,))
    yield Measurement("more than the memory has", _too_large, (scale,))
    yield Measurement("starts", _starts, (scale,))
    for xla in (False, True):
        for is_padded in (False, True):
            yield Measurement(_of_smaller(xla, is_padded), _smaller_batch, (scale, xla, is_padded))
    # Last, because it may compile for minutes.
    name = "images on the device, 8 steps a call, XLA"
    yield Measurement(f"{scale.backbone}, {name}", _run, (scale, name, ON_DEVICE | {"XLA": "on"}))


def _demo(scale: Scale) -> Iterable[Row | Said]:
    load = replace(scale.load(), dataset="drawn_cats_vs_dogs", data_dir=scale.place / "data")
    splits = "train[:70%]", "train[70%:85%]", "train[85%:]"
    epochs = {"HEAD_EPOCHS": 1, "FINE_TUNE_EPOCHS": 1} if scale.is_quick else {"HEAD_EPOCHS": 2, "FINE_TUNE_EPOCHS": 10}
    process = finished(JOB, load.environment("demo", splits, **DEMO | epochs), may_fail=True)
    yield from _ending("the demo", process)
    yield Row("the demo: whole process", "s", [process.seconds])
    yield Row("the demo: test accuracy", "", [process.entries(events.Evaluated.name)[-1]["accuracy"]], "0.977 on CPUs")
    yield Said("the demo: device", process.entries(events.ModelBuilt.name)[0]["device"])


def _run(scale: Scale, name: str, settings: dict[str, object]) -> Iterable[Row | Said]:
    """A run as a user starts it; the first step of a phase is traced, compiled and done."""
    load, what = scale.load(), f"{scale.backbone}, {name}"
    epochs = {"HEAD_EPOCHS": 2, "FINE_TUNE_EPOCHS": 2, "RUN_ID": name.replace(" ", "-").replace(",", "")}
    env = load.environment("", load.splits(*scale.splits), **epochs | settings)
    with _memory_in_use() as in_use:
        process = finished(JOB, env, may_fail=True)
    yield from _ending(what, process)
    built = process.entries(events.ModelBuilt.name)[0]
    yield Said(f"{what}: device and arithmetic", f"{built['device']}, {built['precision']}, XLA {built['xla']}")
    yield Row(f"{what}: whole process", "s", [process.seconds])
    yield Row(f"{what}: start to the first head step", "s", [process.seconds_until("step_compiled", phase="head")])
    for phase in ("head", "fine_tune"):
        first = process.entries(events.StepCompiled.name, phase=phase)[0]
        epoch = process.entries(events.EpochFinished.name, phase=phase)[-1]
        yield Row(f"{what}: first step of {phase}", "s", [first["seconds"]])
        yield Row(f"{what}: {phase}", "images/s", [epoch["images_per_second"]])
        for held in epoch.get("gpu_memory", {}).values():
            yield Row(f"{what}: most memory that TensorFlow held until the end of {phase}", "GB", [held["peak"] / 1e9])
    if in_use:
        yield Row(f"{what}: most GPU memory in use, by NVML", "GB", [max(in_use) / 1e9])
        yield Row(f"{what}: the same before it", "GB", [in_use[0] / 1e9])
    answers = [finished(JOB, env).seconds for _ in range(REPETITIONS)]
    yield Row(f"{what}: the finished run, answered", "s", answers, "under 1.5 s")
    wanted = {key.removeprefix("THAW_").lower(): value for key, value in env.items() if key.startswith("THAW_")}
    need = estimate(Settings.model_validate(wanted), num_examples=sum(scale.splits), precision=built["precision"])
    yield Row(f"{what}: memory of the device, as plan estimates it", "GB", [need.device / 1e9])
    new_run = env | {"THAW_RUN_ID": "new"}
    plan = json.loads(finished([*JOB, "plan", "--json"], new_run, may_fail=True).output)
    yield Row(f"{what}: exit code of plan", "", [plan["exit_code"]], "0")
    for check in plan["checks"]:
        if check["name"] in ("device", "device memory"):
            yield Said(f"{what}: {check['name']}, in the words of plan", check["text"])


def _deterministic(scale: Scale) -> Iterable[Row | Said]:
    """Two whole runs, and one that is killed in fine-tuning and resumed."""
    load, splits = scale.load(), scale.load().splits(*scale.splits)
    settings = {"DETERMINISTIC": True, "HEAD_EPOCHS": 1, "FINE_TUNE_EPOCHS": 2}
    whole, again = (load.run(f"deterministic-{number}", splits, **settings) for number in (1, 2))
    first = _digest(whole[1])
    yield Row("deterministic: whole process", "s", [process.seconds for process, _ in (whole, again)])
    yield Said("deterministic: two whole runs have the same model", _yes_or_no(first == _digest(again[1])))
    env = load.environment("deterministic-killed", splits, CHECKPOINT_EVERY_SECONDS=0, **settings)
    killed = finished(JOB, env, kill_at='"reason": "interval", "phase": "fine_tune"')
    process, record = load.run("deterministic-killed", splits, **settings)
    restored = process.entries(events.Restored.name, phase="fine_tune")[0]
    yield Said("deterministic: killed, and resumed from", f"fine_tune step {restored['step']}; {killed.exit_code}")
    yield Said("deterministic: killed and resumed, it has the same model", _yes_or_no(first == _digest(record)))


def _beside_training(scale: Scale) -> Iterable[Row]:
    scale.use_device()
    from bench.around import beside_training

    yield from beside_training(scale.load(), window_seconds=0 if scale.is_quick else WINDOW_SECONDS)


def _evaluation(scale: Scale) -> Iterable[Row]:
    """The exported model, in float32, as `predict_logits` has it in a run."""
    scale.use_device()
    from bench.training import HEAD, drawn_split, new_state
    from job.train.collective import Collective
    from job.train.evaluation import forward_of, predict_logits
    from job.workers.team import Alone

    size = scale.image_size
    state = new_state(HEAD, backbone=scale.backbone, image_size=size, precision="float32")
    forward, alone = forward_of(state.classifier.export()), Collective(Alone(lambda: None))
    split = drawn_split(size, 64 if scale.is_quick else EVALUATED)

    for batch_size in (32, 64):

        def batches(num_batches: int) -> tuple[int, float]:
            began, sizes = time.monotonic(), {"batch_size": batch_size, "at_once": batch_size}  # noqa: B023
            predict_logits(forward, split, alone, num_logits=state.classifier.num_logits, **sizes)
            return len(split), time.monotonic() - began

        yield Row(f"evaluation, batch {batch_size}", "images/s", rates(batches, scale, 1))


def _too_large(scale: Scale) -> Iterable[Row | Said]:
    load = scale.load()
    # On a processor it would take the memory of the whole machine.
    settings = TOO_LARGE | ({"BATCH_SIZE": 32, "IMAGE_SIZE": scale.image_size} if scale.is_quick else {})
    env = load.environment("too-large", load.splits(1400, 32, 32), **settings)
    process = finished(JOB, env, may_fail=True)
    yield Row("too large a batch: exit code", "", [process.exit_code], f"{int(ExitCode.MEMORY_EXHAUSTED)}")
    if process.exit_code:
        said = process.entries(events.RunFailed.name)[-1]
        yield Said("too large a batch: reason", said["reason"].splitlines()[0])
        yield Said("too large a batch: hint", said["hint"])
        # The same run goes on.
        process = finished(JOB, env | {"THAW_MICROBATCH_SIZE": str(PARTS)}, may_fail=True)
        yield from _ending(f"too large a batch, in parts of {PARTS}", process)


def _of_smaller(xla: bool, is_padded: bool) -> str:
    return f"a smaller batch, {'padded' if is_padded else 'as it is'}" + (", XLA" if xla else "")


def _smaller_batch(scale: Scale, xla: bool, is_padded: bool) -> Iterable[Row]:
    """The first step of a batch that is not full, after some that are: with a shape of its own, or with theirs."""
    scale.use_device()
    import tensorflow as tf

    from bench.training import FINE_TUNE, new_state
    from job.train.collective import Collective
    from job.train.step import Recipe, train_steps
    from job.workers.team import Alone

    size, full, smaller = scale.image_size, max(scale.compared), max(scale.compared) - 1
    state = new_state(FINE_TUNE, backbone=scale.backbone, image_size=size, precision="float32")
    recipe, alone = Recipe(full, 0, xla=xla, fixed_shapes=is_padded), Collective(Alone(lambda: None))
    call = train_steps(state, state.classifier.features_training(0), recipe, alone)
    seconds: list[float] = []
    for rows in (full, full, smaller, smaller):
        began = time.monotonic()
        totals, _ = call(
            tf.constant([[0, len(seconds)]]), tf.constant([[0, rows, rows, 0]]), tf.constant([1e-5]),
            tf.zeros([3], tf.float64), tf.constant(0.0), tf.zeros([rows, size, size, 3], tf.uint8),
            tf.zeros([rows], tf.int32),
        )  # fmt: skip
        totals.numpy()
        seconds.append(time.monotonic() - began)
    for what, value in zip(("full, first", "full", "smaller, first", "smaller"), seconds, strict=True):
        yield Row(f"{_of_smaller(xla, is_padded)}: {what}", "s", [value])


def _starts(scale: Scale) -> Iterable[Row]:
    from bench.around import starts

    yield from starts(scale.load(), START_REPETITIONS)


def _ending(what: str, process: Finished) -> Iterable[Row | Said]:
    """The exit code, and raises when it is not 0, with the last line of the log, which has the reason."""
    yield Row(f"{what}: exit code", "", [process.exit_code], "0")
    if process.exit_code:
        raise RuntimeError(process.output)


@contextlib.contextmanager
def _memory_in_use() -> Iterator[list[int]]:
    """Bytes that all processes have of the GPU, by NVML, again and again while inside; nothing without one."""
    found, is_over = [], threading.Event()

    def look() -> None:
        while (used := nvidia.read(0).memory.get("used")) is not None:
            found.append(used)
            if is_over.wait(LOOK_SECONDS):
                return

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield found
    finally:
        is_over.set()
        looking.join()


def _digest(record: Mapping[str, Any]) -> str:
    return str(record["outcome"]["model_sha256"])


def _yes_or_no(is_so: bool) -> str:
    return "yes" if is_so else "no"
