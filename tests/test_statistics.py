"""Intervals and tests: published examples, other implementations, simulations, and the edges."""

import math

import numpy as np
import pytest
from scipy import stats

from lenet.results.figures import wilson_interval
from lenet.results.statistics import (
    Difference,
    accuracy_interval,
    difference_of_means,
    holm,
    mean_interval,
    paired_difference,
)

# Complete response before and after consolidation therapy (Cavo et al., 2012): 59, 6, 16, 80; airway
# hyper-responsiveness before and after stem cell transplantation (Bentur et al., 2009): 1, 1, 7, 12. Both are worked
# through in Fagerland, Lydersen, Laake, "Recommended tests and confidence intervals for paired binomial proportions",
# Statistics in Medicine 33, 2014; the intervals of the first and the last two rows stand in the tests of the authors' R
# package contingencytables.
TANGO = {
    (16, 6, 161): (-0.0621, -0.1240, -0.0054),
    (7, 1, 21): (-0.286, -0.517, -0.026),
    (0, 3, 3): (1.0, -0.1230, 1.0),
    (3, 0, 3): (-1.0, -1.0, 0.1230),
}


def full(difference: Difference) -> tuple[float, tuple[float, float], float]:
    """A difference that has an interval."""
    assert difference.interval
    return difference.value, difference.interval, difference.p


@pytest.mark.parametrize("counts", TANGO)
def test_tango_interval(counts: tuple[int, int, int]) -> None:
    digits = 5e-4 if counts[2] == 21 else 5e-5
    value, interval, _ = full(paired_difference(*counts))
    assert (value, *interval) == pytest.approx(TANGO[counts], abs=digits)


@pytest.mark.parametrize(("only_a", "only_b", "count", "p"), [(16, 6, 161, 0.052479), (7, 1, 21, 0.0703)])
def test_mcnemar_exact_test(only_a: int, only_b: int, count: int, p: float) -> None:
    """The same data: Fagerland, Lydersen, Laake, BMC Medical Research Methodology 13:91, 2013."""
    assert paired_difference(only_a, only_b, count).p == pytest.approx(p, abs=5e-5)


def test_score_interval_contains_what_the_score_test_does_not_reject() -> None:
    """At its ends Tango's statistic, written with the constrained estimate found by search, is 1.96."""
    only_a, only_b, count = 57, 36, 10_000
    for end in full(paired_difference(only_a, only_b, count))[1]:
        # The likelihood of p_b = q + end, p_a = q, maximised on a grid.
        q = np.linspace(max(0, -end) + 1e-9, 0.02, 2_000_001)
        likelihood = only_a * np.log(q) + only_b * np.log(q + end) + (count - only_a - only_b) * np.log1p(-2 * q - end)
        q_best = q[np.nanargmax(likelihood)]
        z = (only_b - only_a - count * end) / math.sqrt(count * (2 * q_best + end * (1 - end)))
        assert abs(z) == pytest.approx(1.96, abs=2e-3)


@pytest.mark.parametrize("counts", [(0, 0, 10_000), (0, 0, 1), (1, 0, 1), (3, 3, 10), (10, 0, 10), (0, 10, 10)])
def test_edges(counts: tuple[int, int, int]) -> None:
    only_a, only_b, count = counts
    value, (low, high), p = full(paired_difference(*counts))
    assert -1 <= low <= value <= high <= 1
    assert low < high
    assert 0 < p <= 1
    mirrored, ends, same = full(paired_difference(only_b, only_a, count))
    assert (mirrored, *ends, same) == pytest.approx((-value, -high, -low, p), abs=1e-7)


@pytest.mark.slow
def test_the_interval_covers_the_difference_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    drawn = random.multinomial(2_000, [0.004, 0.008, 0.988], size=4_000)
    intervals = [full(paired_difference(a, b, 2_000))[1] for a, b, _ in drawn]
    assert np.mean([low <= 0.004 <= high for low, high in intervals]) == pytest.approx(0.95, abs=0.015)


def test_welch_test() -> None:
    """Student's sleep data: R's documentation of t.test."""
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    value, interval, p = full(difference_of_means(second, first))
    assert (value, *interval, p) == pytest.approx((-1.58, -3.3654832, 0.2054832, 0.07939), abs=5e-6)


@pytest.mark.filterwarnings("error")
def test_samples_that_do_not_vary() -> None:
    assert difference_of_means([1, 1], [1, 1]) == (0, None, 1)
    assert difference_of_means([1, 1], [2, 2, 2]) == (1, None, 1 / 10)
    assert difference_of_means([2, 2], [1, 1]) == (-1, None, 2 / 6)
    value, (low, high), p = full(difference_of_means([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))
    assert value == 1
    assert low < 0 < 1 < high
    assert 0 < p < 1
    assert mean_interval([1.0, 1.0]) == (1, 1)


def test_interval_of_a_mean() -> None:
    """One of the sleep data's groups: R's t.test(extra[group == 2])."""
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    assert mean_interval(second) == pytest.approx((0.8976775, 3.7623225), abs=1e-6)
    low, high = accuracy_interval([0.9, 0.99])
    assert 0 < low < 0.9
    assert high == 1, "no accuracy is greater"


def test_holm() -> None:
    """The example of Wikipedia, "Holm-Bonferroni method": of four hypotheses the first and the fourth are rejected."""
    corrected = holm([0.01, 0.04, 0.03, 0.005])
    assert corrected == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_wilson_is_scipys() -> None:
    for right, count in ((9_928, 10_000), (0, 5), (5, 5), (3, 4)):
        exact = stats.binomtest(right, count).proportion_ci(method="wilson")
        low, high = wilson_interval(np.array(right / count), np.array(count))
        assert (low, high) == pytest.approx((exact.low, exact.high), abs=1e-7)
