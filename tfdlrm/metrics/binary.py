"""Exact metrics of click probabilities: AUC with an interval, log loss, normalized entropy, calibration, accuracy."""

from __future__ import annotations

import dataclasses
import math
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdlrm.spec.errors import DataError

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class BinaryMetrics:
    """How well probabilities fit labels. A metric that needs both classes is nan where there is only one.

    Attributes:
        rows: Number of samples.
        auc: Area under the ROC curve; ties count half.
        auc_low: Lower end of its 95% DeLong interval.
        auc_high: Upper end.
        log_loss: Mean cross-entropy in nats.
        normalized_entropy: `log_loss` over the log loss of always answering the base rate; below 1 is better than that.
        calibration: Mean predicted over mean observed; 1 is right, 1.1 predicts 10% too many clicks.
        accuracy: Share of samples on the right side of 0.5.
        base_rate: Mean label.
    """

    rows: int
    auc: float
    auc_low: float
    auc_high: float
    log_loss: float
    normalized_entropy: float
    calibration: float
    accuracy: float
    base_rate: float

    def as_dict(self) -> dict[str, float]:
        """Return the metrics by name, `rows` first."""
        return dataclasses.asdict(self)


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None) -> float:
    """Return the exact area under the ROC curve: P(positive above negative) + P(tie) / 2.

    Args:
        labels: 0 or 1, shape `[n]` or `[n, 1]`.
        scores: Any finite numbers, same number of rows; higher means more likely positive. They are compared in
            the precision given.
        sample_weight: Non-negative weight of each row. Defaults to 1.

    Raises:
        DataError: shapes differ, a value is not finite, a label is not 0 or 1, or only one class carries weight.

    Example:
        >>> auc([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8])
        0.875
    """
    y, s, w = _rows("scores", labels, scores, sample_weight)
    return _ranked(y, s, w)[0]


def auc_interval(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    confidence: float = 0.95,
    sample_weight: npt.ArrayLike | None = None,
) -> tuple[float, float]:
    """Return DeLong's confidence interval of the AUC, cut to `[0, 1]`, in O(n log n).

    Each positive's share of negatives below it, and each negative's share of positives above it, are read off one
    sort; the variance of their means is that of the AUC (DeLong 1988, Sun and Xu 2014). With weights, these are
    variances of weighted means; equal weights give DeLong's own.

    Args:
        labels: 0 or 1, shape `[n]` or `[n, 1]`.
        scores: As in `auc`.
        confidence: Coverage, between 0 and 1.
        sample_weight: As in `auc`.

    Raises:
        DataError: as in `auc`.
        ValueError: `confidence` is not between 0 and 1.

    Example:
        >>> low, high = auc_interval([0, 0, 0, 1, 1, 1], [1, 2, 4, 3, 5, 6])
        >>> round(low, 3), round(high, 3)
        (0.581, 1.0)
    """
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1. Received: {confidence}.")
    y, s, w = _rows("scores", labels, scores, sample_weight)
    return _interval(*_ranked(y, s, w), confidence)


def log_loss(labels: npt.ArrayLike, probabilities: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None) -> float:
    """Return the mean cross-entropy in nats.

    Probabilities are drawn in to `[eps, 1 - eps]` of their own type (1.2e-7 for float32), so that one saturated
    wrong answer costs about 16 and not infinity, as in scikit-learn.

    Args:
        labels: 0 or 1, shape `[n]` or `[n, 1]`.
        probabilities: Between 0 and 1, same number of rows.
        sample_weight: Non-negative weight of each row. Defaults to 1.

    Raises:
        DataError: shapes differ, a label is not 0 or 1, or a probability is not between 0 and 1.

    Example:
        >>> round(log_loss([1, 0], [0.8, 0.4]), 4)
        0.367
    """
    y, p, w = _probability_rows(labels, probabilities, sample_weight)
    return _log_loss(y, p, w)


