"""The article's model in `fit`, on drawn pixels; KERAS_BACKEND says whether Keras trains with TensorFlow or with JAX.

`PYTHON bench/peer_keras.py OPTIONS` takes a JSON object, and answers as `bench/peer_answers.py` has it.
It shares no code with the job. One batch of float32 pixels, as the article caches them, comes from the host's memory
again and again. With JAX, TensorFlow only hands over the batches.
"""

import json
import sys
import time
from typing import Any

import article  # type: ignore[import-not-found] # beside this script
import keras
import numpy as np
import tensorflow as tf
from peer_answers import Steps, answer  # type: ignore[import-not-found] # beside this script


class Stopwatch(keras.callbacks.Callback):  # type: ignore[misc]
    """Seconds of the last epoch; asking for its loss waits for the device."""

    seconds = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._began = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        float(logs["loss"])
        self.seconds = time.monotonic() - self._began


def main() -> None:
    options = json.loads(sys.argv[1])
    size, phase = options["image_size"], options["phase"]
    if options["device"] == "cpu" or keras.backend.backend() != "tensorflow":
        tf.config.set_visible_devices([], "GPU")
    if options["precision"] == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    model, base = article.classifier(size=size, weights=None)
    article.compile_for(phase, model, base, learning_rate=1e-3 if phase == "head" else 1e-5)
    generator, stopwatch = np.random.default_rng(0), Stopwatch()

    def steps_of(batch_size: int) -> Steps:
        images = generator.integers(0, 256, (batch_size, size, size, 3)).astype(np.float32)
        batch = images, generator.integers(0, 2, (batch_size, 1)).astype(np.float32)
        data = tf.data.Dataset.from_tensors(batch).repeat().prefetch(10)

        def steps(num_steps: int) -> tuple[int, float]:
            # The first epoch of a call is a warm-up too.
            model.fit(data, epochs=2, steps_per_epoch=num_steps, callbacks=[stopwatch], verbose=0)
            return num_steps, stopwatch.seconds

        return steps

    answer(keras.__version__, steps_of, warm_up_steps=options["warm_up_steps"])


if __name__ == "__main__":
    main()
