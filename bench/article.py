"""The article's recipe as a plain Keras script, with which a run of Thaw is compared.

`python bench/article.py OPTIONS` takes a JSON object of sizes and prints the results as one. It shares no code with the
job, not even what `import bench` sets up: `fit`, float32 and a cache of float32 images, as in the article. Like the
article it does not shuffle the examples (they were prepared in a random order), and the statistics of BatchNorm move in
fine-tuning: Keras 3 overrides `training=False` inside `fit`.
"""

import json
import sys
import time
from typing import Any

BATCH_SIZE = 32


def main() -> None:
    options = json.loads(sys.argv[1])
    started = time.monotonic()

    import tensorflow as tf
    import tensorflow_datasets as tfds
    from tensorflow import keras

    keras.utils.set_random_seed(options["seed"])
    size = (options["image_size"],) * 2
    splits = tfds.load(
        options["dataset"], split=options["splits"], as_supervised=True, data_dir=options["data_dir"], download=False
    )
    train, validation, test = (
        split.map(lambda x, y: (tf.image.resize(x, size), y)).cache().batch(BATCH_SIZE).prefetch(buffer_size=10)
        for split in splits
    )

    model, base = classifier(size=options["image_size"], weights=options["weights"])

    seconds = {}
    for phase, learning_rate, epochs in options["phases"]:
        compile_for(phase, model, base, learning_rate=learning_rate)
        began = time.monotonic()
        model.fit(train, epochs=epochs, validation_data=validation, verbose=0)
        seconds[phase] = time.monotonic() - began

    _, accuracy = model.evaluate(test, verbose=0)
    print(json.dumps({"accuracy": accuracy, "wall_seconds": time.monotonic() - started, "seconds": seconds}))


def classifier(*, size: int, weights: str | None) -> tuple[Any, Any]:
    """The model, from pixels [b, size, size, 3] to a logit, and the frozen backbone in it."""
    import keras
    from keras import layers

    augmentation = keras.Sequential([layers.RandomFlip("horizontal"), layers.RandomRotation(0.1)])
    base = keras.applications.Xception(weights=weights, input_shape=(size, size, 3), include_top=False)
    base.trainable = False
    inputs = keras.Input(shape=(size, size, 3))
    x = augmentation(inputs)
    x = layers.Rescaling(scale=1 / 127.5, offset=-1)(x)
    x = base(x, training=False)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.2)(x)
    return keras.Model(inputs, layers.Dense(1)(x)), base


def compile_for(phase: str, model: Any, base: Any, *, learning_rate: float) -> None:
    import keras

    base.trainable = phase == "fine_tune"
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy(threshold=0.0)],
    )


if __name__ == "__main__":
    main()
