"""The quality gate: what is below it, in words that are true at its edge too."""

import pytest

from job.report.gate import missed_by_evaluation, missed_gate

OUTCOME = {"test_accuracy": 0.97496, "test_balanced_accuracy": 0.9}


@pytest.mark.parametrize(
    ("gates", "says"),
    [
        ({}, None),
        ({"test_accuracy": 0.97496, "test_balanced_accuracy": 0.9}, None),
        ({"test_accuracy": 0.98}, "test accuracy 0.9750 is below THAW_MIN_TEST_ACCURACY=0.98; the results"),
        ({"test_accuracy": 0.975}, "test accuracy 0.97496 is below THAW_MIN_TEST_ACCURACY=0.975; the results"),
        (
            {"test_accuracy": 0.975, "test_balanced_accuracy": 0.95},
            "test accuracy 0.97496 is below THAW_MIN_TEST_ACCURACY=0.975 and test balanced accuracy 0.9000 is below "
            "THAW_MIN_TEST_BALANCED_ACCURACY=0.95; the results",
        ),
    ],
)
def test_what_is_below_a_gate_is_named_with_it(gates: dict[str, float], says: str | None) -> None:
    """Both, where both are; a number that is equal is not below."""
    missed = missed_gate(OUTCOME, gates)
    assert missed is None if says is None else missed is not None and missed.message.startswith(says)


def test_an_evaluation_names_the_options() -> None:
    """In which the words are joined by hyphens."""
    missed = missed_by_evaluation({"balanced_accuracy": 0.5}, {"balanced_accuracy": 0.75})
    assert missed is not None
    assert missed.message == "balanced accuracy 0.5000 is below --min-balanced-accuracy 0.75"
