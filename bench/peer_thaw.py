"""Thaw's side of `bench peers`: the job's own train step on drawn pixels, one step for each line of input.

`python -m bench.peer_thaw OPTIONS` takes a JSON object, and answers each line with a JSON object.
"""

import itertools
import json
import sys
import time

import numpy as np
import tensorflow as tf

from bench.training import BATCH_SIZE, FINE_TUNE, HEAD
from job.model.augmentation_policy import Augmentation
from job.model.classifier import ModelRequest, build_classifier
from job.train import numerics
from job.train.collective import Collective
from job.train.state import PhaseState
from job.train.step import Recipe, train_steps
from job.workers.team import Alone


def main() -> None:
    options = json.loads(sys.argv[1])
    tf.config.threading.set_intra_op_parallelism_threads(options["threads"])
    generator = np.random.default_rng(0)
    size = options["image_size"]
    images = tf.constant(generator.integers(0, 256, (BATCH_SIZE, size, size, 3), np.uint8))
    labels = tf.constant(generator.integers(0, 2, BATCH_SIZE, np.int32))
    request = ModelRequest(
        backbone="Xception", weights="none", image_size=size, num_classes=2, dropout=0.2,
        augmentation=Augmentation(flip="horizontal", rotation=0.1),
        policy=numerics.dtype_policy(options["precision"]), seed=0,
    )  # fmt: skip
    state = PhaseState(build_classifier(request), {"head": HEAD, "fine_tune": FINE_TUNE}[options["phase"]])
    features_of = state.classifier.features_training(state.first)
    alone = Collective(Alone(lambda: None))
    train = train_steps(state, features_of, Recipe(BATCH_SIZE, 0, xla=False), alone)
    places, rates = tf.constant([[0, BATCH_SIZE, BATCH_SIZE, 0]]), tf.constant([state.phase.learning_rate])
    totals, is_stopping = tf.zeros([3], tf.float64), tf.constant(0.0)
    numbers = itertools.count()

    def step() -> float:
        sums, _ = train(tf.constant([[0, next(numbers)]]), places, rates, totals, is_stopping, images, labels)
        return float(sums.numpy()[0])

    for _ in range(options["warm_up_steps"]):
        step()
    print(json.dumps({"version": tf.__version__}), flush=True)
    for _ in sys.stdin:
        began, used = time.monotonic(), time.process_time()
        step()
        seconds = {"seconds": time.monotonic() - began, "processor_seconds": time.process_time() - used}
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
