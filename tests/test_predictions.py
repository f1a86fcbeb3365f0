"""Every prediction of a finished run is kept, and reads back as it was."""

import csv
import io

import numpy as np
import pytest

from job.report import predictions
from job.report.files import PREDICTIONS
from job.report.predictions import COLUMNS, Prediction
from tests.runs import Undisturbed, record_of

CLASSES = ("cat", 'dog, "big"\r\nand = small')
"""A class may have any name: a folder has it."""


def file_of(*names: str) -> bytes:
    probability = np.array([[0.75, 0.25], [0.4, 0.6], [1.0, 0.0]])
    return predictions.written(
        probability, probability.argmax(axis=1), np.array([0, 0, 1]), CLASSES, names=names or None
    )


def test_predictions_read_back_as_they_were() -> None:
    """Whatever classes and images are called; the bytes are the same each time."""
    expected = [Prediction(CLASSES[0], CLASSES[0]), Prediction(CLASSES[0], CLASSES[1]), Prediction(CLASSES[1], "cat")]
    for names in ((), ("a.jpg", "b\n.jpg", "ä\u3000猫.jpg")):
        assert predictions.read(file_of(*names)) == expected
        assert file_of(*names) == file_of(*names)


def test_any_reader_of_csv_reads_them() -> None:
    """With the columns of the reference, and the probability of the predicted class."""
    rows = list(csv.DictReader(io.StringIO(file_of("a", "b", "c").decode(), newline="")))
    assert list(rows[1]) == list(COLUMNS)
    assert (rows[1]["index"], rows[1]["name"], rows[1]["probability"]) == ("1", "b", "0.600000")


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"a,b\n", file_of().replace(b"2,", b"3,"), file_of() + b"3,\n", file_of() + b'"', file_of()[1:]],
)
def test_another_file_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(is not|has|does not)"):
        predictions.read(content)


def test_a_run_keeps_what_its_accuracy_is_computed_from(undisturbed_run: Undisturbed) -> None:
    """With a digest in the record, like every file."""
    store, *_ = undisturbed_run
    record, found = record_of(store), predictions.read(store.read(PREDICTIONS).data)
    assert record.outcome is not None
    assert PREDICTIONS in record.files
    assert len(found) == record.inputs["data"]["splits"]["test"]
    assert np.mean([it.label == it.predicted for it in found]) == record.outcome.test_accuracy
