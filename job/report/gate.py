"""The quality gate: a judgement of a committed outcome, not a part of the run."""

from typing import Any

from job.errors import QualityGateMissed


def missed_gate(outcome: dict[str, Any], min_test_accuracy: float | None) -> QualityGateMissed | None:
    """The error of an outcome that is below the gate; None when it is not, or there is no gate."""
    accuracy = outcome["test_accuracy"]
    if min_test_accuracy is None or accuracy >= min_test_accuracy:
        return None
    return QualityGateMissed(
        f"test accuracy {accuracy:.4f} is below THAW_MIN_TEST_ACCURACY={min_test_accuracy}; the results are committed",
        hint="train with other settings under another run id, or lower the gate: it is not part of the run",
    )


def missed_by_evaluation(accuracy: float, min_accuracy: float | None) -> QualityGateMissed | None:
    """The same of the accuracy of a finished run's model over other images, which no run keeps."""
    if min_accuracy is None or accuracy >= min_accuracy:
        return None
    return QualityGateMissed(
        f"accuracy {accuracy:.4f} is below --min-accuracy {min_accuracy}",
        hint="train another run with images such as these among its own, or lower the gate",
    )
