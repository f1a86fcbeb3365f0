"""What a step costs with each backbone, against one with Xception that takes turns with it; all with new weights."""

import gc
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import psutil

from bench.measuring import Row, interleaved
from bench.training import FINE_TUNE, HEAD, step_seconds, training
from bench.workload import Workload
from job.model.backbones import BACKBONES, CUSTOM, TINY
from job.phases import Phase
from job.settings.resources import estimate
from job.settings.settings import Settings
from job.train.collective import Collective
from job.workers.team import Alone

REFERENCE = "Xception"
NAMES = tuple(name for name in BACKBONES if name not in (REFERENCE, CUSTOM, TINY))
PHASES = (HEAD, FINE_TUNE)
NUM_IMAGES = 320
WARM_UP_STEPS = 2
REPETITIONS = 3


def rows(load: Workload, names: Sequence[str] = ()) -> Iterable[Row]:
    """Seconds of a step of Xception, and how many times as long one of these backbones takes, of all by default.

    A backbone is left out that wants larger images than those of the workload, or more memory than there is.
    """
    references = {phase.name: _steps(load, REFERENCE, phase) for phase in PHASES}
    for phase in PHASES:
        yield Row(what(REFERENCE, phase.name), "s", [references[phase.name]() for _ in range(REPETITIONS)])
    for name in names or NAMES:
        if BACKBONES[name].min_image_size > load.image_size or _need(load, name) > psutil.virtual_memory().available:
            print(f"  {name}: left out", flush=True)
            continue
        for phase in PHASES:
            step = _steps(load, name, phase)
            ours, reference = interleaved(REPETITIONS, step, references[phase.name])
            yield Row(what(name, phase.name), "x", [a / b for a, b in zip(ours, reference, strict=True)])
            del step
            gc.collect()


def what(name: str, phase: str) -> str:
    """How the row of a backbone and a phase is called in the results."""
    return f"{phase} step: {name}"


def _need(load: Workload, name: str) -> int:
    """Bytes of memory."""
    settings = Settings(storage_uri=str(load.place), backbone=name, weights="none", image_size=load.image_size)
    return estimate(settings, num_examples=NUM_IMAGES, precision="float32").memory


def _steps(load: Workload, name: str, phase: Phase) -> Callable[[], float]:
    """A function that makes one step, and gives its seconds; the first steps are done."""
    scratch = Path(tempfile.mkdtemp(dir=load.place))
    alone = Collective(Alone(lambda: None))
    _, facts = training(load, scratch, alone, num_examples=NUM_IMAGES, phase=phase, backbone=name)
    for _ in range(WARM_UP_STEPS):
        step_seconds(facts)
    return partial(step_seconds, facts)
