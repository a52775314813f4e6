"""Dense features: their statistics over training rows and the one transform from raw number to model input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import tensorflow as tf
from pydantic import Field

from tfdlrm.data.columns import number_column
from tfdlrm.spec.features import DenseFeature, DenseTransform
from tfdlrm.spec.frozen import Frozen

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
    """What a transform must know of a dense feature beside the number itself.

    Attributes:
        mean, std: Over training rows, `std` of the population. For `standardize`.
        file_minimums: Smallest number of each raw file over all `log_file_minimum` columns. For those.
        minimum: The smallest of them among files with training rows, which serving uses.
    """

    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)
    file_minimums: tuple[float, ...] = ()
    minimum: float = 0.0

    def minimum_of(self, file: int | None) -> float:
        """Return the smallest number of a raw file, or of the files with training rows where none is named."""
        return self.minimum if file is None else self.file_minimums[file]


class StatsCounter:
    """Mean and standard deviation of a stream, exact to rounding however it is cut into chunks.

    Chunks are merged by the update of Chan, Golub and LeVeque (1979), which subtracts no large sums of squares.
    """

    def __init__(self) -> None:
        self._count: float = 0
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
        mean = float(finite.mean())
        squares = float(np.square(finite - mean).sum())
        self._merge(finite.size, mean, squares, float(finite.min()), float(finite.max()))

    def merge(self, state: Mapping[str, float]) -> None:
        """Add what another one, whose `state` is given, counted."""
        if state["_count"]:
            self._merge(*(state[f"_{name}"] for name in ("count", "mean", "squares", "smallest", "largest")))

    def _merge(self, added: float, mean: float, squares: float, smallest: float, largest: float) -> None:
        count = self._count + added
        delta = mean - self._mean
        self._squares += squares + delta**2 * self._count * added / count
        self._mean += delta * added / count
        self._count = count
        self._smallest = min(self._smallest, smallest)
        self._largest = max(self._largest, largest)

    def build(self) -> DenseStats:
        """Return the statistics; the deviation of a constant, or of no value at all, is 1."""
        # A constant is told by its range: rounding of its mean may leave it a tiny deviation to be divided by.
        varies = self._smallest < self._largest
        return DenseStats(mean=self._mean, std=float(np.sqrt(self._squares / self._count)) if varies else 1.0)


class FileMinimums:
    """The smallest number of each raw file over several columns, where a missing number counts as 0.

    Args:
        columns: The `log_file_minimum` features.

    Attributes:
        columns: The same.

    Example:
        >>> minimums = FileMinimums(["a", "b"])
        >>> minimums.add(0, pl.DataFrame({"a": [3.0, None], "b": [5.0, 7.0]}), trains=True)
        >>> minimums.add(1, pl.DataFrame({"a": [3.0], "b": [-2.0]}), trains=False)
        >>> minimums.build()["a"].file_minimums, minimums.build()["a"].minimum
        ((0.0, -2.0), 0.0)
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self._smallest: dict[int, float] = {}
        self._training: set[int] = set()

    @property
    def state(self) -> dict[str, Any]:
        """All that it knows, for JSON; setting it makes this one, of the same columns, know just that."""
        return {"smallest": list(self._smallest.items()), "training": sorted(self._training)}

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        self._smallest, self._training = dict(state["smallest"]), set(state["training"])

    def merge(self, state: dict[str, Any]) -> None:
        """Add what the `state` of another one, of the same columns, says."""
        for file, smallest in state["smallest"]:
            self._smallest[file] = min(smallest, self._smallest.get(file, np.inf))
        self._training.update(state["training"])

    def add(self, file: int, frame: pl.DataFrame, trains: bool) -> None:
        """Count rows of a raw file, whatever split they are in.

        Args:
            file: Number of the file, from 0.
            frame: The columns, with null or NaN where missing.
            trains: Whether any of the rows trains.

        Raises:
            DataError: a column is absent or does not hold numbers.
        """
        if not frame.height or not self.columns:
            return
        columns = [number_column(frame, name) for name in self.columns]
        smallest = min(float(np.where(np.isfinite(values), values, 0.0).min()) for values in columns)
        self._smallest[file] = min(smallest, self._smallest.get(file, np.inf))
        if trains:
            self._training.add(file)

    def build(self) -> dict[str, DenseStats]:
        """Return what `transform_dense` needs, by column; a file without rows has the minimum 0."""
        files = range(max(self._smallest, default=-1) + 1)
        minimums = tuple(self._smallest.get(file, 0.0) for file in files)
        overall = min((minimums[file] for file in self._training), default=0.0)
        stats = DenseStats(file_minimums=minimums, minimum=overall)
        return dict.fromkeys(self.columns, stats)


