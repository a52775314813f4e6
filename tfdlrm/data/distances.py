"""How far two histograms are apart, and how far chance alone would put them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import jensenshannon

_QUANTILE_GROUPS = 20
Counts = npt.NDArray[Any]


class Distance(NamedTuple):
    """Two samples of one feature compared.

    Attributes:
        jensen_shannon: Jensen-Shannon distance to base 2: 0 for equal shares, 1 for samples that share no value.
        psi: Population stability index, sum of (p - q) ln(p / q); each bin counts half a row more than it has.
        by_chance: The Jensen-Shannon distance to be expected of two such samples of one distribution, to first order
            in 1 / rows: what is not well above it says nothing.
    """

    jensen_shannon: float
    psi: float
    by_chance: float

    @property
    def beyond_chance(self) -> float:
        """What is left of the Jensen-Shannon distance when chance is taken from its square, at least 0."""
        return math.sqrt(max(self.jensen_shannon**2 - self.by_chance**2, 0.0))


def distance(first: Counts, second: Counts) -> Distance | None:
    """Compare two histograms of the same bins; `None` where one is empty.

    Args:
        first: Numbers of values, `[bins]`.
        second: The same of another sample.

    Example:
        >>> distance(np.array([50, 50]), np.array([50, 50])).jensen_shannon
        0.0
    """
    used = (first > 0) | (second > 0)
    p, q = first[used].astype(np.float64), second[used].astype(np.float64)
    n, m = p.sum(), q.sum()
    if not n or not m:
        return None
    # Near equality rounding may leave the divergence a little below 0, and its root undefined.
    found = np.nan_to_num(jensenshannon(p, q, base=2))
    smooth_p, smooth_q = (p + 0.5) / (n + 0.5 * len(p)), (q + 0.5) / (m + 0.5 * len(q))
    psi = np.sum((smooth_p - smooth_q) * np.log(smooth_p / smooth_q))
    expected = (len(p) - 1) * (1 / n + 1 / m) / (8 * math.log(2))
    return Distance(float(found), float(psi), math.sqrt(min(1.0, expected)))


def number_distance(first: Counts, second: Counts) -> Distance | None:
    """Compare histograms of ordered bins after merging them into up to 20 groups of about equal shares of both."""
    pooled = first / max(first.sum(), 1) + second / max(second.sum(), 1)
    middle = (np.cumsum(pooled) - pooled / 2) / max(float(pooled.sum()), 1e-300)
    group = np.minimum((middle * _QUANTILE_GROUPS).astype(np.int64), _QUANTILE_GROUPS - 1)
    return distance(*(np.bincount(group, counts, _QUANTILE_GROUPS) for counts in (first, second)))
