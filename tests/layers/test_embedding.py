import numpy as np
import pytest
import tensorflow as tf

from tests.layers.contract import check_layer_contract
from tfdlrm.layers.embedding import EmbeddingCollection
from tfdlrm.spec.errors import SpecError
from tfdlrm.spec.features import FeatureSpec

RNG = np.random.default_rng(0)


def make_spec(features, tables, **extra):
    return FeatureSpec(
        sparse=[{"name": n, "table": t, "hotness": h, "combiner": c, **extra} for n, t, h, c in features],
        tables=[{"name": n, "vocabulary_size": v, "embedding_dim": d} for n, v, d in tables],
    )


MIXED = make_spec(
    [("a", "x", 1, "sum"), ("b", "y", 3, "sum"), ("c", "x", 2, "mean"), ("d", "z", 1, "mean"), ("e", "w", 4, "mean")],
    [("x", 11, 4), ("y", 7, 4), ("z", 5, 4), ("w", 9, 4)],
)


def random_ids(spec, batch, padding=0.3):
    columns = []
    for feature in spec.sparse:
        ids = RNG.integers(0, spec.table_of(feature).vocabulary_size, (batch, feature.hotness))
        columns.append(np.where(RNG.random(ids.shape) < padding, -1, ids))
    return np.concatenate(columns, axis=1)


def oracle(spec, tables, ids, weights=None):
    """Look up and pool with NumPy loops, one bag at a time."""
    out = np.zeros((len(ids), len(spec.sparse), spec.tables[0].embedding_dim))
    for f, feature in enumerate(spec.sparse):
        start, stop = spec.id_columns[feature.name]
        for row in range(len(ids)):
            total = 0.0
            for column in range(start, stop):
                if ids[row, column] >= 0:
                    weight = 1.0 if weights is None else weights[row, column]
                    out[row, f] += weight * tables[feature.table][ids[row, column]]
                    total += weight
            if feature.combiner == "mean" and total:
                out[row, f] /= total
    return out


def tables_of(layer):
    return {t.name: layer.get_table(t.name) for t in layer.spec.tables}


def test_contract(tmp_path):
    config = {"spec": MIXED.model_dump(mode="json"), "seed": 1}
    check_layer_contract(
        EmbeddingCollection, config, random_ids(MIXED, 6), tmp_path, compute_dtype_follows_policy=False
    )


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_matches_numpy_with_padding_empty_bags_and_shared_tables(dtype):
    layer = EmbeddingCollection(MIXED, seed=2)
    ids = random_ids(MIXED, 50).astype(dtype)
    ids[0] = -1
    out = layer(ids).numpy()
    np.testing.assert_allclose(out, oracle(MIXED, tables_of(layer), ids), rtol=1e-5, atol=1e-7)
    assert not out[0].any()


def test_weights_scale_and_average():
    spec = make_spec([("a", "x", 3, "sum"), ("b", "y", 2, "mean")], [("x", 11, 4), ("y", 7, 4)], weighted=True)
    layer = EmbeddingCollection(spec, seed=2)
    ids = random_ids(spec, 20)
    weights = RNG.random(ids.shape).astype(np.float32) + 0.1
    expected = oracle(spec, tables_of(layer), ids, weights)
    np.testing.assert_allclose(layer(ids, weights=tf.constant(weights)), expected, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="`weights` must be given exactly where"):
        layer(ids)


def test_gradient_is_sparse_sums_duplicates_and_spares_padding():
    spec = make_spec([("a", "x", 3, "sum")], [("x", 6, 2)])
    layer = EmbeddingCollection(spec, seed=2)
    ids = np.array([[0, 0, -1], [5, 0, -1]])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(ids) * tf.constant([[[1.0, 2.0]], [[10.0, 20.0]]]))
    gradient = tape.gradient(loss, layer.stacks[0])
    assert isinstance(gradient, tf.IndexedSlices)
    dense = np.zeros([7, 2])
    np.add.at(dense, gradient.indices.numpy(), gradient.values.numpy())
    expected = np.zeros([7, 2])
    expected[0], expected[5] = [1 + 1 + 10, 2 + 2 + 20], [10, 20]
    np.testing.assert_array_equal(dense, expected)


def test_tables_round_trip_and_are_apart():
    layer = EmbeddingCollection(MIXED, seed=3)
    values = {t.name: RNG.normal(size=(t.vocabulary_size, 4)).astype(np.float32) for t in MIXED.tables}
    for name, rows in values.items():
        layer.set_table(name, rows)
    for name, rows in values.items():
        np.testing.assert_array_equal(layer.get_table(name), rows)
    with pytest.raises(ValueError, match=r"`rows` of table `x` must have shape \(11, 4\). Received: \(3, 4\)"):
        layer.set_table("x", np.zeros([3, 4]))
    with pytest.raises(SpecError, match="must be a table of the spec. Received: `q`"):
        layer.get_table("q")


def test_initial_rows_are_uniform_in_the_papers_bounds():
    spec = make_spec([("a", "x", 1, "sum"), ("b", "y", 1, "sum")], [("x", 40_000, 8), ("y", 3, 8)])
    layer = EmbeddingCollection(spec, seed=4)
    layer.build(None)
    rows = layer.get_table("x")
    bound = 40_000**-0.5
    assert np.abs(rows).max() <= bound
    assert rows.var() == pytest.approx(bound**2 / 3, rel=0.02)
    assert abs(rows.mean()) < bound / 100
    assert np.abs(layer.get_table("y")).max() <= 3**-0.5


