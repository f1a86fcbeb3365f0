"""The page of `compare`: tables and learning curves of several runs, one file without scripts."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from job.report import plots
from job.report.rendering import percent, render
from job.report.significance import METHODS


def page(content: Mapping[str, Any]) -> str:
    """The page of a comparison's content (see `job.run.comparison`)."""
    drawn = [run for run in content["runs"] if run["history"]][: plots.MAX_CURVES]
    tests = content["tests"]
    return render(
        "comparison.html",
        comparison=content,
        best=max((run["test_accuracy"] for run in content["runs"] if run["test_accuracy"] is not None), default=None),
        several=sum("p_value" in test for test in tests) > 1,
        methods={test["method"]: METHODS[test["method"]] for test in tests if "method" in test},
        drawn=[run["number"] for run in drawn],
        plots={quantity: Markup(_curves(drawn, quantity)) for quantity in ("loss", "accuracy")} if drawn else {},
    )


def _curves(runs: Sequence[Mapping[str, Any]], quantity: str) -> str:
    show = percent if quantity == "accuracy" else "{:.3f}".format
    last = [f"run {run['number']} {show(run['history'][-1][f'validation_{quantity}'])}" for run in runs]
    return plots.validation_curves(
        {f"run {run['number']}": run["history"] for run in runs},
        quantity,
        description=f"Validation {quantity} after each epoch; after the last one: {', '.join(last)}.",
    )
