"""The results of `make bench` as tables: those with a goal in the README, all of them in docs/performance.md.

Those of several workers are also in docs/scaling.md, and those of the backbones in docs/reference/settings.md alone.
"""

import re
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results.json"
README = Path(__file__).parent.parent / "README.md"
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
SCALING = Path(__file__).parent.parent / "docs" / "scaling.md"

TITLES = {
    "article": "Against the article's Keras script",
    "peers": "Against PyTorch and timm",
    "around": "Around the training",
    "input": "Input pipeline",
    "growth": "Growth",
    "scale": "Several workers",
    "batch": "Larger batches",
}

_PLACE = re.compile(r"(?<=<!-- make bench -->\n).*?(?=<!-- /make bench -->)", re.DOTALL)


def markdown(results: dict[str, Any], *, goals_only: bool = False, only: tuple[str, ...] = tuple(TITLES)) -> str:
    """A table of these sections, as far as they have been measured; all rows, or those with a goal."""
    lines = ["| measured | median | lowest to highest | goal |", "|---|---|---|---|"]
    for name in only:
        if name not in results:
            continue
        section = results[name]
        rows = [row for row in section["rows"] if row["goal"] or not goals_only]
        if not rows:
            continue
        on = section["on"]
        numbers = "bfloat16" if on["bfloat16"] else "float32"
        lines.append(f"| **{TITLES[name]}** ({on['data']}; {on['cores']} cores, {numbers}) | | | |")
        for row in rows:
            unit = f" {row['unit']}" if row["unit"] else ""
            spread = f"{number(row['lowest'])} to {number(row['highest'])}" if len(row["values"]) > 1 else "once"
            lines.append(f"| {row['what']} | {number(row['median'])}{unit} | {spread} | {row['goal']} |")
    return "\n".join(lines) + "\n"


def of_page(path: Path, results: dict[str, Any]) -> str:
    """The table that one of the three pages shows."""
    if path == SCALING:
        return markdown(results, only=("scale", "batch"))
    return markdown(results, goals_only=path == README)


def with_table(path: Path, results: dict[str, Any]) -> str:
    """The text of a page with the table of these results in its place."""
    return _PLACE.sub(lambda _: of_page(path, results), path.read_text())


def number(value: float) -> str:
    """A number with three significant digits, or all digits before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.{1 if abs(value) >= 10 else 2}f}"
