"""Tests of tfdlrm.metrics.binary against scikit-learn, pair counting and a bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from tfdlrm.metrics import binary
from tfdlrm.spec.errors import DataError


def sample(rows, seed=0, grid=None, rate=0.3):
    """Draw labels and probabilities that fit them; `grid` rounds probabilities so that they tie."""
    rng = np.random.default_rng(seed)
    p = np.clip(rng.beta(2, 2 / rate - 2, rows), 0.001, 0.999)
    if grid is not None:
        p = np.round(p * grid) / grid
    y = (rng.random(rows) < p).astype(np.float32)
    y[:2] = 0, 1
    return y, p


def placements(y, s, w):
    """Compare every positive with every negative: 1 above, 0.5 tied, 0 below."""
    positive, negative = y == 1, y == 0
    wins = np.sign(s[positive][:, None] - s[negative][None, :]) / 2 + 0.5
    return wins, w[positive] / w[positive].sum(), w[negative] / w[negative].sum()


@pytest.mark.parametrize("grid", [None, 50, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_auc_matches_sklearn_and_pair_counting(grid, weighted):
    y, p = sample(700, seed=1, grid=grid)
    w = np.random.default_rng(2).integers(0, 4, 700).astype(np.float64) if weighted else None
    wins, a, b = placements(y, p, np.ones(700) if w is None else w)
    assert binary.auc(y, p, w) == pytest.approx(a @ wins @ b, abs=1e-12)
    assert binary.auc(y, p, w) == pytest.approx(metrics.roc_auc_score(y, p, sample_weight=w), abs=1e-12)


def test_auc_is_the_same_for_any_increasing_transform_and_for_shapes_n_and_n_by_1():
    y, p = sample(500)
    expected = binary.auc(y, p)
    assert binary.auc(y[:, None], np.log(p / (1 - p))[:, None]) == expected
    assert binary.auc(y.astype(bool), -p) == pytest.approx(1 - expected, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=30))
def test_auc_and_interval_match_pair_counting_on_small_cases_with_many_ties(rows):
    y = np.array([r[0] for r in rows], float)
    s = np.array([r[1] for r in rows], float)
    if y.min() == y.max():
        with pytest.raises(DataError, match="must hold both classes"):
            binary.auc(y, s)
        return
    wins, a, b = placements(y, s, np.ones(y.size))
    low, high = binary.auc_interval(y, s)
    assert binary.auc(y, s) == pytest.approx(wins.mean(), abs=1e-12)
    v10, v01 = wins.mean(axis=1), wins.mean(axis=0)
    variance = sum(np.var(v, ddof=1) / v.size for v in (v10, v01) if v.size > 1)
    reach = 1.959963984540054 * math.sqrt(variance)
    assert (low, high) == pytest.approx((max(0, wins.mean() - reach), min(1, wins.mean() + reach)), abs=1e-9)


def rank_sum_auc(y, s):
    """Mann-Whitney's statistic from ranks."""
    positives = y.sum()
    return (stats.rankdata(s)[y == 1].sum() - positives * (positives + 1) / 2) / (positives * (y.size - positives))


def test_interval_matches_a_bootstrap():
    y, p = sample(1500, seed=5, grid=200)
    rng = np.random.default_rng(6)
    draws = []
    for _ in range(600):
        rows = rng.integers(0, y.size, y.size)
        draws.append(rank_sum_auc(y[rows], p[rows]))
    low, high = binary.auc_interval(y, p)
    assert (high - low) / (2 * 1.96) == pytest.approx(np.std(draws), rel=0.1)
    assert (low, high) == pytest.approx(np.quantile(draws, (0.025, 0.975)), abs=0.006)


def test_interval_covers_the_true_auc_as_often_as_it_says():
    rng = np.random.default_rng(7)
    # Scores are N(1, 1) for positives and N(0, 1) for negatives: the AUC is Phi(1 / sqrt(2)).
    true, hits = 0.7602499389, 0
    for _ in range(400):
        y = np.r_[np.ones(60), np.zeros(120)]
        low, high = binary.auc_interval(y, rng.standard_normal(180) + y, confidence=0.9)
        hits += low <= true <= high
    assert 0.86 <= hits / 400 <= 0.94


def test_interval_with_equal_weights_is_the_plain_one_and_grows_with_confidence():
    y, p = sample(300)
    assert binary.auc_interval(y, p, sample_weight=np.full(300, 0.2)) == pytest.approx(binary.auc_interval(y, p))
    narrow, wide = binary.auc_interval(y, p, 0.5), binary.auc_interval(y, p, 0.99)
    assert wide[0] < narrow[0] < binary.auc(y, p) < narrow[1] < wide[1]
    with pytest.raises(ValueError, match="`confidence` must lie between 0 and 1. Received: 95."):
        binary.auc_interval(y, p, 95)


