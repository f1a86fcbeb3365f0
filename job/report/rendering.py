"""Templates to text: everything that is put into one is escaped, and a name that is missing is an error."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """Fill a template of this package."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("job.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "percent": percent, "duration": duration, "count": count, "words": words, "moment": moment, "shape": shape,
        "listed": listed,
    }  # fmt: skip
    return environment.get_template(template).render(**values)


def percent(ratio: float, digits: int = 1) -> str:
    """0.973 -> `97.3 %`; nothing but all is shown as 100 %, and nothing but none as 0 %."""
    least = 10.0**-digits
    shown = 100.0 * ratio
    if 0.0 < ratio < 1.0:
        shown = min(max(shown, least), 100.0 - least)
    return f"{shown:.{digits}f} %"


def duration(seconds: float) -> str:
    """`0.42 s`, `41.3 s`, `12 min 5 s`, `3 h 20 min`."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def count(number: int) -> str:
    """`20,863,529`."""
    return f"{number:,}"


def words(name: str) -> str:
    """`fine_tune` -> `fine tune`."""
    return name.replace("_", " ")


def moment(iso: str | None) -> str:
    """An ISO time as `2026-03-01 12:30:05`, in UTC as the record has it."""
    return f"{datetime.fromisoformat(iso):%F %T}" if iso else ""


def shape(sizes: Iterable[int]) -> str:
    """`150 × 150 × 3`."""
    return " × ".join(f"{size:,}" for size in sizes)


def listed(names: Iterable[str], most: int = 20) -> str:
    """`cat, dog`; after `most` of them, how many more there are."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
