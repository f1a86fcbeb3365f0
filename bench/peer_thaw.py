"""Thaw's side of `bench peers`: the job's own steps on drawn pixels.

`python -m bench.peer_thaw OPTIONS` takes a JSON object, and answers each line of input, how many steps of which batch
size, with a JSON object: how many were made, and their seconds.
"""

import json
import sys
import time

import tensorflow as tf

from bench.training import PHASES, drawn_steps, new_state
from job.train.step import Recipe


def main() -> None:
    options = json.loads(sys.argv[1])
    tf.config.threading.set_intra_op_parallelism_threads(options["threads"])
    size, precision = options["image_size"], options["precision"]
    state = new_state(PHASES[options["phase"]], backbone="Xception", image_size=size, precision=precision)
    print(json.dumps({"version": tf.__version__}), flush=True)
    batch_size = 0
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["batch_size"] != batch_size:
            batch_size = asked["batch_size"]
            steps = drawn_steps(state, Recipe(batch_size, 0, xla=False))
            steps(options["warm_up_steps"])
        used = time.process_time()
        done, seconds = steps(asked["num_steps"])
        found = {"steps": done, "seconds": seconds, "processor_seconds": time.process_time() - used}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
