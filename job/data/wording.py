"""Lists and counts as they stand in messages."""

from collections.abc import Callable, Mapping, Sequence


def some(names: Sequence[str], *, most: int = 3, shown: Callable[[str], str] = repr) -> str:
    """The first of the names, and how many more there are."""
    more = len(names) - most
    return ", ".join(map(shown, names[:most])) + (f" and {more:,} more" if more > 0 else "")


def numbered(number: int, noun: str) -> str:
    """`1 image`, `3 images`, `2 classes`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "es" if noun.endswith("s") else "s")


def counted(counts: Mapping[str, int]) -> str:
    """`is empty: 3, is HEIC: 1`."""
    return ", ".join(f"{name}: {count:,}" for name, count in counts.items())
