"""Whether two models differ by more than chance: paired t-tests, and Holm's correction for making several."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_ROUNDING = 1e-12
"""Differences that differ by less, beside the values, differ by rounding alone."""


@dataclass(frozen=True)
class PairedTest:
    """A two-sided paired t-test.

    Attributes:
        n: Number of pairs.
        difference: Mean of the first less the second.
        t: Student's t; `None` where it cannot be told: fewer than two pairs, or all differences equal.
        p: Probability of a difference as large by chance alone, or `None`.
    """

    n: int
    difference: float
    t: float | None
    p: float | None


def paired_test(first: Sequence[float], second: Sequence[float]) -> PairedTest:
    """Test whether the mean of paired differences is zero.

    Args:
        first: A figure of one model, one value a pair; at least one.
        second: The same figure of the other, in the same order.

    Raises:
        ValueError: there are no pairs, or not as many values of each.

    Example:
        >>> test = paired_test([3.0, 5.0, 7.0], [2.0, 3.0, 4.0])
        >>> test.n, test.difference, round(test.t, 3), round(test.p, 3)
        (3, 2.0, 3.464, 0.074)
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"`first` and `second` must pair up. Received: {len(first)} and {len(second)} values.")
    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    mean = float(differences.mean())
    if len(differences) < 2 or np.ptp(differences) <= _ROUNDING * np.abs([first, second]).max():
        return PairedTest(len(differences), mean, None, None)
    result = stats.ttest_rel(first, second)
    return PairedTest(len(differences), mean, float(result.statistic), float(result.pvalue))


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return p-values corrected for their number by Holm's step-down method (Scandinavian J. of Statistics 6, 1979).

    Args:
        p_values: By name; `None` is no test, stays `None` and does not count.

    Example:
        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": None})
        {'a': 0.03, 'b': 0.06, 'c': 0.06, 'd': None}
    """
    known = sorted((p, name) for name, p in p_values.items() if p is not None and not math.isnan(p))
    corrected: dict[str, float | None] = dict.fromkeys(p_values)
    highest = 0.0
    for rank, (p, name) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        corrected[name] = highest
    return corrected
