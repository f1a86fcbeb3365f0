"""Plots as SVG inside a page: the same bytes for the same values, and legible on light and dark.

Matplotlib draws in the colours of the light scheme; in the SVG each is a variable of the page's style sheet, which has
another value in the dark. Text stays text, in the page's own font.
"""

import contextlib
import html
import io
import itertools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from job.phases import title

VARIABLES = {
    "ink": "#17212b",
    "muted": "#52616f",
    "line": "#d5dde4",
    "first": "#0b63a5",
    "second": "#b4460f",
    "third": "#6b3fa0",
    "fourth": "#1d6f42",
}
"""Colours of the light scheme, by their names in the style sheet."""

CURVES: list[dict[str, Any]] = [
    {"color": VARIABLES[name], "marker": marker, "linestyle": style}
    for style in ("-", (0, (2, 1.5)))
    for name, marker in (("first", "o"), ("second", "s"), ("third", "^"), ("fourth", "D"))
]
MAX_CURVES = len(CURVES)
"""In one plot: more are not told apart."""

LABELS = {"train": "training", "validation": "validation"}

# Fixed, so that no layout depends on the fonts that a machine happens to have.
_MARGINS: dict[str, Any] = {"left": 0.2, "right": 0.955, "bottom": 0.15, "top": 0.86, "hspace": 0.12}
_LABEL_X = -0.205
"""Of the label of a vertical axis, in widths of the axes: the same place beside ticks of any length."""

MIN_ACCURACY_RANGE = 0.02
"""Of the axis: over less, ticks would have three decimals and more."""

MINUTES_OF_A_DAY = 24 * 60
MAX_LARGE_MARKS = 60
"""Of more runs the marks are smaller, so that they do not cover each other."""

_LEGEND: dict[str, Any] = {"loc": "upper right", "bbox_to_anchor": (0.985, 1.0), "borderaxespad": 0.2, "ncols": 2}

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "text.color": VARIABLES["ink"],
    "axes.labelcolor": VARIABLES["ink"],
    "axes.edgecolor": VARIABLES["muted"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": VARIABLES["line"],
    "grid.linewidth": 0.8,
    "xtick.color": VARIABLES["muted"],
    "ytick.color": VARIABLES["muted"],
    "xtick.labelcolor": VARIABLES["ink"],
    "ytick.labelcolor": VARIABLES["ink"],
    "lines.linewidth": 2.0,
    "lines.markersize": 5.0,
    "legend.frameon": False,
    "figure.facecolor": "none",
}

_DASHED: dict[str, Any] = {"color": VARIABLES["muted"], "linestyle": (0, (4, 3)), "linewidth": 1.2}

# Its notes on fonts and folders are not for the log of a run.
logging.getLogger("matplotlib").setLevel(logging.ERROR)


def learning_curve(history: Sequence[Mapping[str, Any]], quantity: str, *, description: str) -> str:
    """`loss` or `accuracy` of training and validation after each epoch of all phases, as SVG."""
    with _figure(quantity, height=3.2) as figure:
        axes = figure.subplots(gridspec_kw=_MARGINS)
        curves = {label: [epoch[f"{split}_{quantity}"] for epoch in history] for split, label in LABELS.items()}
        _plot_over_epochs(axes, curves, quantity)
        _mark_phases(axes, [epoch["phase"] for epoch in history])
        figure.legend(**_LEGEND)
        return _as_svg(figure, quantity, description)


def validation_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]], quantity: str, *, description: str) -> str:
    """`loss` or `accuracy` of validation after each epoch of at most `MAX_CURVES` runs, by their label, as SVG."""
    with _figure(quantity, height=3.6) as figure:
        axes = figure.subplots(gridspec_kw=_MARGINS | {"top": 0.82})
        name = f"validation_{quantity}"
        curves = {label: [epoch[name] for epoch in history] for label, history in histories.items()}
        _plot_over_epochs(axes, curves, quantity)
        figure.legend(**_LEGEND | {"ncols": 4})
        return _as_svg(figure, quantity, description)


def reliability_diagram(
    calibration: Mapping[str, Any], *, num_classes: int, description: str, name: str = "reliability"
) -> str:
    """Accuracy against probability, bin by bin, with 95 % intervals, over how many examples are in each; as SVG.

    `name` is that of the plot in the page.
    """
    bins = [row for row in calibration["bins"] if row["num_examples"]]
    # With two classes the probability of the more probable one is at least one half.
    left = 0.5 if num_classes == 2 else 0.0
    with _figure(name, height=4.2) as figure:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1), gridspec_kw=_MARGINS)
        above.plot([0, 1], [0, 1], **_DASHED, label="calibrated as it should be")
        probability = [row["mean_probability"] for row in bins]
        accuracy = [row["accuracy"] for row in bins]
        low = [max(0.0, row["accuracy"] - row["accuracy_interval"][0]) for row in bins]
        high = [max(0.0, row["accuracy_interval"][1] - row["accuracy"]) for row in bins]
        above.errorbar(
            probability, accuracy, yerr=(low, high), color=VARIABLES["first"], marker="o", linewidth=1.2, capsize=3,
            label="this model", clip_on=False, zorder=3,
        )  # fmt: skip
        _label_y(above, "accuracy")
        above.set_ylim(0.0, 1.0)
        above.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        below.bar(
            [row["low"] for row in bins], [row["num_examples"] for row in bins], width=0.094, align="edge",
            color=VARIABLES["first"],
        )  # fmt: skip
        _label_y(below, "images")
        below.set_xlabel("probability of the most probable class")
        below.set_xlim(left, 1.0)
        below.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        below.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True, min_n_ticks=1))
        figure.legend(*above.get_legend_handles_labels(), **_LEGEND)
        return _as_svg(figure, name, description)


