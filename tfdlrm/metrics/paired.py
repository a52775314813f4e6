"""By how much two models differ on the same rows, with intervals that know that the rows are the same."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tfdlrm.metrics.binary import placements, row_losses, variance_of_mean
from tfdlrm.spec.errors import DataError


class Difference(NamedTuple):
    """A metric of the first model less that of the second.

    Attributes:
        value: The difference.
        low: Lower end of its 95% interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    @property
    def beyond_chance(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.low > 0 or self.high < 0


def auc_difference(
    labels: npt.ArrayLike, first: npt.ArrayLike, second: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None
) -> Difference:
    """Return by how much the AUCs of two models differ, with DeLong's interval for paired scores (DeLong 1988).

    Args:
        labels: 0 or 1, `[n]`.
        first: Scores of one model, `[n]`; higher means more likely positive.
        second: Scores of the other, for the same rows.
        sample_weight: Weight of each row. Defaults to 1.

    Raises:
        DataError: lengths differ, or only one class carries weight.

    Example:
        >>> auc_difference([0, 1, 0, 1], [0.1, 0.4, 0.2, 0.8], [0.1, 0.4, 0.5, 0.8]).value
        0.25
    """
    y, w = _rows(labels, first, second, sample_weight)
    if not w[y].sum() or not w[~y].sum():
        raise DataError("`labels` must hold both classes for AUC. Received: only one.")
    below, above, area = placements(y, np.asarray(first), w)
    other_below, other_above, other_area = placements(y, np.asarray(second), w)
    variance = variance_of_mean(below - other_below, w[y]) + variance_of_mean(above - other_above, w[~y])
    return _around(area - other_area, variance)


def log_loss_difference(
    labels: npt.ArrayLike, first: npt.ArrayLike, second: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None
) -> Difference:
    """Return by how much the log losses of two models differ, from the differences row by row.

    Args:
        labels: 0 or 1, `[n]`.
        first: Probabilities of one model, `[n]`.
        second: Probabilities of the other, for the same rows.
        sample_weight: Weight of each row. Defaults to 1.

    Raises:
        DataError: lengths differ, or a probability is not between 0 and 1.

    Example:
        >>> difference = log_loss_difference([1, 0, 1], [0.8, 0.4, 0.6], [0.8, 0.4, 0.6])
        >>> difference.value, difference.beyond_chance
        (0.0, False)
    """
    _, w = _rows(labels, first, second, sample_weight)
    differences = row_losses(labels, first) - row_losses(labels, second)
    return _around(float(np.average(differences, weights=w)), variance_of_mean(differences, w))


def _rows(
    labels: npt.ArrayLike, first: npt.ArrayLike, second: npt.ArrayLike, sample_weight: npt.ArrayLike | None
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    y = np.asarray(labels) == 1
    w = np.ones(y.size) if sample_weight is None else np.asarray(sample_weight, np.float64)
    lengths = [len(y), len(np.asarray(first)), len(np.asarray(second)), len(w)]
    if len(set(lengths)) != 1 or not lengths[0]:
        raise DataError(f"labels, scores and weights must be of one length, at least 1. Received: {lengths}.")
    return y, w


def _around(value: float, variance: float) -> Difference:
    reach = NormalDist().inv_cdf(0.975) * math.sqrt(variance)
    return Difference(value, value - reach, value + reach)
