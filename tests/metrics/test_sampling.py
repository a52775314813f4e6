"""From a sample short of negatives to all rows: the published formula, and a simulation that knows the truth."""

from __future__ import annotations

import numpy as np
import pytest

from tfdlrm.metrics.binary import calibration, evaluate_binary
from tfdlrm.metrics.sampling import shifted, weights_of_all_rows

RNG = np.random.default_rng(11)


@pytest.mark.parametrize("kept", [0.125, 0.2, 1.0])
def test_the_formula_of_he_et_al(kept):
    p = np.concatenate([RNG.random(1000), [0.0, 1.0, 1e-300]])
    q = shifted(p, float(np.log(kept)))
    np.testing.assert_allclose(q, p / (p + (1 - p) / kept), rtol=1e-12)
    np.testing.assert_allclose(shifted(q, -float(np.log(kept)))[:1000], p[:1000], rtol=1e-9)
    assert shifted(p.astype(np.float32), -1.0).dtype == np.float32


def test_weights_give_back_the_rows_left_out():
    labels = np.array([1, 0, 0, 1], np.float32)
    shift = float(np.log1p(-0.875))
    assert weights_of_all_rows(labels, None, 0.0) is None
    np.testing.assert_allclose(weights_of_all_rows(labels, None, shift), [1, 8, 8, 1], rtol=1e-6)
    weight = np.array([0.5, 2, 1, 3], np.float32)
    np.testing.assert_allclose(weights_of_all_rows(labels, weight, shift), [0.5, 16, 8, 3], rtol=1e-6)


def test_corrected_metrics_of_a_sample_are_those_of_all_rows():
    """Rows with known probabilities, four of five negatives left out; the model is the sample's exact posterior."""
    share, shift = 0.8, float(np.log(0.2))
    truth = 1 / (1 + np.exp(-RNG.normal(-2, 1.5, 400_000)))
    labels = (RNG.random(truth.size) < truth).astype(np.float32)
    left = (labels == 1) | (RNG.random(truth.size) >= share)
    learnt = truth[left] / (truth[left] + (1 - truth[left]) * (1 - share))
    assert calibration(labels[left], learnt) == pytest.approx(1, abs=0.01)  # right among the rows that are left

    weight = weights_of_all_rows(labels[left], None, shift)
    corrected = evaluate_binary(labels[left], shifted(learnt, shift), weight)
    all_rows = evaluate_binary(labels, truth)
    error = weight * (truth[left] - labels[left])
    spread = np.sqrt(np.sum(error**2)) / np.sum(weight * labels[left])
    assert abs(corrected.calibration - 1) < 4 * spread < 0.03
    assert corrected.base_rate == pytest.approx(all_rows.base_rate, rel=0.01)
    assert corrected.log_loss == pytest.approx(all_rows.log_loss, rel=0.01)
    assert corrected.auc == pytest.approx(all_rows.auc, abs=0.003)
    inflated = calibration(labels[left], learnt, weight)
    posterior = truth / (truth + (1 - truth) * (1 - share))
    assert inflated == pytest.approx(posterior.mean() / truth.mean(), rel=0.02)
    assert inflated > 1.9
