"""Whether two models differ on the same test images: McNemar's test, and Holm's correction for several of them."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

MIN_FOR_CHI_SQUARED = 25
"""Discordant pairs: of fewer the distribution is too far from chi-squared, and the binomial one is summed."""

METHODS = {
    "exact": "the binomial distribution, exactly, two-sided",
    "chi-squared": "chi-squared with one degree of freedom, with the correction for continuity",
}


class McNemar(NamedTuple):
    """`p_value` is two-sided: how probable at least such a difference is between two models that err equally often."""

    p_value: float
    method: Literal["exact", "chi-squared"]


def mcnemar(only_first: int, only_second: int) -> McNemar:
    """The test of two models over the same examples, of which each count is classified correctly by one model only.

    Q. McNemar, 1947, Psychometrika 12, 153-157; the correction is A. L. Edwards', 1948, Psychometrika 13, 185-187.
    T. G. Dietterich, 1998, Neural Computation 10, 1895-1923, recommends it for models that are trained once. It knows
    nothing of how far two trainings with other seeds differ.
    """
    n = only_first + only_second
    if n < MIN_FOR_CHI_SQUARED:
        tail = sum(math.comb(n, count) for count in range(min(only_first, only_second) + 1))
        return McNemar(min(1.0, 2 * tail / 2**n), "exact")
    statistic = max(0, abs(only_first - only_second) - 1) ** 2 / n
    return McNemar(math.erfc(math.sqrt(statistic / 2)), "chi-squared")


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several tests, adjusted: below 0.05, at most 5 % of such families have any false alarm.

    S. Holm, 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
