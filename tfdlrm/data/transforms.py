"""Dense features: their statistics over training rows and the one transform from raw number to model input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from pydantic import Field

from tfdlrm.spec.features import DenseFeature, Frozen

_SMALLEST_NORMAL = np.finfo(np.float32).tiny


def without_denormals(values: tf.Tensor) -> tf.Tensor:
    """Return numbers with those below the smallest normal float32 (1.2e-38) as 0.

    TensorFlow's threads take such numbers for 0 and the calling thread does not, so without this the same row would
    be encoded in two ways.

    Args:
        values: float32 or float64. Any shape.
    """
    is_tiny = tf.abs(values) < tf.constant(_SMALLEST_NORMAL, values.dtype)
    return tf.where(is_tiny, tf.zeros_like(values), values)


# Whole numbers of this range, which holds nearly all counts, are transformed once and looked up.
_FIRST_WHOLE, _WHOLE_NUMBERS = -16, 1 << 16


class DenseStats(Frozen):
    """Mean and standard deviation (of the population) of one dense feature over training rows."""

    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)


class StatsCounter:
    """Mean and standard deviation of a stream, exact to rounding however it is cut into chunks.

    Chunks are merged by the update of Chan, Golub and LeVeque (1979), which subtracts no large sums of squares.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean = 0.0
        self._squares = 0.0  # sum of squared distances from the mean
        self._smallest = np.inf
        self._largest = -np.inf

    @property
    def state(self) -> dict[str, float]:
        """All that it knows, for JSON; setting it makes this counter go on from there."""
        return dict(vars(self))

    @state.setter
    def state(self, state: dict[str, float]) -> None:
        vars(self).update(state)

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count the finite ones among `values`, float32 `[rows]`; the others are missing."""
        finite = values[np.isfinite(values)].astype(np.float64)
        finite[np.abs(finite) < _SMALLEST_NORMAL] = 0.0
        if not finite.size:
            return
        count = self._count + finite.size
        mean = float(finite.mean())
        delta = mean - self._mean
        self._squares += float(np.square(finite - mean).sum()) + delta**2 * self._count * finite.size / count
        self._mean += delta * finite.size / count
        self._count = count
        self._smallest = min(self._smallest, float(finite.min()))
        self._largest = max(self._largest, float(finite.max()))

    def build(self) -> DenseStats:
        """Return the statistics; the deviation of a constant, or of no value at all, is 1."""
        # A constant is told by its range: rounding of its mean may leave it a tiny deviation to be divided by.
        varies = self._smallest < self._largest
        return DenseStats(mean=self._mean, std=float(np.sqrt(self._squares / self._count)) if varies else 1.0)


def transform_dense(features: Sequence[DenseFeature], stats: Mapping[str, DenseStats], values: tf.Tensor) -> tf.Tensor:
    """Return the model input of raw numbers.

    Args:
        features: The dense features, in column order.
        stats: Statistics of the `standardize` features, by name.
        values: float32 `[B, n_dense]`; what is not finite is missing, what is below the smallest normal float32 is 0.

    Returns:
        float32 `[B, n_dense]`, 0 where missing; never below the smallest normal float32 but 0.
    """
    is_log = [f.transform == "log1p" for f in features]
    # In float64: float32 log1p differs in its last bit between the vectorized body of a loop and its remainder, so a
    # row's value would depend on its place in the batch. Rounded back to float32, the difference is gone.
    shaped = wide = tf.cast(without_denormals(values), tf.float64)
    if not all(is_log):
        used = [stats[f.name] if f.transform == "standardize" else DenseStats() for f in features]
        # A reciprocal, as graph optimization would turn a division by a constant into one and round differently.
        scale = tf.constant([1.0 / s.std for s in used], tf.float64)
        shaped = (wide - tf.constant([s.mean for s in used], tf.float64)) * scale
    if any(is_log):
        shaped = tf.where(tf.constant(is_log), tf.math.log1p(tf.maximum(wide, 0.0)), shaped)
    return tf.where(tf.math.is_finite(values), tf.cast(without_denormals(shaped), tf.float32), 0.0)


class BulkTransform:
    """`transform_dense` of one feature, several times faster where most values are small whole numbers.

    Those are looked up among results that `transform_dense` gave once; it is called for the others.

    Args:
        feature: The feature.
        stats: As for `transform_dense`.
    """

    def __init__(self, feature: DenseFeature, stats: Mapping[str, DenseStats]) -> None:
        self._feature = feature
        self._stats = stats
        self._results = self._transform(np.arange(_FIRST_WHOLE, _FIRST_WHOLE + _WHOLE_NUMBERS, dtype=np.float32))

    def __call__(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return float32 `[rows]` of float32 `[rows]`, 0 where missing."""
        with np.errstate(invalid="ignore"):
            whole = values.astype(np.int32)  # anything, where a value is none
        places = (whole - np.int32(_FIRST_WHOLE)).view(np.uint32)  # far too large for what lies before the first
        known = (whole.astype(np.float32) == values) & (places < _WHOLE_NUMBERS)
        results = self._results.take(np.where(known, places, 0))
        others = np.flatnonzero(~known)
        results[others] = 0.0
        others = others[np.isfinite(values[others])]
        if others.size:
            results[others] = self._transform(values[others])
        return results

    def _transform(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        column: npt.NDArray[np.float32] = transform_dense(
            [self._feature], self._stats, tf.constant(values[:, np.newaxis])
        ).numpy()
        return column[:, 0]
