"""Whether one classifier is better than another, or chance made it look so: intervals and tests, by SciPy.

Two classifiers are compared on the same test images, so that the samples are paired: what counts are the images that
only one of the two classifies correctly. Groups of runs that differ in the seed are compared by their means.
"""

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import brentq


class Difference(NamedTuple):
    """A difference, its 95% confidence interval if it has one, and the p-value of the hypothesis that there is none."""

    value: float
    interval: tuple[float, float] | None
    p: float


def paired_difference(only_a: int, only_b: int, count: int) -> Difference:
    """The accuracy of B minus that of A on the same images.

    Of `count` images, at least one, only A classifies `only_a` correctly, and only B `only_b`. The interval is the
    asymptotic score interval (Tango, "Equivalence test and confidence interval for the difference in proportions for
    the paired-sample design", Statistics in Medicine 17, 1998), the p-value that of McNemar's exact, conditional test:
    two-sided and binomial (McNemar, Psychometrika 12, 1947).
    """
    value = (only_b - only_a) / count
    z = float(stats.norm.ppf(0.975))

    def score(difference: float) -> float:
        # Tango's equations 11 and 12: q is the maximum likelihood estimate of the probability that only A is right.
        b = -only_a - only_b + (2 * count - only_b + only_a) * difference
        c = -only_a * difference * (1 - difference)
        q = (math.sqrt(max(b * b - 8 * count * c, 0)) - b) / (4 * count)
        variance = count * (2 * q + difference * (1 - difference))
        return (only_b - only_a - count * difference) / math.sqrt(variance) if variance > 0 else 0.0

    # The score falls as the difference grows. Where all images are discordant in one direction, it is 0 at that end.
    edge = 1 - 1e-9
    low = brentq(lambda d: score(d) - z, -edge, value, xtol=1e-9) if score(-edge) > z else -1.0
    high = brentq(lambda d: score(d) + z, value, edge, xtol=1e-9) if score(edge) < -z else 1.0
    p = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return Difference(value, (low, high), float(p))


def difference_of_means(a: Sequence[float], b: Sequence[float]) -> Difference:
    """The mean of B minus that of A, two independent samples of at least two values each.

    Interval and p-value are those of Welch's t-test, which does not take the variances to be equal (Welch, "The
    generalization of 'Student's' problem when several different population variances are involved", Biometrika 34,
    1947). Where neither sample varies, that test cannot judge: there is no interval, and the p-value is
    that of a permutation test, the chance that a random division into two samples gives a difference as large.
    """
    value = round(float(np.mean(b) - np.mean(a)), 12)  # Equal means may have another last bit.
    if len({*a}) == len({*b}) == 1:
        extreme = 2 if len(a) == len(b) else 1  # Divisions with a difference as large.
        return Difference(value, None, extreme / math.comb(len(a) + len(b), len(a)) if value else 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of a sample that does not vary, which is no trouble if the other does.
        test = stats.ttest_ind(b, a, equal_var=False)
    low, high = test.confidence_interval(0.95)
    return Difference(value, (float(low), float(high)), float(test.pvalue))


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95% confidence interval of the mean of at least two values: Student's t."""
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    return mean - half, mean + half


def accuracy_interval(accuracies: Sequence[float]) -> tuple[float, float]:
    """The interval of the mean of accuracies in [0, 1], cut at 0 and 1."""
    low, high = mean_interval(accuracies)
    return max(low, 0.0), min(high, 1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for the number of tests (Holm, Scandinavian Journal of Statistics 6, 1979).

    To reject those that are below 5% leaves a chance of at most 5% of a single false rejection among all tests.
    """
    order = np.argsort(p_values)
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.maximum.accumulate(np.asarray(p_values)[order] * factors).clip(max=1)
    result = np.empty(len(corrected))
    result[order] = corrected
    return [float(p) for p in result]
