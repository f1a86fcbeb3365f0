"""Thaw's side of `bench peers`: the job's own steps on drawn pixels.

`python -m bench.peer_thaw OPTIONS` takes a JSON object, and answers as `bench.peer_answers` has it.
"""

import json
import sys

import tensorflow as tf

from bench.peer_answers import Steps, answer
from bench.training import PHASES, drawn_steps, new_state
from job.train.step import Recipe


def main() -> None:
    options = json.loads(sys.argv[1])
    tf.config.threading.set_intra_op_parallelism_threads(options["threads"])
    size, precision = options["image_size"], options["precision"]
    state = new_state(PHASES[options["phase"]], backbone="Xception", image_size=size, precision=precision)

    def steps_of(batch_size: int) -> Steps:
        return drawn_steps(state, Recipe(batch_size, 0, xla=False))

    answer(tf.__version__, steps_of, warm_up_steps=options["warm_up_steps"])


if __name__ == "__main__":
    main()
