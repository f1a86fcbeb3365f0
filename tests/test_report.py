"""What is read of a finished run."""

import json
import sys
from datetime import UTC, datetime

from job import __version__
from job.record import EpochResult
from job.report import compose, summary, versions

OUTCOME = {
    "test_accuracy": 0.9656,
    "test_accuracy_interval": (0.94, 0.98),
    "test_loss": 0.0888,
    "model_sha256": "ab" * 32,
}


def test_versions_are_of_this_process() -> None:
    """The program, Python, and what decides the result, whichever TensorFlow is installed."""
    found = versions()
    assert found["thaw"] == __version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"tensorflow", "keras", "tensorflow-datasets", "numpy"} <= found.keys()


def test_the_report_is_json_and_complete() -> None:
    """Sizes, history, results, durations, settings and provenance."""
    epoch = EpochResult(
        phase="head", epoch=0, step=3, ended=datetime.now(UTC),
        train_loss=0.1, train_accuracy=0.9, validation_loss=0.2, validation_accuracy=0.8,
        train_seconds=3.0, validation_seconds=1.0, images_per_second=40.0,
    )  # fmt: skip
    report = compose(
        run_id="r", fingerprint="f", outcome=OUTCOME, test={"accuracy": 0.9656}, predictions=[{"index": 0}],
        inputs={"data": {"splits": {"train": 3}}, "backbone_sha256": "cd"}, history=[epoch], durations={"head": 4.0},
        time_seconds={"productive": 3.0, "compile": 1.0}, goodput=0.75,
        num_attempts=2, settings={"seed": 0}, device="CPU",
    )  # fmt: skip
    again = json.loads(json.dumps(report))
    assert again["splits"] == {"train": 3}
    assert again["history"] == [epoch.model_dump(mode="json")]
    assert again["durations_seconds"] == {"head": 4.0}
    assert (again["time_seconds"], again["goodput_ratio"]) == ({"productive": 3.0, "compile": 1.0}, 0.75)
    assert again["num_attempts"] == 2
    assert again["provenance"]["backbone_sha256"] == "cd"
    assert again["provenance"]["device"] == "CPU"


def test_the_summary_shows_accuracy_loss_times_and_place() -> None:
    """The rows of the closing table."""
    rows = summary(OUTCOME, "/runs/r", {"fine_tune": 1234.5})
    assert rows["test accuracy"] == "0.9656  (95 % interval 0.9400 to 0.9800)"
    assert rows["fine tune"] == "1,234.5 s"
    assert rows["results"] == "/runs/r"
