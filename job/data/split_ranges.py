"""What split specs mean once the sizes of the data are known: which examples, by index.

TFDS itself reads the specs, whatever the data is: `train[:40%]` means the same everywhere.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import tensorflow_datasets as tfds

from job.data.split_spec import Interval, Specs, given_as
from job.errors import InvalidSettings


def split_ranges(specs: Specs, splits: Mapping[str, Any], *, of: str) -> dict[str, list[Interval]]:
    """The intervals of each spec, in examples, of data whose `splits` have `num_examples` and `shard_lengths` each.

    Raises InvalidSettings, which says all that is wrong of data named `of`: a spec names no split, has no examples, or
    shares some with another.
    """
    sizes = {name: info.num_examples for name, info in splits.items()}
    known = f"{of} has {', '.join(f'{name} ({size:,})' for name, size in sizes.items())}"
    problems: list[str] = []
    found: dict[str, list[Interval]] = {}
    for name, spec in specs.items():
        setting = f"{given_as(name)}={spec!r}"
        try:
            parts = tfds.core.ReadInstruction.from_spec(spec).to_absolute(splits)
        except (ValueError, KeyError, AssertionError, NotImplementedError) as error:
            problems.append(f"{setting}: {str(error).splitlines()[0]}; {known}")
            continue
        ranges = [
            Interval(part.splitname, part.from_ or 0, sizes[part.splitname] if part.to is None else part.to)
            for part in parts
        ]
        if all(part.is_empty() for part in ranges):
            problems.append(f"{setting}: has no examples; {known}")
        if any(a.overlaps(b) for a, b in itertools.combinations(ranges, 2)):
            problems.append(f"{setting}: names some examples twice; {known}")
        for other, other_ranges in found.items():
            if any(a.overlaps(b) for a in ranges for b in other_ranges):
                there = f"{given_as(other)}={specs[other]!r}"
                problems.append(f"{setting}: overlaps {there}: the three splits must be disjoint; {known}")
        found[name] = ranges
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise InvalidSettings(f"the splits do not fit the data.\n{lines}")
    return found