def test_interval_of_a_weighted_sample_matches_a_bootstrap():
    y, p = sample(600, seed=8)
    w = np.random.default_rng(9).exponential(size=600)
    wins = placements(y, p, w)[0]
    a, b = w[y == 1], w[y == 0]
    rng = np.random.default_rng(10)
    draws = []
    for _ in range(600):  # a row drawn k times has k times the weight
        drawn = np.bincount(rng.integers(0, 600, 600), minlength=600)
        u, v = a * drawn[y == 1], b * drawn[y == 0]
        draws.append(u @ wins @ v / (u.sum() * v.sum()))
    low, high = binary.auc_interval(y, p, sample_weight=w)
    assert (high - low) / (2 * 1.96) == pytest.approx(np.std(draws), rel=0.1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_log_loss_matches_sklearn_saturated_answers_included(dtype, weighted):
    y, p = sample(400, seed=3)
    p = p.astype(dtype)
    p[:4] = 0, 1, 1, 0
    w = np.random.default_rng(4).random(400) if weighted else None
    expected = metrics.log_loss(y, p, sample_weight=w)
    assert binary.log_loss(y, p, w) == pytest.approx(expected, rel=1e-6 if dtype == np.float32 else 1e-12)


def test_one_saturated_wrong_float32_answer_costs_about_16():
    assert binary.log_loss([0.0], np.array([1.0], np.float32)) == pytest.approx(-math.log(1.1920929e-07), rel=1e-6)


def test_normalized_entropy_calibration_and_accuracy_by_hand():
    y, p = [1, 0, 0, 0], [0.5, 0.5, 0.25, 0.25]
    loss = (2 * math.log(2) - 2 * math.log(0.75)) / 4
    base = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert binary.normalized_entropy(y, p) == pytest.approx(loss / base)
    assert binary.normalized_entropy(y, [0.25] * 4) == pytest.approx(1)
    assert binary.calibration(y, p) == pytest.approx(1.5)
    assert binary.calibration(y, p, sample_weight=[3, 1, 1, 1]) == pytest.approx((1.5 + 0.5 + 0.5) / 3)
    assert binary.accuracy(y, p) == 0.75
    assert binary.accuracy(y, p, threshold=0.6) == 0.75
    assert binary.accuracy(y, p, threshold=0.2) == 0.25
    assert binary.accuracy(y, p, sample_weight=[1, 7, 1, 1]) == pytest.approx(0.3)


def test_evaluate_binary_agrees_with_the_single_metrics():
    y, p = sample(900, seed=11, grid=300)
    w = np.random.default_rng(12).random(900)
    for weight in (None, w):
        got = binary.evaluate_binary(y[:, None], p[:, None].astype(np.float32), weight)
        p32 = p.astype(np.float32)
        low, high = binary.auc_interval(y, p32, sample_weight=weight)
        assert got.as_dict() == pytest.approx(
            {
                "rows": 900,
                "auc": binary.auc(y, p32, weight),
                "auc_low": low,
                "auc_high": high,
                "log_loss": binary.log_loss(y, p32, weight),
                "normalized_entropy": binary.normalized_entropy(y, p32, weight),
                "calibration": binary.calibration(y, p32, weight),
                "accuracy": binary.accuracy(y, p32, sample_weight=weight),
                "base_rate": np.average(y, weights=weight),
            },
            abs=1e-12,
        )
    assert list(got.as_dict())[0] == "rows"


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_gives_nan_where_both_are_needed(label):
    got = binary.evaluate_binary([label] * 3, [0.2, 0.4, 0.6])
    assert math.isnan(got.auc) and math.isnan(got.auc_low) and math.isnan(got.auc_high)
    assert math.isnan(got.normalized_entropy)
    assert math.isnan(got.calibration) == (label == 0)
    assert got.base_rate == label
    assert got.log_loss == pytest.approx(metrics.log_loss([label] * 3, [0.2, 0.4, 0.6], labels=[0, 1]))


def test_one_class_is_refused_by_single_metrics():
    with pytest.raises(DataError, match="`labels` must hold both classes for AUC. Received: only 1."):
        binary.auc([1, 1], [0.1, 0.2])
    with pytest.raises(DataError, match="both classes for AUC. Received: only 0."):
        binary.auc([1, 0], [0.1, 0.2], sample_weight=[0, 1])
    with pytest.raises(DataError, match="both classes for normalized_entropy"):
        binary.normalized_entropy([0, 0], [0.1, 0.2])
    with pytest.raises(DataError, match="must hold a 1 for calibration"):
        binary.calibration([0, 0], [0.1, 0.2])


@pytest.mark.parametrize(
    ("labels", "probabilities", "weight", "message"),
    [
        ([0, 1], [0.1, 0.2, 0.3], None, "`probabilities` must have as many rows as `labels`. Received: 3 and 2."),
        ([0, 1], [0.1, 0.2], [1.0], "`sample_weight` must have as many rows as `labels`. Received: 1 and 2."),
        ([[0, 1]], [0.1, 0.2], None, r"`labels` must have shape \[n\] or \[n, 1\]. Received: \[1, 2\]."),
        ([], [], None, "`labels` must hold at least one row. Received: 0."),
        ([0, 2], [0.1, 0.2], None, "`labels` must be 0 or 1. Received: 2.0."),
        ([0, math.nan], [0.1, 0.2], None, "`labels` must be 0 or 1. Received: nan."),
        ([0, 1], [0.1, math.nan], None, "`probabilities` must be finite. Received: nan in row 1."),
        ([0, 1], [0.1, 1.5], None, "`probabilities` must lie between 0 and 1. Received: 1.5 in row 1."),
        ([0, 1], [-0.1, 0.5], None, "`probabilities` must lie between 0 and 1. Received: -0.1 in row 0."),
        ([0, 1], ["a", "b"], None, "`probabilities` must be numbers. Received: <U1."),
        ([0, 1], [0.1, 0.2], [1, -1], "`sample_weight` must be finite and at least 0. Received: -1.0."),
        ([0, 1], [0.1, 0.2], [1, math.nan], "`sample_weight` must be finite and at least 0. Received: nan."),
        ([0, 1], [0.1, 0.2], [0, 0], "`sample_weight` must not be 0 everywhere."),
    ],
)
def test_bad_input_is_refused(labels, probabilities, weight, message):
    with pytest.raises(DataError, match=message):
        binary.evaluate_binary(labels, probabilities, weight)


def test_auc_takes_any_finite_score_but_not_nan():
    assert binary.auc([0, 1], [-3.0, 1e30]) == 1.0
    with pytest.raises(DataError, match="`scores` must be finite. Received: inf in row 0."):
        binary.auc([0, 1], [math.inf, 0.0])
