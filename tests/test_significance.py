"""McNemar's test and Holm's correction, against sums, integrals and published values."""

import math
from fractions import Fraction

import numpy as np
import pytest

from job.report.significance import MIN_FOR_CHI_SQUARED, holm, mcnemar


@pytest.mark.parametrize("pair", [(0, 0), (0, 1), (5, 5), (1, 11), (11, 1), (8, 16), (0, 24)])
def test_few_discordant_pairs_are_tested_exactly(pair: tuple[int, int]) -> None:
    """The two-sided p is the sum over all outcomes that are no more probable than the one that was seen."""
    n = sum(pair)
    outcomes = [Fraction(math.comb(n, count), 2**n) for count in range(n + 1)]
    expected = sum(it for it in outcomes if it <= outcomes[pair[0]])
    assert mcnemar(*pair) == (pytest.approx(float(expected), rel=1e-12), "exact")


@pytest.mark.parametrize("pair", [(10, 15), (25, 15), (12, 13), (300, 220), (13, 12), (40, 0)])
def test_many_discordant_pairs_are_tested_by_chi_squared(pair: tuple[int, int]) -> None:
    """The upper tail of the density with one degree of freedom, that is, both tails of the normal distribution."""
    statistic = (max(abs(pair[0] - pair[1]) - 1, 0)) ** 2 / sum(pair)
    z = np.linspace(math.sqrt(statistic), 12, 2_000_001)
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    expected = 2 * float(((density[1:] + density[:-1]) / 2).sum() * (z[1] - z[0]))
    assert mcnemar(*pair) == (pytest.approx(expected, abs=1e-9), "chi-squared")


def test_the_approximation_is_near_where_it_begins() -> None:
    """At the number of pairs from which on it is used, over all outcomes."""
    n = MIN_FOR_CHI_SQUARED
    for count in range(n + 1):
        exact = min(1.0, 2 * sum(math.comb(n, it) for it in range(min(count, n - count) + 1)) / 2**n)
        assert mcnemar(count, n - count).p_value == pytest.approx(exact, abs=0.012)


def test_several_tests_are_corrected_as_r_does() -> None:
    """`p.adjust(p, "holm")` of R 4: in any order, never above 1, and never smaller than before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []
