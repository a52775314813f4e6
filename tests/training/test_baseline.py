"""Tests of tfdlrm.training.baseline against scikit-learn, planted probabilities and real rows."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from sklearn import linear_model, metrics

from tfdlrm.data.planted import planted_chunks
from tfdlrm.spec.criteo import COLUMNS, DENSE_COLUMNS, SPARSE_COLUMNS
from tfdlrm.spec.errors import DataError
from tfdlrm.training.baseline import HashedLogisticRegression


def encode(frame):
    """Return dense log counts, ids in order of appearance, and labels of Criteo rows."""
    dense = np.log1p(np.maximum(frame.select(DENSE_COLUMNS).fill_null(0).to_numpy(), 0)).astype(np.float32)
    ids = [frame[c].fill_null("").rank("dense").to_numpy() for c in SPARSE_COLUMNS]
    return dense, np.stack(ids, axis=1).astype(np.int32), frame["label"].to_numpy()[:, None]


def cut(arrays, rows):
    """Cut arrays into batches of `rows`."""
    return [tuple(a[start : start + rows] for a in arrays) for start in range(0, len(arrays[0]), rows)]


def additive(rows, seed=0):
    """Draw rows whose logit is a sum over two categories and two numbers; return them and the true probabilities."""
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(0, 5, rows), rng.integers(0, 8, rows)], axis=1)
    dense = rng.normal((3, -40), (2, 10), (rows, 2))
    effects = np.random.default_rng(99).normal(0, 1, (2, 8))
    logit = -1 + effects[0, ids[:, 0]] + effects[1, ids[:, 1]] + 0.3 * (dense[:, 0] - 3) - 0.05 * (dense[:, 1] + 40)
    p = 1 / (1 + np.exp(-logit))
    return (dense, ids, (rng.random(rows) < p).astype(np.float32)[:, None]), p


def test_few_rows_are_solved_as_sklearn_solves_them_and_come_near_the_truth():
    (dense, ids, label), p = additive(40_000)
    model = HashedLogisticRegression(buckets=4096).fit(cut((dense, ids, label), 5000))
    got = model.predict(dense, ids)
    assert got.shape == (40_000, 1) and got.dtype == np.float32
    numbers = (dense - dense.mean(0)) / dense.std(0)
    hot = np.concatenate([np.eye(8)[ids[:, 0]], np.eye(8)[ids[:, 1]], numbers], axis=1)
    assert model.solved_by.startswith("Newton-CG, C = ")
    strength = float(model.solved_by.split("= ")[1])
    sklearn = linear_model.LogisticRegression(C=strength, tol=1e-8).fit(hot, label[:, 0]).predict_proba(hot)[:, 1]
    assert np.abs(got[:, 0] - sklearn).max() < 0.01
    assert np.abs(got[:, 0] - p).mean() < 0.01


def test_many_rows_are_streamed_and_come_near_the_truth():
    arrays, p = additive(120_000)
    model = HashedLogisticRegression(buckets=4096, exact_rows=1000).fit(cut(arrays, 5000))
    got = model.predict(*arrays[:2])
    assert model.solved_by == "FTRL, 2 epochs"
    assert metrics.roc_auc_score(arrays[2], got) > metrics.roc_auc_score(arrays[2], p) - 0.004
    assert np.abs(got[:, 0] - p).mean() < 0.04
    assert got.mean() == pytest.approx(arrays[2].mean(), rel=0.02)


def test_the_strength_of_l2_follows_the_data():
    rng = np.random.default_rng(3)
    ids = rng.integers(0, 2000, (20_000, 1))
    noise = rng.integers(0, 2, 20_000)
    signal = (rng.random(20_000) < np.where(np.random.default_rng(4).random(2000) < 0.5, 0.1, 0.9)[ids[:, 0]]).astype(
        int
    )
    dense = np.zeros((20_000, 0))
    weak = HashedLogisticRegression().fit([(dense, ids, noise)])
    strong = HashedLogisticRegression().fit([(dense, ids, signal)])
    assert weak.solved_by == "Newton-CG, C = 0.05"
    assert strong.solved_by in ("Newton-CG, C = 0.7", "Newton-CG, C = 2")


def test_cuts_into_batches_do_not_matter_and_an_iterator_will_do_for_one_epoch():
    arrays, _ = additive(6000)
    for exact_rows in (100, 100_000):
        settings = {"buckets": 4096, "exact_rows": exact_rows, "epochs": 1}
        expected = HashedLogisticRegression(**settings).fit(cut(arrays, 1024)).predict(*arrays[:2])
        again = HashedLogisticRegression(**settings).fit(iter(cut(arrays, 1024))).predict(*arrays[:2])
        np.testing.assert_array_equal(again, expected)
    whole = HashedLogisticRegression(buckets=4096).fit([arrays]).predict(*arrays[:2])
    np.testing.assert_allclose(whole, expected, rtol=1e-4)


def test_a_stream_is_read_once_for_each_epoch():
    arrays, _ = additive(3000)
    for exact_rows, total in ((1000, 6000), (3000, 3000)):
        seen = []
        HashedLogisticRegression(buckets=64, exact_rows=exact_rows).fit(cut(arrays, 300), progress=seen.append)
        assert sum(seen) == total


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("exact_rows", [10, 1000])
def test_one_class_gives_a_constant(label, exact_rows):
    (dense, ids, _), _ = additive(600)
    model = HashedLogisticRegression(exact_rows=exact_rows).fit([(dense, ids, np.full(600, label))])
    assert np.abs(model.predict(dense, ids) - label).max() < 0.5


def test_the_same_id_in_two_features_is_two_inputs_but_one_in_a_bag():
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 2, (4000, 2))
    dense = np.zeros((4000, 0))
    label = (ids[:, 0] == 1).astype(float)[:, None]
    apart = HashedLogisticRegression(buckets=1024).fit([(dense, ids, label)])
    assert metrics.roc_auc_score(label, apart.predict(dense, ids)) == 1.0
    # As one bag of two, (0, 1) and (1, 0) are the same input.
    bag = HashedLogisticRegression(buckets=1024, groups=[0, 0]).fit([(dense, ids, label)])
    ways = bag.predict(np.zeros((2, 0)), np.array([[0, 1], [1, 0]]))
    assert ways[0] == pytest.approx(ways[1], rel=1e-6)


def test_padding_adds_nothing():
    (dense, ids, label), _ = additive(3000)
    padded = np.concatenate([ids, np.full((3000, 2), -1)], axis=1)
    plain = HashedLogisticRegression(buckets=4096).fit([(dense, ids, label)]).predict(dense, ids)
    wide = HashedLogisticRegression(buckets=4096).fit([(dense, padded, label)]).predict(dense, padded)
    np.testing.assert_allclose(wide, plain, rtol=1e-6)


def test_a_zero_is_told_from_a_small_number():
    rng = np.random.default_rng(2)
    dense = rng.choice([0.0, 1.0, 3.0], (5000, 1))  # 0 stands for missing: it clicks, its neighbours do not
    label = (rng.random((5000, 1)) < np.where(dense == 0, 0.6, np.where(dense == 1, 0.1, 0.6))).astype(float)
    model = HashedLogisticRegression().fit([(dense, np.zeros((5000, 0), int), label)])
    zero, one, three = model.predict(np.array([[0.0], [1.0], [3.0]]), np.zeros((3, 0), int))[:, 0]
    assert (zero, one, three) == pytest.approx((0.6, 0.1, 0.6), abs=0.03)


def test_a_column_that_never_changes_and_large_ids_do_no_harm():
    (dense, ids, label), _ = additive(3000)
    dense[:, 0] = 7.0
    model = HashedLogisticRegression().fit([(dense, ids.astype(np.int64) + 2**40, label)])
    assert np.isfinite(model.predict(dense, ids)).all()


def test_stays_below_the_best_on_planted_rows_but_learns():
    chunk = next(planted_chunks(16_000, seed=11))
    dense, ids, label = encode(chunk.frame)
    train, test = slice(0, 11_000), slice(11_000, None)
    model = HashedLogisticRegression().fit(cut((dense[train], ids[train], label[train]), 8192))
    reached = metrics.roc_auc_score(label[test], model.predict(dense[test], ids[test]))
    best = metrics.roc_auc_score(label[test], chunk.probability[test])
    # The dot products of the teacher are beyond it.
    assert 0.72 < reached < best - 0.02


def test_real_rows(shared_data):
    path = shared_data("criteo_kaggle/train.txt")
    schema = {
        "label": pl.Float32,
        **dict.fromkeys(COLUMNS[1:14], pl.Float64),
        **dict.fromkeys(SPARSE_COLUMNS, pl.String),
    }
    dense, ids, label = encode(pl.read_csv(path, separator="\t", has_header=False, schema=schema))
    fold = np.arange(len(label)) * 5 // len(label)
    reached = []
    for k in range(5):
        model = HashedLogisticRegression().fit([(dense[fold != k], ids[fold != k], label[fold != k])])
        reached.append(metrics.roc_auc_score(label[fold == k], model.predict(dense[fold == k], ids[fold == k])))
    assert np.mean(reached) == pytest.approx(0.7465, abs=0.002)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"buckets": 0}, "`buckets` must be at least 1. Received: 0."),
        ({"epochs": 0}, "`epochs` must be at least 1. Received: 0."),
        ({"exact_rows": 0}, "`exact_rows` must be at least 1. Received: 0."),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        HashedLogisticRegression(**arguments)


def test_bad_batches_are_refused():
    (dense, ids, label), _ = additive(10)
    model = HashedLogisticRegression(buckets=64)
    with pytest.raises(ValueError, match="`fit` must be called before `predict`."):
        model.predict(dense, ids)
    with pytest.raises(ValueError, match="`batches` must be iterable 2 times. Received: an iterator"):
        model.fit(iter([(dense, ids, label)]))
    with pytest.raises(ValueError, match="`batches` must hold at least one row. Received: none."):
        model.fit([])
    with pytest.raises(ValueError, match="`groups` must have one entry for each id column. Received: 3."):
        HashedLogisticRegression(groups=[0, 1, 2]).fit([(dense, ids, label)])
    with pytest.raises(DataError, match=r"`dense` must have shape \[10, 2\]. Received: \[9, 2\]."):
        model.fit([(dense[:9], ids, label)])
    with pytest.raises(DataError, match=r"`sparse` must have shape \[10, 2\]. Received: \[10, 1\]."):
        model.fit([(dense, ids, label), (dense, ids[:, :1], label)])
    with pytest.raises(DataError, match="`label` must have as many rows as `sparse`. Received: 9 and 10."):
        model.fit([(dense, ids, label[:9])])
    with pytest.raises(DataError, match="`label` must be 0 or 1. Received: 2.0."):
        model.fit([(dense, ids, label * 2)])
    model.fit([(dense, ids, label)])
    with pytest.raises(DataError, match=r"`dense` must have shape \[10, 2\]. Received: \[10, 1\]."):
        model.predict(dense[:, :1], ids)
