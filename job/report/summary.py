"""The rows of the closing table. A finished run is answered with it, so this module imports nothing slow."""

from collections.abc import Mapping
from typing import Any

from job.report.files import PAGE


def summary(outcome: Mapping[str, Any], report_at: str, durations: Mapping[str, float]) -> dict[str, str]:
    """The rows of the closing table."""
    low, high = outcome["test_accuracy_interval"]
    rows = {
        "test accuracy": f"{outcome['test_accuracy']:.4f}  (95 % interval {low:.4f} to {high:.4f})",
        "test loss": f"{outcome['test_loss']:.4f}",
        "weights": f"sha256 {outcome['model_sha256'][:16]}...",
    }
    for stage, seconds in durations.items():
        rows[stage.replace("_", " ")] = f"{seconds:,.1f} s"
    return rows | {"results": report_at, "report": f"{report_at}/{PAGE}"}
