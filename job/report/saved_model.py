"""The model as a SavedModel: signatures that answer encoded images and arrays, for servers without Keras.

The graph holds all that happens to an image from its bytes to its class, decoded and rounded as the data of the run
was, so that it answers as the evaluation did. TensorFlow's operations read fewer kinds of images than Pillow.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from job.data.pixels import decode_without_python
from job.data.resizing import Resizing, Way
from job.model.answers import DEFAULT_THRESHOLD, logit_of
from job.report import native_files

FILES = ("saved_model.pb", "fingerprint.pb", "variables/variables.index", "variables/variables.data-00000-of-00001")
"""What a SavedModel of one process consists of, under the same names each time."""

Signature = Callable[[tf.Tensor], dict[str, tf.Tensor]]


def signatures(
    model: keras.Model, class_names: Sequence[str], *, threshold: float = DEFAULT_THRESHOLD, resize: Way = "stretch"
) -> dict[str, Signature]:
    """The functions that a server calls, by name, of a model: pixels 0..255 float32 [b, s, s, 3] -> logits [b, 1 or k].

    `serving_default` takes `encoded_images`, string [b] of any image format, and resizes them in the way `resize`;
    `uint8_images` and `float32_images` take `images`, pixels 0..255 [b, s, s, 3] of that type. Each returns `logits`
    float32 [b, 1 or k], `probabilities` float32 [b, k] in the order of the classes, and `label` string [b], the name of
    the most probable class; of two classes that of the second where its probability is above the threshold. The logits
    of a calibrated model are those that its temperature has divided (see `job.model.answers`).
    `serving_default` returns `valid` too, bool [b]: where bytes cannot be read as an image it is false, the label is
    empty, and the numbers are 0, which JSON has and NaN is not; the other images of the batch are answered.
    """
    image_shape = tuple(model.input_shape[1:])

    def signature(function: Any, shape: Sequence[int | None], dtype: tf.DType, name: str) -> Signature:
        return tf.function(function, input_signature=[tf.TensorSpec(shape, dtype, name=name)], autograph=False)

    def answer(images: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = model(images, training=False)
        # One logit stands for (0, logit); the class is that of the greater logit, as in the evaluation.
        of_classes = tf.concat([tf.zeros_like(logits), logits], axis=1) if logits.shape[1] == 1 else logits
        if threshold == DEFAULT_THRESHOLD:
            index = tf.argmax(of_classes, axis=1)
        else:
            index = tf.cast(of_classes[:, 1] - of_classes[:, 0] > logit_of(threshold), tf.int64)
        label = tf.gather(tf.constant(list(class_names)), index)
        return {"logits": logits, "probabilities": tf.nn.softmax(of_classes), "label": label}

    # The network is in the graph once: the other signatures call this one.
    float32_images = signature(answer, [None, *image_shape], tf.float32, "images")

    def answer_uint8(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return float32_images(tf.cast(images, tf.float32))

    def answer_encoded(encoded_images: tf.Tensor) -> dict[str, tf.Tensor]:
        images, valid = _decoded(encoded_images, Resizing(image_shape[0], resize))
        size, nothing = tf.size(encoded_images), {"logits": 0.0, "probabilities": 0.0, "label": ""}
        # Never of no image: the convolutions of oneDNN, which TensorFlow takes on some processors, fail on it.
        answered = {name: value[:size] for name, value in answer_uint8(images[: tf.maximum(size, 1)]).items()}
        valid = valid[:size]
        row = valid[:, tf.newaxis]
        of_valid = {
            name: tf.where(row if value.shape.rank == 2 else valid, value, nothing[name])
            for name, value in answered.items()
        }
        return of_valid | {"valid": valid}

    return {
        "serving_default": signature(answer_encoded, [None], tf.string, "encoded_images"),
        "uint8_images": signature(answer_uint8, [None, *image_shape], tf.uint8, "images"),
        "float32_images": float32_images,
    }


def _decoded(encoded: tf.Tensor, resizing: Resizing) -> tuple[tf.Tensor, tf.Tensor]:
    """Pixels uint8 [b + 1, size, size, 3] of string [b], and bool [b + 1]: which could be decoded.

    The others are black, and so is the last row, which is of no image.

    An operation that fails ends its graph, but for those of tf.data: there what fails can be left out.
    """
    size, side = tf.size(encoded, out_type=tf.int64), resizing.size
    images = (
        tf.data.Dataset.from_tensor_slices(encoded)
        .enumerate()
        .map(lambda index, image: (index, decode_without_python(image, resizing)), num_parallel_calls=tf.data.AUTOTUNE)
        .ignore_errors()
    )
    # One more, so that there is one: it goes to a row of its own.
    last = tf.data.Dataset.from_tensors((size, tf.zeros((side, side, 3), tf.uint8)))
    rows, pixels = images.concatenate(last).batch(size + 1).get_single_element()
    rows = rows[:, tf.newaxis]
    black = tf.zeros((size + 1, side, side, 3), tf.uint8)
    valid = tf.tensor_scatter_nd_update(tf.zeros([size + 1], tf.bool), rows, tf.ones_like(rows[:, 0], tf.bool))
    return tf.tensor_scatter_nd_update(black, rows, pixels), valid


def save(
    model: keras.Model,
    class_names: Sequence[str],
    folder: Path,
    *,
    threshold: float = DEFAULT_THRESHOLD,
    resize: Way = "stretch",
) -> None:
    """Write a model with its `signatures` as a SavedModel: the files of `FILES` in `folder`.

    Raises ScratchUnavailable when the disk does not take them.
    """
    module = tf.Module()
    # The bare variables: through Keras's layers, or its export archive (3.15), each would be written twice.
    module.weights = [variable.value for variable in model.variables]
    answers = signatures(model, class_names, threshold=threshold, resize=resize)
    # A served model needs no gradients, and tracing them takes as long as the rest.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    with native_files.explained(folder):
        tf.saved_model.save(module, folder, signatures=answers, options=options)
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if written != set(FILES):
        raise ValueError(f"TensorFlow {tf.__version__} writes a SavedModel as other files: {sorted(written)}")
