"""What the plots show, computed from labels and probabilities: ROC points and calibration bins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """Samples of similar predicted probability.

    Attributes:
        rows: Samples in the bin.
        predicted: Their mean predicted probability.
        observed: Their mean label.
        low: Lower end of the 95% Wilson interval of `observed`.
        high: Upper end.
    """

    rows: int
    predicted: float
    observed: float
    low: float
    high: float


def roc_points(
    labels: npt.ArrayLike, scores: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None, points: int = 1000
) -> tuple[Floats, Floats]:
    """Return false and true positive rates from (0, 0) to (1, 1).

    Args:
        labels: 0 or 1, `[n]`; both must occur.
        scores: Higher means more likely positive, `[n]`. Equal scores are one step of the curve.
        sample_weight: Weight of each row. Defaults to 1.
        points: Most points to return; the corners of a longer curve are thinned evenly. At least 2.

    Example:
        >>> false_rate, true_rate = roc_points([0, 1], [0.2, 0.7])
        >>> false_rate.tolist(), true_rate.tolist()
        ([0.0, 0.0, 1.0], [0.0, 1.0, 1.0])
    """
    true, false = (np.append(0.0, passed) for passed in _passed(labels, scores, sample_weight))
    if len(true) > points:
        kept = np.unique(np.linspace(0, len(true) - 1, points).round().astype(np.int64))
        true, false = true[kept], false[kept]
    return false / false[-1], true / true[-1]


def precision_recall_points(
    labels: npt.ArrayLike, scores: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None, points: int = 1000
) -> tuple[Floats, Floats]:
    """Return recall, rising, and the precision at it.

    Args:
        labels: 0 or 1, `[n]`; there must be a 1.
        scores: Higher means more likely positive, `[n]`. Equal scores are one point of the curve.
        sample_weight: Weight of each row. Defaults to 1.
        points: Most points to return, about evenly spaced in recall. At least 2.

    Example:
        >>> recall, precision = precision_recall_points([0, 1, 1], [0.2, 0.1, 0.7])
        >>> recall.tolist(), precision.round(3).tolist()
        ([0.5, 0.5, 1.0], [1.0, 0.5, 0.667])
    """
    true, false = _passed(labels, scores, sample_weight)
    recall, precision = true / true[-1], true / np.maximum(true + false, np.finfo(np.float64).tiny)
    return thinned(recall, precision, points)


def thinned(recall: Floats, precision: Floats, points: int = 1000) -> tuple[Floats, Floats]:
    """Return at most so many points of a precision-recall curve, about evenly spaced in recall."""
    if len(recall) <= points:
        return recall, precision
    places = np.searchsorted(recall, np.linspace(0, 1, points))
    kept = np.unique(np.minimum(places, len(recall) - 1))
    return recall[kept], precision[kept]


def average_precision(recall: Floats, precision: Floats) -> float:
    """Return the mean precision over recall, each step at its right end, from what `precision_recall_points` gave.

    Example:
        >>> average_precision(np.array([0.5, 1.0]), np.array([1.0, 0.5]))
        0.75
    """
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def rows_seen(step: int, rows: int, batch_size: int) -> int:
    """Return how many training rows the first steps have seen; the last batch of an epoch may be short.

    Args:
        step: Number of steps.
        rows: Rows of an epoch.
        batch_size: Rows of a batch.

    Example:
        >>> [rows_seen(step, 10, 4) for step in range(5)]
        [0, 4, 8, 10, 14]
    """
    epochs, steps = divmod(step, -(-rows // batch_size))
    return epochs * rows + steps * batch_size


def reliability_bins(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None, bins: int = 20
) -> list[Bin]:
    """Cut samples, ordered by predicted probability, into bins of equal size.

    Args:
        labels: 0 or 1, `[n]`.
        probabilities: Predicted, `[n]`.
        sample_weight: Weight of each row; intervals take the effective number of rows. Defaults to 1.
        bins: Number of bins; fewer where there are fewer rows.
    """
    y, p = np.asarray(labels, np.float64), np.asarray(probabilities, np.float64)
    w = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    order = np.argsort(p, kind="stable")
    found = []
    for part in np.array_split(order, min(bins, len(order))):
        total = float(w[part].sum())
        if not total:
            continue
        observed = float(np.dot(w[part], y[part])) / total
        low, high = wilson_interval(observed, total**2 / float(np.sum(w[part] ** 2)))
        found.append(Bin(len(part), float(np.dot(w[part], p[part])) / total, observed, low, high))
    return found


def wilson_interval(share: float, rows: float) -> tuple[float, float]:
    """Return the ends of the 95% Wilson interval of a share observed in so many rows."""
    z = NormalDist().inv_cdf(0.975)
    middle = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    reach = z * math.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2)) / (1 + z**2 / rows)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def _passed(labels: npt.ArrayLike, scores: npt.ArrayLike, sample_weight: npt.ArrayLike | None) -> tuple[Floats, Floats]:
    """Return the weight of positives and of negatives at or above each distinct score, highest first."""
    y, s = np.asarray(labels, np.float64), np.asarray(scores)
    w = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    order = np.argsort(-s, kind="stable")
    y, s, w = y[order], s[order], w[order]
    last_of_tie = np.append(s[1:] != s[:-1], True)
    return np.cumsum(w * y)[last_of_tie], np.cumsum(w * (1 - y))[last_of_tie]
