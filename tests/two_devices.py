"""Train the same epoch on one device and on two, in a process that sees two CPUs; prints JSON.

A process of its own: logical devices can only be made before TensorFlow has started.
"""

import json
import sys

import tensorflow as tf

from job.data.splits import load_splits
from job.observe.events import EpochDone
from job.observe.ledger import Ledger
from job.phases import Phase
from job.train.loop import START, Recipe, train_phase
from job.train.state import PhaseState
from tests import shapes
from tests.classifiers import build


def main(data_dir: str) -> None:
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    # The devices wait for each other inside their operations: each needs threads of its own.
    tf.config.threading.set_inter_op_parallelism_threads(8)
    splits = load_splits(shapes.request(data_dir), check_stop=lambda: None)
    strategies = {"one": tf.distribute.get_strategy(), "two": tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])}
    results = {}
    for name, strategy in strategies.items():
        with strategy.scope():
            # Without dropout and augmentation, whose draws are each device's own.
            classifier = build(dropout=0.0, flip="none", rotation=0.0)
            phase = Phase(name="fine_tune", trainable=("backbone", "head"), learning_rate=1e-3, epochs=1)
            facts = train_phase(
                PhaseState(classifier, phase), train=splits.train, validation=splits.validation,
                recipe=Recipe(16, 0, xla=False, class_weights=(0.5, 2.0)), position=START, ledger=Ledger(),
            )  # fmt: skip
            last = list(facts)[-1]
        assert isinstance(last, EpochDone)
        kernel = classifier.head.kernel.numpy().ravel().tolist()
        results[name] = {
            "replicas": strategy.num_replicas_in_sync,
            "train_loss": last.train_loss,
            "validation_loss": last.validation_loss,
            "kernel": kernel,
        }
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