def transform_dense(
    features: Sequence[DenseFeature], stats: Mapping[str, DenseStats], values: tf.Tensor, file: int | None = None
) -> tf.Tensor:
    """Return the model input of raw numbers.

    Args:
        features: The dense features, in column order.
        stats: Statistics of the features in `needs_stats`, by name.
        values: float32 `[B, n_dense]`; what is not finite is missing, what is below the smallest normal float32 is 0.
        file: Number of the raw file that the values are of, `None` when serving. For `log_file_minimum`.

    Returns:
        float32 `[B, n_dense]`; never below the smallest normal float32 but 0.
    """
    used = [stats[f.name] if f.name in stats else DenseStats() for f in features]
    finite = tf.math.is_finite(values)
    # In float64: float32 log1p differs in its last bit between the vectorized body of a loop and its remainder, so a
    # row's value would depend on its place in the batch. Rounded back to float32, the difference is gone.
    wide = tf.cast(tf.where(finite, without_denormals(values), 0.0), tf.float64)
    transforms = [f.transform for f in features]
    shaped = wide
    for transform in dict.fromkeys(transforms):
        own = _TRANSFORMS[transform](wide, used, file)
        if transform not in _MISSING_IS_A_NUMBER:
            own = tf.where(finite, own, tf.zeros_like(own))
        here = [t == transform for t in transforms]
        shaped = own if all(here) else tf.where(tf.constant(here), own, shaped)
    return tf.cast(without_denormals(shaped), tf.float32)


def needs_stats(feature: DenseFeature) -> bool:
    """Tell whether a feature's transform takes statistics."""
    return feature.transform in ("standardize", "log_file_minimum")


def _standardize(wide: tf.Tensor, stats: Sequence[DenseStats], file: int | None) -> tf.Tensor:
    # A reciprocal, as graph optimization would turn a division by a constant into one and round differently.
    scale = tf.constant([1.0 / s.std for s in stats], tf.float64)
    return (wide - tf.constant([s.mean for s in stats], tf.float64)) * scale


def _log3(wide: tf.Tensor) -> tf.Tensor:
    above = wide > -3.0
    return tf.math.log(tf.where(above, wide + 3.0, tf.ones_like(wide)))


def _log3_half(wide: tf.Tensor) -> tf.Tensor:
    half = tf.cast(tf.cast(_log3(wide), tf.float32), tf.float16)  # by way of float32, as the published files were
    return tf.cast(half, tf.float64)


def _log_file_minimum(wide: tf.Tensor, stats: Sequence[DenseStats], file: int | None) -> tf.Tensor:
    has_files = [s.file_minimums for s in stats]
    minimums = [s.minimum_of(file) if files else 0.0 for s, files in zip(stats, has_files, strict=True)]
    return tf.math.log(tf.maximum(wide - tf.constant(minimums, tf.float64), 0.0) + 2.0)


_Transform = Callable[[tf.Tensor, Sequence[DenseStats], int | None], tf.Tensor]
# See `tfdlrm.spec.features.DenseFeature`; a missing number comes as 0.
_TRANSFORMS: dict[DenseTransform, _Transform] = {
    "log1p": lambda wide, stats, file: tf.math.log1p(tf.maximum(wide, 0.0)),
    "identity": lambda wide, stats, file: wide,
    "standardize": _standardize,
    "log3": lambda wide, stats, file: _log3(wide),
    "log3_half": lambda wide, stats, file: _log3_half(wide),
    "log3_filled": lambda wide, stats, file: _log3(wide),
    "log_file_minimum": _log_file_minimum,
}
_MISSING_IS_A_NUMBER: frozenset[DenseTransform] = frozenset({"log3_filled", "log_file_minimum"})


class BulkTransform:
    """`transform_dense` of one feature, several times faster where most values are small whole numbers.

    Those are looked up among results that `transform_dense` gave once; it is called for the others.

    Args:
        feature: The feature.
        stats: As for `transform_dense`.
        file: As for `transform_dense`.
    """

    def __init__(self, feature: DenseFeature, stats: Mapping[str, DenseStats], file: int | None = None) -> None:
        self._feature = feature
        self._stats = stats
        self._file = file
        self._results = self._transform(np.arange(_FIRST_WHOLE, _FIRST_WHOLE + _WHOLE_NUMBERS, dtype=np.float32))
        self._missing = self._transform(np.array([np.nan], np.float32))[0]

    def __call__(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return float32 `[rows]` of float32 `[rows]`, what is not finite being missing."""
        with np.errstate(invalid="ignore"):
            whole = values.astype(np.int32)  # anything, where a value is none
        places = (whole - np.int32(_FIRST_WHOLE)).view(np.uint32)  # far too large for what lies before the first
        known = (whole.astype(np.float32) == values) & (places < _WHOLE_NUMBERS)
        results = self._results.take(np.where(known, places, 0))
        others = np.flatnonzero(~known)
        results[others] = self._missing
        others = others[np.isfinite(values[others])]
        if others.size:
            results[others] = self._transform(values[others])
        return results

    def _transform(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        column: npt.NDArray[np.float32] = transform_dense(
            [self._feature], self._stats, tf.constant(values[:, np.newaxis]), self._file
        ).numpy()
        return column[:, 0]
