"""Moments and quantiles of a stream against NumPy on all of it."""

from __future__ import annotations

import numpy as np
import pytest

from tfdlrm.data.number_counts import COARSE_BINS, NumberCounts

QUANTILES = (0.01, 0.25, 0.5, 0.95)


def columns(rows: int = 5000) -> np.ndarray:
    rng = np.random.default_rng(1)
    made = [
        rng.normal(size=rows),
        np.log1p(rng.integers(0, 1000, rows) * (rng.random(rows) < 0.6)),  # many zeros
        rng.normal(1e6, 3.0, rows),
        -np.exp(rng.normal(0, 5, rows)),
        np.full(rows, -0.0),
    ]
    return np.stack(made, axis=1).astype(np.float32)


def test_summary_of_a_stream_is_that_of_all_rows():
    values = columns()
    counts = NumberCounts(values.shape[1])
    for part in np.split(values, [1, 17, 1000, 1000, 4999]):
        counts.add(part)
    assert counts.count == len(values)
    for column in range(values.shape[1]):
        own, found = values[:, column].astype(np.float64), counts.summary(column, QUANTILES)
        assert (found["min"], found["max"]) == (own.min(), own.max())
        assert found["mean"] == pytest.approx(own.mean(), rel=1e-9, abs=1e-12)
        assert found["std"] == pytest.approx(own.std(), rel=1e-9, abs=1e-12)
        assert found["zero"] == pytest.approx(np.mean(own == 0))
        expected = np.quantile(own, QUANTILES, method="inverted_cdf")
        np.testing.assert_allclose([found[k] for k in ("q1", "q25", "q50", "q95")], expected, rtol=0.004, atol=1e-30)


def test_coarse_histogram_is_ordered_and_of_the_rows_given():
    counts = NumberCounts(1)
    counts.add(np.full([10, 1], 5.0, np.float32))
    numbers = np.array([-1e30, -3.0, -1e-30, 0.0, 1e-30, 0.5, 3.0, 1e30], np.float32)
    filled = [int(np.flatnonzero(counts.add(numbers[[i]][:, np.newaxis])[0])[0]) for i in range(len(numbers))]
    assert filled == sorted(set(filled))
    coarse = counts.add(numbers[:, np.newaxis])
    assert coarse.shape == (1, COARSE_BINS)
    assert np.flatnonzero(coarse[0]).tolist() == filled


def test_nothing_added():
    assert set(NumberCounts(1).summary(0, QUANTILES).values()) == {None}
