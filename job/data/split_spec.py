"""The splits of a run, or that of an evaluation, and as much of TFDS's split grammar as can be judged without the data.

`train[:40%]` and `train[40%:50%]` can be compared as they stand; `train[:960]` and `train[40%:]` only once the
number of examples is known. `split_ranges` judges the rest then.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from sys import maxsize

_PART = re.compile(
    r"""^(?P<name>[A-Za-z0-9_][\w.-]*)
        (?:\[ (?: (?P<start>-?\d+)(?P<start_unit>%|shard)? )? : (?: (?P<stop>-?\d+)(?P<stop_unit>%|shard)? )? \])?$""",
    re.VERBOSE,
)

SPLIT_NAMES = ("train", "validation", "test")

DEFAULT_SPECS = ("train[:40%]", "train[40%:50%]", "train[50%:60%]")
"""Of train, validation and test: the recipe's, which leave 40 % of the data alone."""

EVALUATED = "evaluated"
"""The name of the split of `thaw evaluate`, which is of no run."""

Specs = Mapping[str, str]
"""The spec of each split that is wanted, by the name of the split; an empty one is `resolved`."""

GRAMMAR = "NAME, NAME[FROM:TO] in examples or NAME[FROM%:TO%], joined by +, for example train[:40%]"


def given_as(name: str) -> str:
    """The setting, or the flag, that gives the spec of a split."""
    return "--split" if name == EVALUATED else f"THAW_{name.upper()}_SPLIT"


def resolved(specs: Specs, splits: Collection[str]) -> Specs:
    """Of data that has these splits; an empty spec means its split test, and all of it where there is none."""
    default = "test" if "test" in splits else "+".join(splits)
    return {name: spec or default for name, spec in specs.items()}


@dataclass(frozen=True)
class Interval:
    """A part of a named split, from `start` up to but not including `stop`; `unit` is '%' or '' (examples).

    `stop` is at most 100 %; `maxsize` stands for the last example where the size of the split is not known.
    """

    name: str
    start: int
    stop: int
    unit: str = ""

    def is_empty(self) -> bool:
        return self.start >= self.stop

    def overlaps(self, other: "Interval") -> bool:
        """True only when the two share examples whatever the size of the split."""
        if self.name != other.name:
            return False
        if self._is_whole() or other._is_whole():
            return not (self.is_empty() or other.is_empty())
        if self.unit != other.unit:
            return False
        return max(self.start, other.start) < min(self.stop, other.stop)

    def _is_whole(self) -> bool:
        return self.start == 0 and self.stop == (100 if self.unit == "%" else maxsize)


def parse(spec: str) -> list[Interval]:
    """The intervals of a split specification that are comparable without the data.

    Raises ValueError when the text is not of the grammar. Parts in shards, or counted from the end in
    examples, are accepted and left out of the answer.
    """
    intervals = []
    for part in spec.split("+"):
        match = _PART.match(part.strip())
        if match is None:
            raise ValueError(f"{part.strip()!r} is not a split: expected {GRAMMAR}")
        start, stop = match["start"], match["stop"]
        if start and stop and match["start_unit"] != match["stop_unit"]:
            raise ValueError(f"{part.strip()!r} mixes units: expected {GRAMMAR}")
        unit = match["start_unit"] or match["stop_unit"] or ""
        if unit == "%":
            intervals.append(Interval(match["name"], _percent(start, 0), _percent(stop, 100), "%"))
        elif unit == "" and not (start or "").startswith("-") and not (stop or "").startswith("-"):
            intervals.append(Interval(match["name"], int(start or 0), int(stop) if stop else maxsize))
    return intervals


def _percent(text: str | None, default: int) -> int:
    if text is None:
        return default
    value = int(text)
    if abs(value) > 100:
        raise ValueError(f"{text}% is outside -100% to 100%")
    return value + 100 if value < 0 else value


def overlap(first: str, second: str) -> bool:
    """True when two split specifications certainly share examples."""
    return any(a.overlaps(b) for a in parse(first) for b in parse(second))


def is_empty(spec: str) -> bool:
    """True when a split specification certainly has no examples."""
    intervals = parse(spec)
    return len(intervals) == spec.count("+") + 1 and all(interval.is_empty() for interval in intervals)
