"""Steps on a GPU: what is measured and how much of it; Thaw's own variants of a step, and those of others.

Many steps are timed between two waits for the device, since the host runs ahead of it.
"""

import itertools
import os
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bench.measuring import Row, Said, failure
from bench.peers import PYTHON, Peer
from bench.workload import Workload, workload
from job import memory, nvidia
from job.imports import importing_tensorflow
from job.settings.fields import Precision

PHASES = ("fine_tune", "head")
PRECISIONS: tuple[Precision, ...] = ("bfloat16", "float32")
REPETITIONS = 3
RATE = "images/s"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured, on which device, with a folder for what the measurements write.

    All `batch_sizes` are of the best variant, `compared` are those of all. A timed repetition lasts about `seconds`.
    """

    backbone: str
    image_size: int
    batch_sizes: tuple[int, ...]
    compared: tuple[int, ...]
    seconds: float
    warm_up_steps: int
    splits: tuple[int, int, int]
    device: Literal["gpu", "cpu"] = "gpu"
    place: Path = field(default_factory=Path)
    is_quick: bool = False

    def use_device(self) -> None:
        """Import TensorFlow, for this device alone. Raises DeviceUnavailable."""
        with importing_tensorflow():
            from job.train import device
        device.use(self.device)

    def load(self) -> Workload:
        """Photographs or drawn pictures; the first call in a place draws them."""
        settings: dict[str, object] = {"DEVICE": self.device, "DEVICES": 1, "METRICS_PORT": 0}
        load = replace(workload(self.place), image_size=self.image_size)
        if self.is_quick:
            return replace(load, weights="none", settings=settings | {"BACKBONE": self.backbone})
        return replace(load, settings=settings)


FULL = Scale(
    backbone="Xception", image_size=150, batch_sizes=(32, 64, 128, 256, 512, 1024), compared=(32, 256), seconds=1.0,
    warm_up_steps=10, splits=(1280, 256, 256),
)  # fmt: skip
QUICK = Scale(
    backbone="Tiny", image_size=32, batch_sizes=(2, 4, 8), compared=(2, 4), seconds=0.0, warm_up_steps=2,
    splits=(64, 32, 32), is_quick=True,
)  # fmt: skip


class Measurement(NamedTuple):
    """`rows` of these arguments gives the rows, in a process of its own: both can be pickled."""

    name: str
    rows: Callable[..., Iterable[Row | Said]]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Variant:
    """How the job makes its steps."""

    name: str
    steps_per_execution: int
    on_device: bool = False
    xla: bool = False


VARIANTS = (
    Variant("8 steps a call, images on the device", 8, on_device=True),
    Variant("a step a call", 1),
    Variant("8 steps a call", 8),
    Variant("8 steps a call, images on the device, XLA", 8, on_device=True, xla=True),
)
PEERS: dict[str, tuple[str, dict[str, str]]] = {
    "PyTorch": ("peer_torch.py", {"compiled": ""}),
    "PyTorch, compiled": ("peer_torch.py", {"compiled": "default"}),
    "PyTorch, compiled to CUDA graphs": ("peer_torch.py", {"compiled": "reduce-overhead"}),
    "the article's fit": ("peer_keras.py", {"backend": "tensorflow"}),
    "the article's fit, Keras on JAX": ("peer_keras.py", {"backend": "jax"}),
}


def card(scale: Scale) -> Iterable[Said]:
    """What TensorFlow says of the device, if it can use it."""
    scale.use_device()
    import keras
    import tensorflow as tf

    from job.train import device

    built = tf.sysconfig.get_build_info()
    yield Said("device", device.name())
    yield Said("tensorflow", tf.__version__)
    yield Said("keras", keras.__version__)
    yield Said("cuda", f"{built.get('cuda_version', 'none')}, cuDNN {built.get('cudnn_version', 'none')}")


def step(scale: Scale, results: Mapping[str, Any]) -> Iterable[Measurement]:
    """The step of each phase and precision; with XLA at the end, because it compiles for long."""
    del results
    plain = [*itertools.product((False,), PRECISIONS, PHASES), (False, "float16", "fine_tune")]
    for xla, precision, phase in [*plain, *itertools.product((True,), PRECISIONS, PHASES)]:
        yield Measurement(f"{phase}, {precision}{', XLA' * xla}", _step_rows, (scale, phase, precision, xla))


def peers(scale: Scale, results: Mapping[str, Any]) -> Iterable[Measurement]:
    """The same of other programs: phases, precisions and programs in the order of their importance."""
    combinations = list(itertools.product(PRECISIONS, PHASES))
    # On a processor the others would take an hour.
    for precision, phase in combinations[-1:] if scale.is_quick else combinations:
        ours = {batch_size: best_rate(results, phase, precision, batch_size) for batch_size in scale.compared}
        for name in PEERS:
            yield Measurement(f"{phase}, {precision}: {name}", _peer_rows, (scale, phase, precision, name, ours))


def best_rate(results: Mapping[str, Any], phase: str, precision: str, batch_size: int) -> float | None:
    """Images a second of our fastest variant, if section `step` has one."""
    what = f"{step_name(phase, precision, batch_size)}: "
    rows = (row for row in results.get("step", {}).get("rows", []) if row.get("unit") == RATE)
    return max((row["median"] for row in rows if row["what"].startswith(what)), default=None)


def rates(steps: Callable[[int], tuple[int, float]], scale: Scale, batch_size: int) -> list[float]:
    """Images a second, three times; `steps` makes at least so many steps, and gives their number and seconds."""
    for _ in range(2):
        # The first are traced and compiled, and choose their kernels.
        done, seconds = steps(scale.warm_up_steps)
    num_steps = max(scale.warm_up_steps, round(scale.seconds * done / seconds))
    timed = [steps(num_steps) for _ in range(REPETITIONS)]
    return [batch_size * done / seconds for done, seconds in timed]


def step_name(phase: str, precision: str, batch_size: int) -> str:
    """With which the names of its rows begin."""
    return f"{phase} step, {precision}, batch {batch_size}"


def _step_rows(scale: Scale, phase: str, precision: Precision, xla: bool) -> Iterable[Row | Said]:
    scale.use_device()
    import tensorflow as tf

    from bench import training
    from job.train import device
    from job.train.step import Recipe

    size = scale.image_size
    state = training.new_state(training.PHASES[phase], backbone=scale.backbone, image_size=size, precision=precision)
    found: dict[Variant, list[float]] = {}

    def measured(variant: Variant, batch_sizes: Iterable[int]) -> Iterable[Row | Said]:
        """Up to the first that fails: the next ones need more memory."""
        for batch_size in batch_sizes:
            what = f"{step_name(phase, precision, batch_size)}: {variant.name}"
            try:
                with memory.explained(lambda: f"at batch {batch_size}", lambda reason: ""):  # noqa: B023
                    if device.gpu_memory():
                        tf.config.experimental.reset_memory_stats("GPU:0")
                    recipe = Recipe(batch_size, 0, xla=xla, steps_per_execution=variant.steps_per_execution)
                    steps = training.drawn_steps(state, recipe, on_device=variant.on_device)
                    found[variant] = rates(steps, scale, batch_size)
                yield Row(what, RATE, found[variant])
                if held := device.gpu_memory():
                    yield Row(f"{what}: most memory that TensorFlow held", "GB", [held["GPU:0"]["peak"] / 1e9])
            except Exception as error:
                yield failure(what, error)
                return

    for variant in (variant for variant in VARIANTS if variant.xla == xla):
        yield from measured(variant, scale.compared)
    if not xla and found:
        best = max(found, key=lambda variant: statistics.median(found[variant]))
        yield from measured(best, (size for size in scale.batch_sizes if size not in scale.compared))


def _peer_rows(
    scale: Scale, phase: str, precision: str, name: str, ours: Mapping[int, float | None]
) -> Iterable[Row | Said]:
    script, more = PEERS[name]
    python = sys.executable if more.get("backend") == "tensorflow" else os.environ.get(PYTHON)
    if not python:
        raise LookupError(f"{PYTHON} names no Python that has it")
    options = more | {
        "phase": phase, "precision": precision, "image_size": max(71, scale.image_size),
        "device": "cuda" if scale.device == "gpu" else "cpu", "threads": len(os.sched_getaffinity(0)),
        "warm_up_steps": scale.warm_up_steps,
    }  # fmt: skip
    # What `import bench` has set is the job's choice.
    env = {name: value for name, value in os.environ.items() if not name.startswith("TF_ENABLE_")}
    env |= {"KERAS_BACKEND": more.get("backend", ""), "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    if more.get("backend") == "tensorflow":
        # As `nvidia.load_cusolver` does for the job.
        folders = [env.get("LD_LIBRARY_PATH", ""), *nvidia.cusolver_folders()]
        env["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, folders))
    with Peer([python, f"bench/{script}"], options, env) as peer:

        def steps(num_steps: int) -> tuple[int, float]:
            answer = peer.steps(batch_size, num_steps)
            return int(answer["steps"]), answer["seconds"]

        for batch_size in scale.compared:
            what = f"{step_name(phase, precision, batch_size)}: {name}"
            row = Row(what, RATE, rates(steps, scale, batch_size))
            yield row
            if own := ours[batch_size]:
                yield Row(f"{what}: Thaw's best over it", "x", [own / rate for rate in row.values], "over 1")
