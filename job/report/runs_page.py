"""The page of `list`: the accuracy of the runs of a store over time, and a table of them, one file without scripts.

Nothing of a store is believed: every text is escaped, and a link leads to a run's own folder, by its checked name.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from job.report import plots
from job.report.rendering import percent, render
from job.schema import recorded_setting

MAX_RUNS = 1000
"""Unless more are asked for: about a megabyte, which a phone shows."""

MAX_SETTINGS = 24
"""Columns of settings that differ: a record may have any number of names."""

MAX_PLOTS = 6
"""One for each data set: accuracies over other images say nothing of each other."""

OWN_COLUMNS = ("DATASET", "BACKBONE")
"""Settings that have a column whether they differ or not."""

TONES = {
    "done": "good", "stopped": "doubtful", "killed": "doubtful", "failed": "bad", "damaged": "bad", "unreadable": "bad"
}  # fmt: skip
"""How a condition is coloured; the word says it too."""


def page(
    rows: Sequence[Mapping[str, Any]],
    differing: Sequence[str],
    *,
    place: str,
    way: str | None,
    num_found: int,
    now: datetime,
) -> str:
    """The page of the rows that `job.cli.list` finds. `differing` are names of settings.

    `place` is that of the runs, and `way` the relative path from the page to them; None for runs in a bucket, whose
    links are as if the page lay there.
    """
    names = [name for name in differing if name not in OWN_COLUMNS]
    return render(
        "runs.html",
        runs=[_described(row, names[:MAX_SETTINGS], way or ".") for row in rows],
        names=names[:MAX_SETTINGS],
        num_more_names=len(names[MAX_SETTINGS:]),
        conditions=dict(Counter(row["condition"] for row in rows).most_common()),
        **_plots(rows),
        place=place,
        is_bucket=way is None,
        num_found=num_found,
        now=now.isoformat(),
        tones=TONES,
    )


def _described(row: Mapping[str, Any], names: Sequence[str], way: str) -> dict[str, Any]:
    """The row with the values of its settings in order, and with the link to its report if it has one."""
    settings = row.get("settings", {})
    report = os.path.normpath(f"{way}/{row['run_id']}/{row['report']}") if row.get("report") else None
    return {
        **row,
        # The point keeps the first part from being taken for a scheme.
        "link": f"./{quote(os.fsencode(report))}" if report else None,
        "own": [recorded_setting(settings, name) for name in OWN_COLUMNS],
        "values": [recorded_setting(settings, name) for name in names],
    }


def _plots(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A plot for each data set with finished runs, the one with the most runs first, and how many have none."""
    of_dataset: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted((row for row in rows if row.get("test_accuracy") is not None), key=lambda row: row["changed"]):
        of_dataset.setdefault(str(recorded_setting(row["settings"], "DATASET")), []).append(row)
    ordered = sorted(of_dataset.items(), key=lambda item: (-len(item[1]), item[0]))
    drawn = [
        {"dataset": dataset, "num_runs": len(runs), "svg": Markup(_plot(runs, f"runs-{number}"))}
        for number, (dataset, runs) in enumerate(ordered[:MAX_PLOTS])
    ]
    return {"plots": drawn, "num_more_plots": len(ordered[MAX_PLOTS:])}


def _plot(runs: Sequence[Mapping[str, Any]], name: str) -> str:
    best = max(run["test_accuracy"] for run in runs)
    return plots.accuracy_over_time(
        [datetime.fromisoformat(run["changed"]) for run in runs],
        [run["test_accuracy"] for run in runs],
        [run["test_accuracy_interval"] for run in runs],
        name=name,
        description=f"Test accuracy by the end of the run, finished runs: {len(runs):,}; "
        f"the best {percent(best)}, the newest {percent(runs[-1]['test_accuracy'])}.",
    )
