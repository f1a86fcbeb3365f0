"""A train step on another device than that which draws, as on a GPU: TensorFlow makes two devices of a CPU."""

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

STEPS = """
import hashlib, json, sys
import numpy as np
import tensorflow as tf

cpu, two = tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, two)
tf.config.experimental.enable_op_determinism()

from job.phases import Phase
from job.train.state import PhaseState
from job.train.step import Recipe, train_steps
from tests.classifiers import ALONE, build

SIZE, BATCH, CALLS = 16, 6, 2

def digest(unfreeze, number):
    state = PhaseState(build(), Phase(name=unfreeze, unfreeze=unfreeze, learning_rate=1e-3, epochs=1))
    recipe = Recipe(BATCH, 0, xla=False, steps_per_execution=number)
    call = train_steps(state, state.classifier.features_training(state.first), recipe, ALONE)
    generator, totals = np.random.default_rng(0), tf.zeros([3], tf.float64)
    for first in range(0, CALLS * number, number):
        images = tf.constant(generator.integers(0, 256, (number * BATCH, SIZE, SIZE, 3), np.uint8))
        labels = tf.constant(generator.integers(0, 2, number * BATCH, np.int32))
        seeds, places = [[7, first + n] for n in range(number)], [[0, BATCH, BATCH, n * BATCH] for n in range(number)]
        totals, _ = call(
            tf.constant(seeds), tf.constant(places), tf.fill([number], 1e-3), totals, tf.constant(0.0), images, labels
        )
    state.totals = totals
    hasher = hashlib.sha256()
    for name, array in sorted(state.arrays().items()):
        hasher.update(name.encode() + array.tobytes())
    return hasher.hexdigest()

with tf.device(sys.argv[1]):
    print(json.dumps([digest(unfreeze, number) for unfreeze in ("none", "all") for number in (1, 3)]))
"""


@pytest.mark.slow
def test_a_step_on_another_device_than_the_first_has_the_same_bits() -> None:
    """One step a call and three, which are a loop: what is drawn goes from one device to the other."""
    answers = []
    for device in ("CPU:0", "CPU:1"):
        command = [sys.executable, "-c", STEPS, device]
        done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=240)
        answers.append(json.loads(done.stdout.splitlines()[-1]))
    assert answers[0] == answers[1]
    assert len(set(answers[0])) == 4