def row_losses(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> Floats:
    """Return the cross-entropy of each row in nats, float64 `[n]`: `log_loss` is their weighted mean.

    Example:
        >>> row_losses([1, 0], [0.8, 0.4]).round(4).tolist()
        [0.2231, 0.5108]
    """
    y, p, _ = _probability_rows(labels, probabilities, None)
    return _row_losses(y, p)


def normalized_entropy(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None
) -> float:
    """Return the log loss over that of always answering the base rate (He et al. 2014). Arguments as in `log_loss`.

    Raises:
        DataError: as in `log_loss`, or there is only one class.

    Example:
        >>> normalized_entropy([1, 0], [0.5, 0.5])
        1.0
    """
    y, p, w = _probability_rows(labels, probabilities, sample_weight)
    _need_both("normalized_entropy", y, w)
    return _log_loss(y, p, w) / _entropy(_mean(y, w))


def calibration(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None
) -> float:
    """Return mean predicted over mean observed. Arguments as in `log_loss`.

    Raises:
        DataError: as in `log_loss`, or there is no positive label.

    Example:
        >>> calibration([1, 0], [0.5, 0.25])
        0.75
    """
    y, p, w = _probability_rows(labels, probabilities, sample_weight)
    observed = _mean(y, w)
    if observed == 0:
        raise DataError("`labels` must hold a 1 for calibration. Received: only 0.")
    return _mean(p, w) / observed


def accuracy(
    labels: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    threshold: float = 0.5,
    sample_weight: npt.ArrayLike | None = None,
) -> float:
    """Return the share of rows whose probability is at or above `threshold` exactly where the label is 1.

    Other arguments and errors as in `log_loss`.

    Example:
        >>> accuracy([1, 0, 0, 1], [0.9, 0.2, 0.6, 0.5])
        0.75
    """
    y, p, w = _probability_rows(labels, probabilities, sample_weight)
    return _accuracy(y, p, w, threshold)


def evaluate_binary(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None
) -> BinaryMetrics:
    """Return every metric of this module at once, with one sort of the rows.

    Args:
        labels: 0 or 1, shape `[n]` or `[n, 1]`.
        probabilities: Between 0 and 1, same number of rows.
        sample_weight: Non-negative weight of each row. Defaults to 1.

    Returns:
        The metrics; with one class only, those that need both (and calibration without a positive) are nan.

    Raises:
        DataError: shapes differ, a label is not 0 or 1, or a probability is not between 0 and 1.

    Example:
        >>> evaluate_binary([0, 1, 1], [0.2, 0.6, 0.4]).auc
        1.0
    """
    y, p, w = _probability_rows(labels, probabilities, sample_weight)
    base_rate, loss, area, low, high = _mean(y, w), _log_loss(y, p, w), math.nan, math.nan, math.nan
    entropy = _entropy(base_rate)
    if entropy > 0:
        ranked = _ranked(y, p, w)
        area, (low, high) = ranked[0], _interval(*ranked, 0.95)
    return BinaryMetrics(
        rows=y.size,
        auc=area,
        auc_low=low,
        auc_high=high,
        log_loss=loss,
        normalized_entropy=loss / entropy if entropy > 0 else math.nan,
        calibration=_mean(p, w) / base_rate if base_rate > 0 else math.nan,
        accuracy=_accuracy(y, p, w, 0.5),
        base_rate=base_rate,
    )


def _rows(
    name: str, labels: npt.ArrayLike, values: npt.ArrayLike, sample_weight: npt.ArrayLike | None
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[Any], Floats | None]:
    """Flatten and check the arguments; `values` keep their floating-point type."""
    y, v = _flat("labels", labels), _flat(name, values)
    w = None if sample_weight is None else _flat("sample_weight", sample_weight).astype(np.float64)
    for other, array in ((name, v), ("sample_weight", w)):
        if array is not None and array.size != y.size:
            raise DataError(f"`{other}` must have as many rows as `labels`. Received: {array.size} and {y.size}.")
    if y.size == 0:
        raise DataError("`labels` must hold at least one row. Received: 0.")
    positive = y == 1
    strange = ~(positive | (y == 0))
    if strange.any():
        raise DataError(f"`labels` must be 0 or 1. Received: {y[strange][0]}.")
    if not np.isfinite(v).all():
        raise DataError(f"`{name}` must be finite. Received: {v[~np.isfinite(v)][0]} in row {_first(~np.isfinite(v))}.")
    if w is not None and not ((w >= 0) & (w < np.inf)).all():
        raise DataError(f"`sample_weight` must be finite and at least 0. Received: {w[~((w >= 0) & (w < np.inf))][0]}.")
    if w is not None and not w.any():
        raise DataError("`sample_weight` must not be 0 everywhere. Received: only 0.")
    return positive, v, w


def _probability_rows(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, sample_weight: npt.ArrayLike | None
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[Any], Floats | None]:
    y, p, w = _rows("probabilities", labels, probabilities, sample_weight)
    outside = (p < 0) | (p > 1)
    if outside.any():
        raise DataError(
            f"`probabilities` must lie between 0 and 1. Received: {p[outside][0]} in row {_first(outside)}."
        )
    return y, p, w


def _flat(name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"`{name}` must have shape [n] or [n, 1]. Received: {list(array.shape)}.")
    if array.dtype.kind not in "fiub":
        raise DataError(f"`{name}` must be numbers. Received: {array.dtype}.")
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def _first(mask: npt.NDArray[np.bool_]) -> int:
    return int(np.argmax(mask))


def _mean(values: npt.NDArray[Any], weight: Floats | None) -> float:
    return float(np.average(values.astype(np.float64), weights=weight))


def _entropy(rate: float) -> float:
    """Entropy in nats of a coin with this rate; 0 where there is one class."""
    return 0.0 if rate in (0.0, 1.0) else -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))


