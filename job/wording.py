"""Numbers, names and lists in words, as they stand in messages and tables."""

from collections.abc import Callable, Mapping, Sequence

from job.paths import escaped
from job.redaction import redacted


def duration(seconds: float) -> str:
    """Two units are enough: 45 s, 3 min 20 s, 2 h 5 min, 4 d 1 h."""
    whole = round(seconds)
    for unit, length, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def short_duration(seconds: float) -> str:
    """One unit, and at most 7 characters, for a column: 4.4 s, 38 s, 7.3 min, 12 min, 2.1 h, 3.0 d."""
    units = (("s", 1, 99.5), ("min", 60, 99.5 * 60), ("h", 3600, 47.5 * 3600), ("d", 86400, float("inf")))
    unit, length = next((unit, length) for unit, length, until in units if seconds < until)
    value = seconds / length
    return f"{value:.{1 if value < 9.95 else 0}f} {unit}"


def size(num_bytes: float) -> str:
    """Bytes in the largest decimal unit that leaves a digit before the point."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def counts(numbers: Mapping[str, int]) -> str:
    """Each name with its number: cat 20, dog 1,204."""
    return ", ".join(f"{name} {number:,}" for name, number in numbers.items())


def counted(numbers: Mapping[str, int]) -> str:
    """Each kind with its number: is empty: 3, is HEIC: 1."""
    return ", ".join(f"{kind}: {number:,}" for kind, number in numbers.items())


def numbered(number: int, noun: str) -> str:
    """`1 image`, `3 images`, `2 classes`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


def some(names: Sequence[str], *, most: int = 3, shown: Callable[[str], str] = repr) -> str:
    """The first of the names, and how many more there are."""
    more = len(names) - most
    return ", ".join(map(shown, names[:most])) + (f" and {more:,} more" if more > 0 else "")


def either(*ways: str) -> str:
    """A choice of ways: `this`, `this, or that`, `this, that, or the other`; empty ones are left out."""
    *others, last = [way for way in ways if way] or [""]
    return f"{', '.join(others)}, or {last}" if others else last


def three_digits(value: float) -> str:
    """Of a loss or a speed: 0.0709, 0.363, 12.3, 1,205; at most four decimals."""
    for decimals, until in ((4, 0.09995), (3, 0.9995), (2, 9.995), (1, 99.95), (0, 99_999.5)):
        if abs(value) < until:
            return f"{value:,.{decimals}f}"
    return f"{value:.1e}"


def printable(text: str) -> str:
    """Without the secrets of URLs, and with nothing but lines that moves the cursor: names come from outside."""
    return "\n".join(escaped(line) for line in redacted(text).split("\n"))
