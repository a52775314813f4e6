"""Distribution of numeric columns in one pass and fixed memory, whatever their range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_BINS = 1 << 16
COARSE_BINS = 1 << 12
Floats = npt.NDArray[np.float32]


class NumberCounts:
    """Moments and a histogram of each of several float32 columns.

    The bins are the float32 numbers that agree in sign, exponent and the first seven bits of the fraction, so a
    quantile is right to 0.4% of its value, and 0 has a bin of its own.

    Args:
        columns: Number of columns.
    """

    def __init__(self, columns: int) -> None:
        self.count = 0
        self._histogram = np.zeros([columns, _BINS], np.int64)
        self._mean = np.zeros(columns)
        self._squares = np.zeros(columns)  # sums of squared distances from the mean
        self._smallest = np.full(columns, np.inf)
        self._largest = np.full(columns, -np.inf)

    def add(self, values: Floats) -> npt.NDArray[np.int64]:
        """Count rows.

        Args:
            values: Finite numbers, `[rows, columns]`.

        Returns:
            Histograms of these rows alone over `COARSE_BINS` wider bins, `[columns, COARSE_BINS]`.
        """
        rows = len(values)
        coarse = np.zeros([len(self._mean), COARSE_BINS], np.int64)
        if not rows:
            return coarse
        for column, bins in enumerate(_bins(values).T):
            found = np.bincount(bins, minlength=_BINS)
            self._histogram[column] += found
            coarse[column] = found.reshape(COARSE_BINS, -1).sum(axis=1)
        wide = values.astype(np.float64)
        mean = wide.mean(axis=0)
        delta = mean - self._mean
        total = self.count + rows
        # The update of Chan, Golub and LeVeque (1979): no difference of large sums.
        self._squares += np.square(wide - mean).sum(axis=0) + delta**2 * (self.count * rows / total)
        self._mean += delta * (rows / total)
        self._smallest = np.minimum(self._smallest, wide.min(axis=0))
        self._largest = np.maximum(self._largest, wide.max(axis=0))
        self.count = total
        return coarse

    def summary(self, column: int, quantiles: Sequence[float]) -> dict[str, Any]:
        """Return what is known of a column: mean, std, min, max, share of zeros, quantiles as `q<percent>`.

        All of them are `None` where no row was added.
        """
        keys = ["mean", "std", "min", "max", "zero", *(f"q{100 * q:g}" for q in quantiles)]
        if not self.count:
            return dict.fromkeys(keys)
        low, high = self._smallest[column], self._largest[column]
        histogram = self._histogram[column]
        ends = np.cumsum(histogram)
        places = np.searchsorted(ends, [q * self.count for q in quantiles])
        zero = histogram[_bins(np.zeros(1, np.float32))[0]] / self.count
        values = [self._mean[column], np.sqrt(self._squares[column] / self.count), low, high, zero]
        return dict(zip(keys, map(float, [*values, *np.clip(_middles(places), low, high)]), strict=True))


def _bins(values: Floats) -> npt.NDArray[np.uint16]:
    """Return the bin of each number; greater numbers never have lower bins."""
    bits = ((values + np.float32(0)).view(np.uint32) >> 16).astype(np.uint16)  # the sum makes -0.0 a 0.0
    ordered: npt.NDArray[np.uint16] = np.where(bits & 0x8000, ~bits, bits | 0x8000)
    return ordered


def _middles(bins: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the number in the middle of each bin, 0 for the one around 0."""
    ordered = np.minimum(bins, _BINS - 1).astype(np.uint16)
    bits = np.where(ordered & 0x8000, ordered & 0x7FFF, ~ordered).astype(np.uint32)
    numbers = ((bits << 16) | 0x8000).view(np.float32).astype(np.float64)
    return np.where(bits == 0, 0.0, numbers)
