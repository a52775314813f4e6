"""Ids of combinations: the hash in Python's own integers, bags, padding, weights."""

from itertools import product

import numpy as np
import pytest
import tensorflow as tf

from tfdlrm.layers.crossing import crossed_ids, crossed_weights
from tfdlrm.spec.features import FeatureSpec

RNG = np.random.default_rng(0)
SPEC = FeatureSpec(
    sparse=[
        {"name": "a", "table": "t"},
        {"name": "b", "table": "t", "hotness": 3, "weighted": True},
        {"name": "c", "table": "u", "hotness": 2, "combiner": "mean"},
    ],
    tables=[{"name": name, "vocabulary_size": 2**40, "embedding_dim": 4} for name in "tu"],
)


def combinations(cross, row):
    bags = [row[slice(*SPEC.id_columns[name])] for name in cross]
    return [tuple(map(int, ids)) for ids in product(*bags)]


def hashed(ids, rows):
    if -1 in ids:
        return -1
    total = 0
    for one in ids:
        total = ((total ^ (one + 1)) * 0x9E3779B97F4A7C15) % 2**64
        total ^= total >> 32
    return total % rows


@pytest.mark.parametrize("cross", [("a", "b"), ("b", "a"), ("c", "a", "b")])
@pytest.mark.parametrize(("dtype", "top"), [(np.int32, 2**31 - 1), (np.int64, 2**40)])
def test_hashes_of_all_combinations(cross, dtype, top):
    ids = RNG.integers(-1, top, (20, SPEC.n_ids)).astype(dtype)
    ids[RNG.random(ids.shape) < 0.2] = -1
    expected = [[hashed(each, 97) for each in combinations(cross, row)] for row in ids]
    np.testing.assert_array_equal(crossed_ids(SPEC, cross, tf.constant(ids), 97), expected)
    assert SPEC.crosses_spec([cross], 97).n_ids == len(expected[0])


def test_combinations_spread_over_the_rows():
    grid = np.array([[i, j] for i in range(100) for j in range(100)], np.int32)
    ids = np.concatenate([grid[:, :1], np.full([10_000, 3], -1, np.int32), grid[:, 1:], grid[:, 1:]], axis=1)
    counts = np.bincount(crossed_ids(SPEC, ("a", "c"), tf.constant(ids), 100).numpy()[:, 0], minlength=100)
    # As even as a random choice: the sum has mean 99 and standard deviation 14.
    assert (((counts - 100) ** 2) / 100).sum() < 99 + 5 * 14
    assert counts.size == 100


def test_weights_multiply_where_a_feature_has_them():
    weights = RNG.random((5, SPEC.n_ids)).astype(np.float32)
    result = crossed_weights(SPEC, ("a", "b", "c"), tf.constant(weights))
    expected = [[b for b in row[1:4] for _ in range(2)] for row in weights]  # a and c have none
    np.testing.assert_allclose(result, expected)


def test_spec_of_combinations():
    spec = SPEC.crosses_spec([("a", "b"), ("a", "c")], 50)
    assert [(f.name, f.hotness, f.combiner, f.weighted) for f in spec.sparse] == [
        ("a x b", 3, "sum", True),
        ("a x c", 2, "mean", False),
    ]
    assert {(t.vocabulary_size, t.embedding_dim, t.initializer) for t in spec.tables} == {(50, 1, "zeros")}
