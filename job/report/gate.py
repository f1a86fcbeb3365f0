"""The quality gate: a judgement of a committed outcome, not a part of the run."""

from collections.abc import Mapping
from typing import Any

from job.errors import InputError, QualityGateMissed

Gates = Mapping[str, float]
"""The lowest value that is good enough, 0 to 1, by the name of a number of an outcome: test_accuracy."""


def missed_gate(outcome: Mapping[str, Any], gates: Gates) -> QualityGateMissed | None:
    """The error of an outcome that is below a gate; None when it is not, or there is no gate.

    Raises InputError when the outcome lacks the number, as those of earlier versions lack the balanced accuracy.
    """
    missed: list[str] = []
    for name, gate in gates.items():
        setting = f"THAW_MIN_{name.upper()}={gate}"
        if outcome[name] is None:
            raise InputError(
                f"{setting}: the run was finished by an earlier version, and its record has no {_words(name)}",
                hint="thaw evaluate computes it again, with a gate of its own",
            )
        missed += _below(outcome, name, gate, setting)
    if not missed:
        return None
    return QualityGateMissed(
        f"{' and '.join(missed)}; the results are committed",
        hint="train with other settings under another run id, or lower the gate: it is not part of the run",
    )


def missed_by_evaluation(found: Mapping[str, float], gates: Gates) -> QualityGateMissed | None:
    """The same of a finished run's model over other images, which no run keeps; the names are accuracy and so on."""
    missed: list[str] = []
    for name, gate in gates.items():
        missed += _below(found, name, gate, f"--min-{name.replace('_', '-')} {gate}")
    if not missed:
        return None
    return QualityGateMissed(
        " and ".join(missed), hint="train another run with images such as these among its own, or lower the gate"
    )


def _below(found: Mapping[str, float], name: str, gate: float, option: str) -> list[str]:
    """That a number is below its gate, if it is: in four digits, or in all where those would not be below."""
    value, shown = found[name], f"{found[name]:.4f}"
    if value >= gate:
        return []
    return [f"{_words(name)} {shown if float(shown) < gate else value} is below {option}"]


def _words(name: str) -> str:
    return name.replace("_", " ")