def _log_loss(y: npt.NDArray[np.bool_], p: npt.NDArray[Any], w: Floats | None) -> float:
    return _mean(_row_losses(y, p), w)


def _row_losses(y: npt.NDArray[np.bool_], p: npt.NDArray[Any]) -> Floats:
    eps = np.finfo(p.dtype).eps
    p = np.clip(p, eps, 1 - eps).astype(np.float64)
    losses: Floats = -np.log(np.where(y, p, 1 - p))
    return losses


def _accuracy(y: npt.NDArray[np.bool_], p: npt.NDArray[Any], w: Floats | None, threshold: float) -> float:
    return _mean((p >= threshold) == y, w)


def _need_both(metric: str, y: npt.NDArray[np.bool_], w: Floats | None) -> None:
    rate = _mean(y, w)
    if rate in (0.0, 1.0):
        raise DataError(f"`labels` must hold both classes for {metric}. Received: only {int(rate)}.")


def placements(y: npt.NDArray[np.bool_], scores: npt.NDArray[Any], weight: Floats) -> tuple[Floats, Floats, float]:
    """Return what DeLong's variance is made of, and the AUC.

    Args:
        y: Whether a row is positive, `[n]`; both kinds must carry weight.
        scores: As in `auc`.
        weight: Weight of each row.

    Returns:
        For each positive the share of negatives below it, for each negative that of positives above it (ties count
        half), and the AUC.
    """
    values, place = np.unique(scores, return_inverse=True)  # [u] ascending, [n] position in it
    positives = np.bincount(place, np.where(y, weight, 0.0), values.size)  # [u] weight of positives at each score
    negatives = np.bincount(place, np.where(y, 0.0, weight), values.size)
    # Share of negatives below a score, and of positives above it; those at the score count half.
    below = (np.cumsum(negatives) - negatives / 2) / negatives.sum()
    above = 1 - (np.cumsum(positives) - positives / 2) / positives.sum()
    return below[place[y]], above[place[~y]], float(np.average(below, weights=positives))


def _ranked(y: npt.NDArray[np.bool_], scores: npt.NDArray[Any], w: Floats | None) -> tuple[float, float]:
    """Return the AUC and DeLong's variance of it."""
    _need_both("AUC", y, w)
    weight = np.ones(y.size) if w is None else w
    below, above, area = placements(y, scores, weight)
    return area, variance_of_mean(below, weight[y]) + variance_of_mean(above, weight[~y])


def variance_of_mean(values: Floats, weight: Floats) -> float:
    """Variance of a weighted mean (equal weights: sample variance over n); 0 where one row has all the weight."""
    share = weight / weight.sum()
    freedom = 1 - np.sum(share**2)
    if freedom <= 0:
        return 0.0
    return float(np.sum((share * (values - np.sum(share * values))) ** 2) / freedom)


def _interval(area: float, variance: float, confidence: float) -> tuple[float, float]:
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(variance)
    return max(0.0, area - reach), min(1.0, area + reach)
