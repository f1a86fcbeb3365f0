"""One of the workers that `bench scale` measures: a process that does what a line of its input says, and answers.

Every line is JSON, and so is its answer: "steps" or the name of a sum, and how often. The sums are of the gradient of
fine-tuning (`gradient`) and of that of the head: alone (`head`), with the flag that asks all to stop in the same
all-reduce (`carried`), and with the flag in one of its own (`apart`).
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from bench.measuring import memory_of
from bench.training import step_seconds, training
from bench.workload import Workload
from job.train.collective import Collective, assemble
from job.train.state import PhaseState
from job.workers.addresses import Addresses
from job.workers.share import Share
from job.workers.team import Alone

IMAGES = 640
WARM_UP_STEPS = 3


class _Team(Alone):
    """Workers that nothing happens to."""

    def __init__(self, share: Share) -> None:
        super().__init__(lambda: None)
        self.share = share


def main() -> None:
    worker, num_workers, port, load = json.loads(sys.argv[1])
    team = _Team(Share(worker, num_workers))
    addresses = Addresses.of("localhost", port, num_workers=num_workers)
    collective = assemble(team, addresses)
    with tempfile.TemporaryDirectory(prefix="thaw-bench-") as scratch:
        workload = Workload(**load | {name: Path(load[name]) for name in ("data_dir", "place")})
        state, facts = training(workload, Path(scratch), collective, num_examples=IMAGES)
        for _ in range(WARM_UP_STEPS):
            step_seconds(facts)
        _answer({"gradient_bytes": sum(4 * variable.value.shape.num_elements() for variable in state.variables)})
        sums = _sums(collective, state)
        for line in sys.stdin:
            what, count = json.loads(line)
            processor = time.process_time()
            if what == "steps":
                seconds = sum(step_seconds(facts) for _ in range(count))
            else:
                seconds = _repeated(sums[what], count)
            used = time.process_time() - processor
            peak_bytes = memory_of("self")["VmHWM"]
            _answer({"seconds": seconds / count, "processor_seconds": used / count, "peak_bytes": peak_bytes})


def _answer(facts: dict[str, float]) -> None:
    print(json.dumps(facts), flush=True)


def _repeated(function: Callable[[], Any], count: int) -> float:
    began = time.monotonic()
    for _ in range(count):
        function().numpy()
    return time.monotonic() - began


def _sums(collective: Collective, state: PhaseState) -> dict[str, Callable[[], Any]]:
    """The sums by name."""
    flag = tf.constant(0.0)

    def summed(*, of: slice, more: list[tf.Tensor]) -> tf.Tensor:
        # Other values than those of the variables, as a gradient is.
        gradient = [2 * variable.value for variable in state.variables[of]]
        return tf.reduce_sum(collective.summed([*gradient, *more])[-1])

    head = slice(-2, None)
    functions = {
        "gradient": lambda: summed(of=slice(None), more=[]),
        "head": lambda: summed(of=head, more=[]),
        "carried": lambda: summed(of=head, more=[flag]),
        "apart": lambda: summed(of=head, more=[]) + collective.summed([flag])[0],
    }
    return {name: collective.step(function, []) for name, function in functions.items()}


if __name__ == "__main__":
    main()
