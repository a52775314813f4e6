from __future__ import annotations

import numpy as np
import pytest

from tfdlrm.metrics.binary import auc, auc_interval, log_loss
from tfdlrm.metrics.paired import auc_difference, log_loss_difference
from tfdlrm.spec.errors import DataError


def sample(rows: int, seed: int, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels and two scores that know something of them, and of each other."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=rows)
    labels = (rng.random(rows) < 1 / (1 + np.exp(-truth))).astype(np.float64)
    scores = [1 / (1 + np.exp(-(truth + noise * rng.normal(size=rows)))) for _ in range(2)]
    return labels, scores[0].round(2), scores[1].round(2)  # with ties


def delong(labels: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """DeLong's difference and its standard error as the paper writes them: every positive against every negative."""
    kernels = []
    for scores in (first, second):
        a, b = scores[labels == 1][:, np.newaxis], scores[labels == 0][np.newaxis]
        kernels.append((a > b) + 0.5 * (a == b))
    by_positive = np.cov([kernel.mean(axis=1) for kernel in kernels]) / kernels[0].shape[0]
    by_negative = np.cov([kernel.mean(axis=0) for kernel in kernels]) / kernels[0].shape[1]
    covariance = by_positive + by_negative
    return kernels[0].mean() - kernels[1].mean(), np.sqrt([1, -1] @ covariance @ [1, -1])


def test_auc_difference_is_delongs() -> None:
    labels, first, second = sample(400, 0)
    value, error = delong(labels, first, second)
    found = auc_difference(labels, first, second)
    assert found.value == pytest.approx(value, abs=1e-12)
    assert (found.low, found.high) == (pytest.approx(value - 1.959964 * error), pytest.approx(value + 1.959964 * error))


def test_the_interval_covers_the_difference_as_often_as_it_says() -> None:
    truth = auc_difference(*sample(400_000, 99)).value
    found = [auc_difference(*sample(300, seed)) for seed in range(300)]
    covered = np.mean([d.low <= truth <= d.high for d in found])
    assert 0.91 < covered < 0.985


def test_pairing_tells_apart_what_single_intervals_do_not() -> None:
    labels, first, _ = sample(2000, 1)
    second = np.clip(first + 0.04 * np.random.default_rng(2).normal(size=2000), 0, 1)
    found = auc_difference(labels, first, second)
    low, high = auc_interval(labels, first)
    assert found.high - found.low < (high - low) / 3


def test_whole_weights_are_repeated_rows() -> None:
    labels, first, second = sample(200, 3)
    times = np.random.default_rng(4).integers(1, 4, 200)
    again = [np.repeat(values, times) for values in (labels, first, second)]
    assert auc_difference(labels, first, second, times).value == pytest.approx(auc_difference(*again).value)
    assert log_loss_difference(labels, first, second, times).value == pytest.approx(log_loss_difference(*again).value)


def test_log_loss_difference_is_that_of_the_losses() -> None:
    labels, first, second = (values.clip(0.01, 0.99) if i else values for i, values in enumerate(sample(500, 5)))
    found = log_loss_difference(labels, first, second)
    assert found.value == pytest.approx(log_loss(labels, first) - log_loss(labels, second), abs=1e-12)
    p, q = (np.where(labels == 1, values, 1 - values) for values in (first, second))
    error = np.std(np.log(q) - np.log(p), ddof=1) / np.sqrt(500)
    assert found.high - found.value == pytest.approx(1.959964 * error)


def test_a_model_is_no_better_than_itself() -> None:
    labels, first, _ = sample(100, 6)
    for measure in (auc_difference, log_loss_difference):
        difference = measure(labels, first, first)
        assert difference == (0, 0, 0) and not difference.beyond_chance
    assert auc_difference(labels, labels, first).beyond_chance
    assert auc_difference(labels, labels, first).value == pytest.approx(1 - auc(labels, first))


def test_bad_rows_are_refused() -> None:
    with pytest.raises(DataError, match=r"of one length, at least 1. Received: \[2, 2, 1, 2\]"):
        auc_difference([0, 1], [0.1, 0.2], [0.1])
    with pytest.raises(DataError, match="of one length"):
        log_loss_difference([], [], [])
    with pytest.raises(DataError, match="both classes"):
        auc_difference([1, 1], [0.1, 0.2], [0.1, 0.3])
