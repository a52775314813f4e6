"""Tables in fewer bytes: what a row holds, what a lookup gives, and what an export with them is and answers."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import tensorflow as tf

from tests.export.specs import mixed_features, spec_of
from tests.layers.compressed import oracle, parts_of
from tfdlrm.distribute.tpu_embedding import TPUEmbeddingCollection
from tfdlrm.export import quantized
from tfdlrm.export.ops import foreign_ops, ops_of
from tfdlrm.export.quantized import PackedRows, pack_rows, packed_width, quantized_tables
from tfdlrm.export.saved_model import ExportRecord, export_model
from tfdlrm.export.serving_rows import serving_rows
from tfdlrm.layers.embedding import EmbeddingCollection
from tfdlrm.models.build import build
from tfdlrm.models.dlrm import DLRM
from tfdlrm.spec.config import ModelConfig
from tfdlrm.spec.errors import ConfigError, DataError
from tfdlrm.spec.features import FeatureSpec

FORMS = ("float16", "int8", "int4")
TOP = {"int8": 255, "int4": 15}


def decoded(packed: np.ndarray, form: str, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scale and offset of packed rows, by `struct` and shifts in Python."""
    codes, line = packed[:, :-4], np.frombuffer(packed[:, -4:].tobytes(), "<f2").reshape(-1, 2).astype(np.float64)
    if form == "int4":
        codes = np.array([[b % 16 for b in row] + [b // 16 for b in row] for row in codes.tolist()])[:, :width]
    return codes.astype(np.float64), line[:, :1], line[:, 1:]


def looked_up(rows: np.ndarray, form: str, unit: float = 1.0) -> np.ndarray:
    table = PackedRows(tf.Variable(pack_rows(rows, form)), form, rows.shape[1], unit)
    return table.look_up(tf.range(len(rows))).numpy()


def rows_of(width: int) -> np.ndarray:
    """Rows of every size and shape that float16 scale and offset must cope with."""
    rng = np.random.default_rng(width)
    kinds = [rng.standard_normal((40, width)), rng.standard_t(2, (40, width)), rng.uniform(0, 1, (40, width))]
    kinds += [5 + 1e-3 * rng.standard_normal((20, width)), rng.standard_normal((20, width)) * 4000]
    kinds += [np.eye(width)[:5] * 9, -np.eye(width)[:5], rng.standard_normal((20, width)) * 1e-3]
    return np.clip(np.concatenate(kinds), -(2**14), 2**14).astype(np.float32)


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("width", [1, 2, 3, 7, 16, 64])
def test_lookups_are_scale_times_code_plus_offset_and_no_worse_than_least_to_greatest(form, width):
    rows = rows_of(width)
    packed = pack_rows(rows, form)
    assert packed.shape == (len(rows), packed_width(form, width)) and packed.dtype == np.uint8
    codes, scale, offset = decoded(packed, form, width)
    np.testing.assert_allclose(looked_up(rows, form), scale * codes + offset, rtol=1e-6, atol=1e-6)
    assert codes.min() >= 0 and codes.max() <= TOP[form]
    # The plain rule in exact arithmetic: equal steps from the least to the greatest value. What half precision adds
    # is less than one unit in the last place of scale (times the codes) and of offset.
    least, greatest = rows.min(1, keepdims=True).astype(float), rows.max(1, keepdims=True).astype(float)
    step = (greatest - least) / TOP[form] * (1 + 2**-9) + (np.abs(least) * 2**-9 + 2**-23) / TOP[form] + 2**-23
    errors = np.sqrt(np.square(scale * codes + offset - rows).sum(1))
    assert (errors <= np.sqrt(width) * step[:, 0] / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize(("form", "most"), [("int8", 0.88), ("int4", 0.87)])
def test_fitting_lowers_the_squared_error(form, most):
    rows = np.random.default_rng(0).standard_normal((5000, 16)).astype(np.float32)
    least, greatest = rows.min(1, keepdims=True).astype(float), rows.max(1, keepdims=True).astype(float)
    step = (greatest - least) / TOP[form]
    plain = least + step * np.rint((rows - least) / step)
    ratio = np.square(looked_up(rows, form) - rows).sum() / np.square(plain - rows).sum()
    assert 0.7 < ratio < most


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_rows_of_one_value_keep_it_and_zeros_stay_zeros(form):
    values = np.array([0.0, -0.0, 1.0, -2.5, 0.1, 1e-7, 2.0**14, -(2.0**14)], np.float32)
    rows = np.repeat(values[:, None], 5, axis=1)
    found = looked_up(rows, form)
    assert (found[:2] == 0).all()
    exact = values.astype(np.float16).astype(np.float32) == values
    assert exact.sum() == 6
    np.testing.assert_array_equal(found[exact], rows[exact])
    np.testing.assert_allclose(found[~exact], rows[~exact], rtol=2**-11, atol=2**-25)


def fill(collection, seed: int = 3, scale: float = 1.0) -> None:
    rng = np.random.default_rng(seed)
    for table in collection.spec.tables:
        for part in collection.spec.stored(table.name):
            values = scale * rng.standard_normal((part.rows, part.dim))
            collection.set_part(table.name, part.part, values.astype(np.float32))


class OneCollection:
    """As much of a model as `quantized_tables` needs."""

    def __init__(self, spec: FeatureSpec, scale: float = 1.0) -> None:
        self.layer = EmbeddingCollection(spec, seed=1)
        self.layer.build(None)
        fill(self.layer, scale=scale)
        self.collections = {"embedding": self.layer}


@pytest.mark.parametrize(
    ("width", "form", "row_bytes", "ratio"),
    [
        (16, "float16", 32, 0.5),
        (16, "int8", 20, 0.3125),
        (16, "int4", 12, 0.1875),
        (64, "int8", 68, 0.265625),
        (64, "int4", 36, 0.140625),
        (7, "int4", 8, 8 / 28),
        (4, "int8", 8, 0.5),  # float16 is as small, and more exact
        (3, "int8", 6, 0.5),
        (3, "int4", 6, 0.5),
        (1, "int8", 2, 0.5),
        (1, "int4", 2, 0.5),
    ],
)
def test_bytes_of_the_written_variables(tmp_path, width, form, row_bytes, ratio):
    spec = spec_of([{"vocabulary_size": 500, "embedding_dim": width}])
    model = DLRM(spec, bottom_units=(width,), top_units=(1,), seed=1)
    model.build()
    path = export_model(model, None, tmp_path, oov_rows={"t0": 1}, tables=form)
    variables = tf.train.load_checkpoint(str(path / "variables" / "variables"))
    sizes = {
        name: np.prod(shape) * variables.get_variable_to_dtype_map()[name].size
        for name, shape in variables.get_variable_to_shape_map().items()
        if shape[:1] == [501]  # the table and its row for padding
    }
    assert list(sizes.values()) == [501 * row_bytes]
    with quantized_tables(model, form) as size:
        assert size == (501 * width * 4, 501 * row_bytes)
        assert size.stored / size.float32 == pytest.approx(ratio)
    record = ExportRecord.from_json((path / "assets.extra" / "tfdlrm.json").read_text())
    assert record.tables == form
    assert json.loads((path / "assets.extra" / "tfdlrm.json").read_text())["tables"] == form


OPERATIONS = (None, "mult", "add", "concat")


def every_kind() -> FeatureSpec:
    kinds = itertools.product((False, True), OPERATIONS, ((None, "float32"), (6, "bfloat16"), (5, "float16")))
    tables = [
        {
            "vocabulary_size": 40 + number,
            "embedding_dim": 8,
            "compression": {
                **({"hash_rows": 12, "exact_rows": 3} if hash_ else {}),
                "quotient_remainder": operation and {"operation": operation},
                "dim": 6 if dim == 5 and operation == "concat" else dim,
                "dtype": dtype,
            },
        }
        for number, (hash_, operation, (dim, dtype)) in enumerate(kinds)
    ]
    return spec_of(tables, mixed_features(len(tables), weighted_every=5))


def parts_inside(collection) -> dict:
    """All parts as they are read inside a block, float64, by the stand-in's own rows."""
    holders = [*collection.plan, *(stack for stack in collection.plan if stack.weight_rows)]
    parts = {
        (table.name, part.part): collection.get_part(table.name, part.part).astype(np.float64)
        for table in collection.spec.tables
        for part in collection.spec.stored(table.name)
    }
    for number, (stack, source) in enumerate(zip(holders, collection.stand_in(), strict=True)):
        for (name, part), first in stack.first_rows.items():
            if (part == "pooling_weight") == (number >= len(collection.plan)):
                rows = first + np.arange(len(parts[name, part]))
                parts[name, part] = source.look_up(tf.constant(rows)).numpy().astype(np.float64)
    return {key: tf.constant(value) for key, value in parts.items()}


@pytest.mark.parametrize("form", FORMS)
def test_every_kind_of_table_pools_its_own_rows_in_the_other_form(form):
    spec = every_kind()
    model = OneCollection(spec)
    rng = np.random.default_rng(1)
    ids = rng.integers(-1, 40, (11, spec.n_ids))
    ids[3] = -1
    weights = rng.uniform(0.5, 2, ids.shape).astype(np.float32)
    before = parts_of(model.layer)
    plain = model.layer(tf.constant(ids), tf.constant(weights)).numpy()
    with quantized_tables(model, form) as size:
        found = model.layer(tf.constant(ids), tf.constant(weights)).numpy()
        parts = parts_inside(model.layer)
    for key, values in before.items():
        span = np.ptp(values, axis=1).max() / {"float16": 1000, **TOP}[form] + 0.002 * np.abs(values).max()
        assert np.abs(parts[key].numpy() - values).max() <= span, key
    np.testing.assert_allclose(found, oracle(spec, parts, ids, weights), rtol=1e-4, atol=1e-4)
    assert (found[3] == 0).all()
    assert np.abs(found - plain).max() > 1e-4
    assert size.stored < size.float32
    for key, values in parts_of(model.layer).items():
        np.testing.assert_array_equal(before[key], values)
    np.testing.assert_array_equal(model.layer(tf.constant(ids), tf.constant(weights)), plain)


def test_tables_in_half_precision_stay_as_they_are_unless_the_form_is_smaller():
    table = {"vocabulary_size": 30, "embedding_dim": 16, "compression": {"dtype": "bfloat16"}}
    narrow = {**table, "embedding_dim": 4}
    model = OneCollection(spec_of([table, narrow]))
    sizes = {}
    for form in ("float32", *FORMS):
        with quantized_tables(model, form) as size:
            sizes[form] = size
    assert sizes["float32"] == sizes["float16"] == (31 * 20 * 4, 31 * 20 * 2)
    assert sizes["int8"].stored == 31 * (20 + 8) and sizes["int4"].stored == 31 * (12 + 6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [1e-25, 1e-15, 1e-6, 1e6, 1e30])
def test_values_beyond_half_precision_keep_their_digits(form, scale):
    model = OneCollection(spec_of([{"vocabulary_size": 50, "embedding_dim": 16}]), scale)
    ids = tf.range(50)[:, tf.newaxis]
    rows = model.layer(ids).numpy()
    with quantized_tables(model, form):
        found = model.layer(ids).numpy()
    assert np.abs(found - rows).max() < 5.5 * scale * {"float16": 2**-12, "int8": 1 / 255, "int4": 1 / 15}[form]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_table(value):
    model = OneCollection(spec_of([{"vocabulary_size": 50, "embedding_dim": 16}]))
    rows = model.layer.get_table("t0")
    rows[7, 3] = value
    model.layer.set_table("t0", rows)
    with pytest.raises(DataError, match="tables must be finite .* Received: t0"), quantized_tables(model, "int8"):
        pass
    assert model.layer.stand_in is None


def test_tables_that_are_looked_up_by_others_are_refused(tmp_path):
    spec = spec_of([{"vocabulary_size": 50, "embedding_dim": 16}])
    model = OneCollection(spec)
    model.layer = TPUEmbeddingCollection(spec, {"name": "sgd"})
    model.collections = {"embedding": model.layer}
    model.layer.build((None, spec.n_ids))
    plain = model.layer(tf.constant([[3]])).numpy()
    with (
        pytest.raises(ConfigError, match='`tables` must be "float32" .* `TPUEmbedding` looks up. Received: "int8"'),
        quantized_tables(model, "int8"),
    ):
        pass
    with quantized_tables(model, "float32"):
        np.testing.assert_array_equal(model.layer(tf.constant([[3]])), plain)


def test_chunks_do_not_show(monkeypatch):
    model = OneCollection(spec_of([{"vocabulary_size": 50, "embedding_dim": 16}]))
    ids = tf.range(50)[:, tf.newaxis]
    with quantized_tables(model, "int4"):
        whole = model.layer(ids).numpy()
    monkeypatch.setattr(quantized, "_CHUNK_ELEMENTS", 7 * 16)
    with quantized_tables(model, "int4"):
        np.testing.assert_array_equal(model.layer(ids), whole)


def test_blocks_nest_and_end_with_an_error():
    model = OneCollection(spec_of([{"vocabulary_size": 50, "embedding_dim": 16}]))
    ids = tf.range(50)[:, tf.newaxis]
    plain = model.layer(ids).numpy()
    with pytest.raises(KeyboardInterrupt), quantized_tables(model, "int8"):
        outer, stand_in = model.layer(ids).numpy(), model.layer.stand_in
        with quantized_tables(model, "int8"):
            assert model.layer.stand_in is stand_in
        with quantized_tables(model, "float32"):
            np.testing.assert_array_equal(model.layer(ids), plain)
        with quantized_tables(model, "int4"):
            assert np.abs(model.layer(ids) - outer).max() > 0
        np.testing.assert_array_equal(model.layer(ids), outer)
        raise KeyboardInterrupt
    np.testing.assert_array_equal(model.layer(ids), plain)


@pytest.mark.parametrize("form", FORMS)
def test_no_operation_has_the_shape_of_a_table(form):
    """A lookup reads the rows of a batch: nothing in the graph but the table itself has its height."""
    model = OneCollection(spec_of([{"vocabulary_size": 7919, "embedding_dim": 16}]))
    with quantized_tables(model, form):
        graph = tf.function(model.layer).get_concrete_function(tf.TensorSpec([5, 1], tf.int32)).graph
    graphs = [graph, *(f.graph for f in graph._functions.values() if hasattr(f, "graph"))]
    shapes = [output.shape for one in graphs for op in one.get_operations() for output in op.outputs]
    assert len(shapes) > 10
    assert all(7920 not in shape for shape in shapes if shape.rank is not None)
    assert [op.type for op in graph.get_operations()].count("ResourceGather") == 1
    assert "ReadVariableOp" not in {op.type for op in graph.get_operations()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["dlrm", "dcn_v2", "wide_deep", "deepfm", "factorization_machine"])
def test_models_answer_through_the_version_1_loader_what_they_predict_inside_the_block(tmp_path, served, name, form):
    tables = [{"vocabulary_size": 60, "embedding_dim": 5}, {"vocabulary_size": 45, "embedding_dim": 5}]
    spec = spec_of(tables, [{"hotness": 2}, {}])
    model = build(name, spec, ModelConfig(name=name, embedding_dim=5, bottom_units=(5,), top_units=(4, 1)), seed=1)
    model.build()
    for collection in model.collections.values():
        fill(collection, scale=0.5)
    rng = np.random.default_rng(1)
    batch = {"dense": rng.normal(size=(9, 1)).astype(np.float32), "sparse": rng.integers(-1, 45, (9, 3))}
    tensors = {key: tf.constant(value) for key, value in batch.items()}
    plain = model(tensors).numpy()
    with quantized_tables(model, form):
        expected = model(tensors).numpy()
    assert np.abs(expected - plain).max() > 1e-6
    path = export_model(model, None, tmp_path, oov_rows={"t0": 1, "t1": 0}, tables=form)
    inputs = {key: batch[key] for key in ("dense", "sparse")}
    np.testing.assert_allclose(served(path)("serve_ids", **inputs), expected, atol=1e-6)
    np.testing.assert_array_equal(model(tensors), plain)
    assert foreign_ops(ops_of(path)) == ()


def test_all_signatures_read_the_tables_with_the_rows_that_are_served(tmp_path, world, served, serialize):
    untouched = {"tag": [1], "ad": [1, 2]}
    with serving_rows(world.model, untouched), quantized_tables(world.model, "int4"):
        expected = world.answers()
    path = export_model(world.model, world.encoder, tmp_path, untouched_rows=untouched, tables="int4")
    answers, rows = served(path), world.rows
    examples = [serialize(dict(zip(rows, values, strict=True))) for values in zip(*rows.values(), strict=True)]
    assert np.abs(expected - world.answers()).max() > 1e-3
    np.testing.assert_allclose(answers("serving_default", **rows), expected, atol=1e-6)
    np.testing.assert_allclose(answers("tf_examples", examples=np.array(examples, object)), expected, atol=1e-6)
    np.testing.assert_allclose(answers("serve_ids", **world.batch), expected, atol=1e-6)