def test_initial_rows_do_not_depend_on_stacking():
    alone = make_spec([("a", "x", 1, "sum")], [("x", 50, 4)])
    beside = make_spec([("a", "x", 1, "sum"), ("b", "y", 1, "sum")], [("x", 50, 4), ("y", 9, 4)])
    first, second = EmbeddingCollection(alone, seed=7), EmbeddingCollection(beside, seed=7)
    first.build(None)
    second.build(None)
    np.testing.assert_array_equal(first.get_table("x"), second.get_table("x"))


def test_many_tables_are_few_variables():
    n = 26
    spec = make_spec([(f"f{i}", f"t{i}", 1, "sum") for i in range(n)], [(f"t{i}", 10 + i, 4) for i in range(n)])
    layer = EmbeddingCollection(spec, seed=1)
    layer.build(None)
    assert len(layer.stacks) == 4
    ids = random_ids(spec, 8)
    np.testing.assert_allclose(layer(ids), oracle(spec, tables_of(layer), ids), rtol=1e-6)


def test_tables_of_different_width_come_as_a_list():
    spec = make_spec([("a", "x", 1, "sum"), ("b", "y", 2, "sum"), ("c", "x", 1, "sum")], [("x", 5, 2), ("y", 6, 3)])
    layer = EmbeddingCollection(spec, seed=1)
    ids = np.array([[1, 2, 3, 4]])
    out = layer(ids)
    x, y = layer.get_table("x"), layer.get_table("y")
    for got, expected in zip(out, [x[[1]], y[[2]] + y[[3]], x[[4]]], strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_ragged_sparse_and_dense_bags():
    spec = make_spec([("a", "x", 3, "sum"), ("b", "y", 2, "mean")], [("x", 11, 4), ("y", 7, 4)])
    layer = EmbeddingCollection(spec, seed=2)
    ragged = tf.ragged.constant([[1, 2], [], [3, 4, 5]], dtype=tf.int64)
    dense = tf.constant([[1, -1], [2, 3], [-1, -1]], tf.int64)
    matrix = np.array([[1, 2, -1, 1, -1], [-1, -1, -1, 2, 3], [3, 4, 5, -1, -1]])
    expected = layer(matrix)
    np.testing.assert_allclose(layer({"a": ragged, "b": dense}), expected)
    np.testing.assert_allclose(layer({"a": ragged.to_sparse(), "b": dense}), expected)
    with pytest.raises(tf.errors.InvalidArgumentError, match="bags of feature `b` must hold at most 2 ids"):
        layer({"a": ragged, "b": ragged})
    with pytest.raises(ValueError, match="`inputs` must have the features"):
        layer({"a": ragged})


@pytest.mark.parametrize("bad", [7, -2, 10**6])
@pytest.mark.parametrize("in_graph", [False, True])
def test_foreign_ids_name_feature_and_id(bad, in_graph):
    spec = make_spec([("user", "x", 1, "sum"), ("item", "y", 1, "sum")], [("x", 11, 4), ("y", 7, 4)])
    layer = EmbeddingCollection(spec, seed=2)
    layer.build(None)
    call = tf.function(layer) if in_graph else layer
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"(?s)must be -1 or a row.*item.*{bad}"):
        call(tf.constant([[3, 4], [3, bad]]))


def test_l2_is_the_mean_over_the_batch():
    layer = EmbeddingCollection(MIXED, l2=0.5, seed=2)
    ids = random_ids(MIXED, 10)
    layer(ids)
    tables = tables_of(layer)
    total = sum(
        (tables[f.table][i] ** 2).sum()
        for f in MIXED.sparse
        for i in ids[:, slice(*MIXED.id_columns[f.name])].ravel()
        if i >= 0
    )
    assert float(layer.losses[0]) == pytest.approx(0.5 * total / 10, rel=1e-5)


def test_dense_bags_of_another_width_are_refused():
    spec = make_spec([("a", "x", 2, "sum"), ("b", "y", 1, "sum")], [("x", 11, 4), ("y", 7, 4)])
    layer = EmbeddingCollection(spec, seed=2)
    assert layer({"a": tf.constant([[1, 2]]), "b": tf.constant([3])}).shape == (1, 2, 4)
    with pytest.raises(ValueError, match=r"bags of feature `a` must have shape \[B, 2\]"):
        layer({"a": tf.constant([[1, 2, 3, 4]]), "b": tf.constant([3, 3])})


def test_bad_arguments():
    with pytest.raises(ValueError, match="`spec` must have at least one sparse feature"):
        EmbeddingCollection(FeatureSpec(dense=[{"name": "a"}]))
    with pytest.raises(ValueError, match="`l2` must be at least 0. Received: -1"):
        EmbeddingCollection(MIXED, l2=-1)
    with pytest.raises(ValueError, match="`inputs` must have 11 id columns"):
        EmbeddingCollection(MIXED)(np.zeros([2, 3], np.int32))
