import itertools

import numpy as np
import pytest
import tensorflow as tf

from tfdlrm.export.ops import foreign_ops, ops_of
from tfdlrm.export.saved_model import export_model
from tfdlrm.export.serving_rows import serving_rows
from tfdlrm.models.dlrm import DLRM
from tfdlrm.spec.features import FeatureSpec

OPERATIONS = (None, "mult", "add", "concat")


def model_of(compressions):
    tables = [
        {"name": f"t{i}", "vocabulary_size": 40 + i, "embedding_dim": 4, "compression": compression}
        for i, compression in enumerate(compressions)
    ]
    features = [
        {"name": f"f{i}", "table": f"t{i}", "hotness": 1 + i % 3, "learned_weights": i % 2 == 0}
        for i in range(len(tables))
    ]
    spec = FeatureSpec(dense=[{"name": "x"}], sparse=features, tables=tables)
    model = DLRM(spec, bottom_units=(4,), top_units=(4, 1), seed=1)
    model.build()
    rng = np.random.default_rng(3)
    for table in spec.tables:
        for part in spec.stored(table.name):
            model.embedding.set_part(table.name, part.part, rng.standard_normal((part.rows, part.dim)))
    return model


def test_every_kind_of_table_answers_through_the_version_1_loader(tmp_path, served):
    kinds = itertools.product((False, True), OPERATIONS, ((None, "float32"), (2, "bfloat16"), (2, "float16")))
    model = model_of(
        [
            {
                **({"hash_rows": 12, "exact_rows": 3} if hash_ else {}),
                "quotient_remainder": operation and {"operation": operation},
                "dim": dim,
                "dtype": dtype,
            }
            for hash_, operation, (dim, dtype) in kinds
        ]
    )
    names = [table.name for table in model.spec.tables]
    path = export_model(model, None, tmp_path, oov_rows={name: 1 for name in names})
    rng = np.random.default_rng(1)
    batch = {
        "dense": rng.normal(size=(9, 1)).astype(np.float32),
        "sparse": rng.integers(-1, 40, (9, model.spec.n_ids)),
    }
    expected = model({name: tf.constant(value) for name, value in batch.items()})
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(served(path)("serve_ids", **batch), expected, atol=1e-6)
    assert foreign_ops(ops_of(path)) == ()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rows_that_one_id_alone_reads_are_the_mean_inside_the_block(dtype):
    model = model_of(
        [
            {"dtype": dtype, "dim": 2},
            {"dtype": dtype, "hash_rows": 12, "exact_rows": 5},
            {"dtype": dtype, "quotient_remainder": {}},
        ]
    )
    parts = [("t0", "rows"), ("t1", "rows"), ("t2", "quotient"), ("t2", "remainder"), ("t0", "pooling_weight")]
    before = {key: model.embedding.get_part(*key) for key in parts}
    untouched = [1, 4, 30]
    with serving_rows(model, {"t0": untouched, "t1": untouched, "t2": untouched}):
        inside = {key: model.embedding.get_part(*key) for key in parts}
    tolerance = {"float32": 1e-6, "bfloat16": 2**-8, "float16": 2**-10}[dtype]
    for key, replaced in ((("t0", "rows"), untouched), (("t1", "rows"), [1, 4])):
        expected = before[key].copy()
        expected[replaced] = np.delete(before[key], replaced, 0).mean(0, dtype=np.float64)
        np.testing.assert_allclose(inside[key], expected, rtol=tolerance, atol=1e-6)
        assert (inside[key][replaced] != before[key][replaced]).any()
    for key in parts[2:]:
        np.testing.assert_array_equal(inside[key], before[key])
    for key in parts:
        np.testing.assert_array_equal(model.embedding.get_part(*key), before[key])
