"""Usage of table rows, counted and measured by hand and by other libraries."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.stats import spearmanr

from tfdlrm.models.dlrm import DLRM
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.training.table_usage import QUANTILES, count_reads, table_usage, usage_of_tables

RNG = np.random.default_rng(2)
SPEC = FeatureSpec(
    dense=[{"name": "x"}],
    sparse=[
        {"name": "a", "table": "items"},
        {"name": "b", "table": "items", "hotness": 2},
        {"name": "c", "table": "c"},
    ],
    tables=[{"name": n, "vocabulary_size": v, "embedding_dim": 4} for n, v in (("items", 30), ("c", 5))],
)


def test_reads_are_counted_by_table_and_padding_is_not():
    batches = [({"sparse": RNG.integers(-1, [30, 30, 30, 5], (n, 4)).astype(np.int32)}, None) for n in (40, 1, 17)]
    done = []
    reads = count_reads(SPEC, batches, done.append)
    ids = np.concatenate([batch[0]["sparse"] for batch in batches])
    for name, columns in (("items", slice(0, 3)), ("c", slice(3, 4))):
        expected = Counter(ids[:, columns].reshape(-1).tolist())
        del expected[-1]
        assert {row: n for row, n in enumerate(reads[name].tolist()) if n} == dict(expected)
    assert done == [40, 1, 17]


def test_figures_of_a_table_are_numpys():
    rows, used = 350, 240
    reads = np.zeros(rows, np.int64)
    reads[RNG.permutation(rows)[:used]] = RNG.zipf(1.5, used).clip(max=10_000)
    vectors = (RNG.normal(size=(rows, 6)) * np.log1p(reads)[:, None] + 0.1).astype(np.float32)
    usage = table_usage("t", vectors, reads)
    norms = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1))
    assert (usage.rows, usage.dim, usage.used, usage.reads) == (rows, 6, used, reads.sum())
    assert usage.norm_mean == pytest.approx(norms.mean(), rel=1e-6)
    assert usage.norm_quantiles == pytest.approx(np.quantile(norms, QUANTILES), rel=1e-6)
    assert usage.norm_used == pytest.approx(norms[reads > 0].mean(), rel=1e-6)
    assert usage.norm_unused == pytest.approx(norms[reads == 0].mean(), rel=1e-6)
    assert usage.top_share == pytest.approx(np.sort(reads)[-4:].sum() / reads.sum())  # 1% of 350 rows: 4
    assert usage.correlation == pytest.approx(spearmanr(reads[reads > 0], norms[reads > 0]).statistic, rel=1e-6)
    assert [group.rows for group in usage.deciles] == [24] * 10
    ranked = np.sort(reads)[::-1]
    assert [group.most for group in usage.deciles] == ranked[:240:24].tolist()
    assert [group.least for group in usage.deciles] == ranked[23:240:24].tolist()
    assert sum(group.share for group in usage.deciles) == pytest.approx(1)
    assert np.mean([group.norm for group in usage.deciles]) == pytest.approx(usage.norm_used)
    ranks, means, _ = np.array(usage.curve).T
    assert (np.diff(ranks) > 0).all() and ranks[0] >= 1 and ranks[-1] <= used
    assert (np.diff(means) <= 0).all() and means[0] == ranked[0]


@pytest.mark.parametrize("used", [0, 1, 7])
def test_tables_of_hardly_any_use(used):
    reads = np.zeros(20, np.int64)
    reads[:used] = 3
    usage = table_usage("t", np.ones([20, 4], np.float32), reads)
    assert (usage.used, len(usage.deciles)) == (used, min(used, 10))
    assert np.isnan(usage.correlation)  # all norms are the same
    assert np.isnan(usage.norm_used) == (used == 0)
    assert len(usage.curve) == used
    assert usage.norm_unused == 2.0


def test_every_table_of_a_model_is_told():
    model = DLRM(SPEC, bottom_units=(8, 4), top_units=(8, 1), seed=3)
    model.build()
    reads = {"items": RNG.integers(0, 9, 30), "c": np.zeros(5, np.int64)}
    usages = usage_of_tables(model, reads)
    assert [(usage.table, usage.rows, usage.reads) for usage in usages] == [
        ("items", 30, reads["items"].sum()),
        ("c", 5, 0),
    ]
    norms = np.linalg.norm(model.embedding.get_table("items"), axis=1)
    assert usages[0].norm_mean == pytest.approx(norms.mean(), rel=1e-6)
    # A table that was not read from the rows has norms, and nothing that follows from reads.
    (unknown, _) = usage_of_tables(model, {"items": np.zeros(31, np.int64)})
    assert unknown.used is None and unknown.norm_mean == usages[0].norm_mean
    assert unknown.as_dict()["deciles"] == ()


def test_reads_of_another_table_are_refused():
    with pytest.raises(ValueError, match=r"`reads` must have shape \[3\]. Received: \[4\]."):
        table_usage("t", np.ones([3, 2], np.float32), np.ones(4, np.int64))