def precision_recall_curve(curve: Mapping[str, Any], *, name: str, marked: Mapping[str, Any], description: str) -> str:
    """Precision against recall of one class, over the share of its examples; as SVG.

    `name` is that of the plot in the page, `marked` a row of `per_class`, whose precision and recall get a mark.
    """
    with _figure(name, height=3.2) as figure:
        axes = figure.subplots(gridspec_kw=_MARGINS)
        axes.axhline(curve["prevalence"], **_DASHED, label="by chance")
        recall, precision = [0.0, *curve["recall"]], [curve["precision"][0], *curve["precision"]]
        color = VARIABLES["first"]
        axes.plot(recall, precision, color=color, drawstyle="steps-pre", label="this model", clip_on=False, zorder=3)
        if marked["precision"] is not None:
            axes.plot([marked["recall"]], [marked["precision"]], "s", color=VARIABLES["second"], markersize=7,
                      label="as it answers", clip_on=False, zorder=4)  # fmt: skip
        axes.set_xlabel("recall")
        _label_y(axes, "precision")
        for axis, limit in ((axes.xaxis, axes.set_xlim), (axes.yaxis, axes.set_ylim)):
            limit(0.0, 1.0)
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        figure.legend(**_LEGEND | {"ncols": 3})
        return _as_svg(figure, name, description)


def accuracy_over_time(
    moments: Sequence[datetime], accuracies: Sequence[float], intervals: Sequence[tuple[float, float]],
    *, name: str, description: str,
) -> str:  # fmt: skip
    """The accuracies of runs with their intervals, by when they ended, earliest first, and the best so far; as SVG.

    `name` is that of the plot in the page.
    """
    with _figure(name, height=3.2) as figure:
        axes = figure.subplots(gridspec_kw=_MARGINS)
        days = [float(date2num(moment)) for moment in moments]  # type: ignore[no-untyped-call]
        best = list(itertools.accumulate(accuracies, max))
        style = _DASHED | {"color": VARIABLES["second"]}
        axes.plot(days, best, drawstyle="steps-post", **style, label="best so far", zorder=4)
        low, high = zip(*intervals, strict=True)
        are_many = len(moments) > MAX_LARGE_MARKS
        width, opacity, size = (0.6, 0.4, 2.5) if are_many else (1.2, 1.0, 5.0)
        axes.vlines(days, low, high, color=VARIABLES["first"], linewidth=width, alpha=opacity, clip_on=False)
        axes.plot(days, accuracies, "o", color=VARIABLES["first"], markersize=size, label="a run", clip_on=False,
                  zorder=3)  # fmt: skip
        _label_y(axes, "test accuracy")
        _in_percent(axes)
        margin = max((days[-1] - days[0]) / 20, 1 / MINUTES_OF_A_DAY)
        axes.set_xlim(days[0] - margin, days[-1] + margin)
        locator = AutoDateLocator(tz=UTC, minticks=3, maxticks=6)  # type: ignore[no-untyped-call]
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))  # type: ignore[no-untyped-call]
        figure.legend(**_LEGEND)
        return _as_svg(figure, name, description)


@contextlib.contextmanager
def _figure(name: str, *, height: float) -> Iterator[Figure]:
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}):
        yield Figure(figsize=(5.0, height))


def _plot_over_epochs(axes: Axes, curves: Mapping[str, Sequence[float]], quantity: str) -> None:
    """Curves of at most `MAX_CURVES` labels: the values of a quantity after each epoch."""
    for (label, values), style in zip(curves.items(), CURVES, strict=False):
        axes.plot(range(1, len(values) + 1), values, **style, label=label, clip_on=False, zorder=3)
    num_epochs = max(map(len, curves.values()))
    axes.set_xlabel("epoch")
    _label_y(axes, "loss in nats" if quantity == "loss" else "accuracy")
    axes.set_xlim(0.5, num_epochs + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if quantity == "accuracy":
        _in_percent(axes)
    else:
        axes.set_ylim(bottom=0.0)


def _in_percent(axes: Axes) -> None:
    """Up to 100 %, from below what is drawn."""
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None, symbol=" %"))
    axes.set_ylim(max(0.0, min(axes.get_ylim()[0], 1.0 - MIN_ACCURACY_RANGE)), 1.0)


def _label_y(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.yaxis.set_label_coords(_LABEL_X, 0.5)


def _mark_phases(axes: Axes, phases: Sequence[str]) -> None:
    """Name the phase of each stretch of epochs, and draw a line where another one begins."""
    first_epoch = 1
    for index, (phase, epochs) in enumerate(itertools.groupby(phases)):
        num_epochs = len(list(epochs))
        if index > 0:
            axes.axvline(first_epoch - 0.5, **_DASHED)
        axes.annotate(
            title(phase), (first_epoch - 0.5 + num_epochs / 2, 1.0), xytext=(0, 4),
            xycoords=axes.get_xaxis_transform(), textcoords="offset points", ha="center", color=VARIABLES["muted"],
        )  # fmt: skip
        first_epoch += num_epochs


def _as_svg(figure: Figure, name: str, description: str) -> str:
    """The SVG element alone, with its own identifiers, and a description for readers who cannot see it."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # A page has several, and each identifier only once.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for variable, color in VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable})")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(description)}" ', 1)
