from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

from tfdlrm.report.curves import (
    average_precision,
    precision_recall_points,
    reliability_bins,
    roc_points,
    rows_seen,
)


def sample(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probabilities = rng.random(rows).round(2)  # with ties
    return (rng.random(rows) < probabilities).astype(np.float32), probabilities, rng.random(rows)


@pytest.mark.parametrize("weighted", [False, True])
def test_roc_is_that_of_scikit_learn(weighted: bool) -> None:
    labels, scores, weight = sample(500)
    weight = weight if weighted else None
    expected = roc_curve(labels, scores, sample_weight=weight, drop_intermediate=False)
    found = roc_points(labels, scores, weight)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-12)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-12)


def test_thinned_roc_keeps_ends_and_area() -> None:
    rng = np.random.default_rng(1)
    scores = rng.random(50_000)
    labels = rng.random(50_000) < scores
    false, true = roc_points(labels, scores, points=300)
    assert len(false) == 300 and (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    exact = roc_curve(labels, scores)
    assert auc(false, true) == pytest.approx(auc(exact[0], exact[1]), abs=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
def test_precision_and_recall_are_those_of_scikit_learn(weighted: bool) -> None:
    labels, scores, weight = sample(500)
    weight = weight if weighted else None
    precision, recall, _ = precision_recall_curve(labels, scores, sample_weight=weight)
    found = precision_recall_points(labels, scores, weight)
    # Theirs falls in recall and ends with a point of no row.
    np.testing.assert_allclose(found[0], recall[-2::-1], atol=1e-12)
    np.testing.assert_allclose(found[1], precision[-2::-1], atol=1e-12)
    expected = average_precision_score(labels, scores, sample_weight=weight)
    assert average_precision(*found) == pytest.approx(expected, abs=1e-12)


def test_thinned_precision_keeps_the_area() -> None:
    rng = np.random.default_rng(1)
    scores = rng.random(50_000)
    labels = rng.random(50_000) < scores
    found = precision_recall_points(labels, scores, points=300)
    assert len(found[0]) <= 300 and found[0][-1] == 1
    assert average_precision(*found) == pytest.approx(average_precision_score(labels, scores), abs=2e-3)


def test_rows_seen_count_short_batches_once_an_epoch() -> None:
    order = [size for _ in range(3) for size in (4, 4, 2)]  # 10 rows an epoch in batches of 4
    assert [rows_seen(step, 10, 4) for step in range(10)] == np.cumsum([0, *order]).tolist()
    assert rows_seen(6, 8, 4) == 24


def test_bins_are_means_of_equal_parts() -> None:
    labels, probabilities, _ = sample(1000)
    bins = reliability_bins(labels, probabilities, bins=8)
    order = np.argsort(probabilities, kind="stable")
    assert [b.rows for b in bins] == [125] * 8
    for part, found in zip(order.reshape(8, 125), bins, strict=True):
        assert found.predicted == pytest.approx(probabilities[part].mean())
        assert found.observed == pytest.approx(labels[part].mean())
        low, high = binomtest(int(labels[part].sum()), 125).proportion_ci(0.95, method="wilson")
        assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_weights_count_in_bins() -> None:
    labels, probabilities, weight = sample(300)
    (only,) = reliability_bins(labels, probabilities, weight, bins=1)
    assert only.observed == pytest.approx(np.average(labels, weights=weight))
    assert only.predicted == pytest.approx(np.average(probabilities, weights=weight))
    (equal,) = reliability_bins(labels, probabilities, np.full(300, 7.0), bins=1)
    (plain,) = reliability_bins(labels, probabilities, bins=1)
    assert (equal.low, equal.high) == (pytest.approx(plain.low), pytest.approx(plain.high))
    assert only.high - only.low > plain.high - plain.low  # uneven weights are fewer rows in effect


def test_fewer_rows_than_bins_and_rows_without_weight() -> None:
    assert len(reliability_bins([0, 1, 1], [0.1, 0.5, 0.9], bins=20)) == 3
    assert len(reliability_bins([0, 1, 1], [0.1, 0.5, 0.9], [0, 1, 1], bins=20)) == 2
