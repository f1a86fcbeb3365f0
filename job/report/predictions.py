"""`report/predictions.csv`: what the model of a finished run says of every test image, in order.

A CSV file in UTF-8 with the columns index, name (empty in TFDS data), label, predicted, and the probability of the
predicted class with six decimals: the same bytes for the same predictions. 50,000 images are about 2 MB. It is written
beside the model and read by `compare`, so this module imports no TensorFlow.
"""

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

COLUMNS = ("index", "name", "label", "predicted", "probability")


class Prediction(NamedTuple):
    """The true class of a test image, and the one that the model predicts."""

    label: str
    predicted: str


def written(
    probability: np.ndarray, predicted: np.ndarray, labels: np.ndarray, class_names: Sequence[str],
    *, names: Sequence[str] | None = None,
) -> bytes:  # fmt: skip
    """The file of n images: `probability` float64 [n, k]; `predicted` and `labels` int [n] are indices of class names.

    `names` are those of the images, which have none by default.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for index, (of_class, label) in enumerate(zip(predicted.tolist(), labels.tolist(), strict=True)):
        name = names[index] if names is not None else ""
        writer.writerow([index, name, class_names[label], class_names[of_class], f"{probability[index, of_class]:.6f}"])
    return text.getvalue().encode()


def read(content: bytes) -> list[Prediction]:
    """The predictions of a file, in order. Raises ValueError when it is not one of these."""
    try:
        header, *rows = csv.reader(io.StringIO(content.decode(), newline=""), strict=True)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"is not a CSV file in UTF-8 with a header: {error}") from error
    if tuple(header) != COLUMNS:
        raise ValueError(f"does not have the columns {', '.join(COLUMNS)}")
    if any(len(row) != len(COLUMNS) or row[0] != str(index) for index, row in enumerate(rows)):
        raise ValueError("has a row that is not of the image of its number")
    return [Prediction(row[2], row[3]) for row in rows]
