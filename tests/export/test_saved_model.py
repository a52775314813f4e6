from __future__ import annotations

import json
import resource
import signal
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tensorflow as tf
import tf_keras as keras

from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.data.vocabulary_builder import VocabularyBuilder
from tfdlrm.export.saved_model import ExportRecord, export_model
from tfdlrm.export.serving_rows import serving_rows
from tfdlrm.models.probability import probability_function
from tfdlrm.spec.coding import Encoding, FeatureCoding, TableCoding
from tfdlrm.spec.config import RunConfig
from tfdlrm.spec.errors import ConfigError, DataError, DiskFullError, SpecError
from tfdlrm.spec.features import DenseFeature, FeatureSpec, SparseFeature, TableConfig
from tfdlrm.training.optimizers import DLRMOptimizer
from tfdlrm.training.row_optimizers import RowWiseAdagrad

ROOT = Path(__file__).resolve().parents[2]
STRINGS = ("ad", "ad_before", "device", "site", "tags")
NUMBERS = ("age", "hour", "price", "rank")


def examples_of(rows, serialize):
    return [serialize(dict(zip(rows, values, strict=True))) for values in zip(*rows.values(), strict=True)]


def test_signatures_are_the_contract(answers):
    definitions = answers.definitions
    shapes = {
        name: {
            key: (info.dtype, [dim.size for dim in info.tensor_shape.dim])
            for key, info in definitions[name].inputs.items()
        }
        for name in ("serving_default", "tf_examples", "serve_ids")
    }
    text, number = (tf.string.as_datatype_enum, [-1]), (tf.float32.as_datatype_enum, [-1])
    assert shapes == {
        "serving_default": {name: text for name in STRINGS} | {name: number for name in NUMBERS},
        "tf_examples": {"examples": text},
        "serve_ids": {
            "dense": (tf.float32.as_datatype_enum, [-1, 3]),
            "sparse": (tf.int64.as_datatype_enum, [-1, 8]),
        },
    }
    for name in shapes:
        output = definitions[name].outputs["probability"]
        assert definitions[name].method_name == "tensorflow/serving/predict"
        assert output.dtype == tf.float32.as_datatype_enum
        assert [dim.size for dim in output.tensor_shape.dim] == [-1, 1]


def test_every_signature_answers_what_the_model_does(world, answers, serialize):
    expected = world.answers()
    assert np.ptp(expected) > 0.1  # rows differ, so that equal answers mean something
    rows = world.rows
    np.testing.assert_allclose(answers("serving_default", **rows), expected, atol=1e-6)
    np.testing.assert_allclose(answers("tf_examples", examples=examples_of(rows, serialize)), expected, atol=1e-6)
    np.testing.assert_allclose(answers("serve_ids", **world.batch), expected, atol=1e-6)


@pytest.mark.parametrize("size", [0, 1])
def test_any_batch_size(world, answers, serialize, size):
    rows = {name: values[:size] for name, values in world.rows.items()}
    batch = {name: values[:size] for name, values in world.batch.items()}
    examples = [serialize({name: values[i] for name, values in rows.items()}) for i in range(size)]
    expected = world.answers()[:size]
    for answer in (
        answers("serving_default", **rows),
        answers("tf_examples", examples=np.array(examples, object)),
        answers("serve_ids", **batch),
    ):
        assert answer.shape == (size, 1)
        np.testing.assert_allclose(answer, expected, atol=1e-6)


def test_examples_without_a_feature_have_a_missing_value(world, answers, serialize):
    missing = [i for i, values in enumerate(zip(*world.rows.values(), strict=True)) if values[4] == ""][0]
    expected = world.answers()[missing : missing + 1]  # the row in which everything is missing
    forms = [{}, dict.fromkeys(NUMBERS + STRINGS), {"other": 1.0, "more": "x"}]
    for form in forms:
        np.testing.assert_allclose(answers("tf_examples", examples=[serialize(form)]), expected, atol=1e-6)


def test_what_is_no_example_is_refused(answers):
    with pytest.raises(tf.errors.InvalidArgumentError, match="Could not parse example"):
        answers("tf_examples", examples=[b"not an example"])


@pytest.mark.parametrize("feature", ["ad", "tags", "site"])
@pytest.mark.parametrize("outside", ["rows", -2, 2**31 + 5, 2**40 + 1, -(2**63), 2**63 - 1])
def test_ids_outside_their_table_are_out_of_vocabulary(world, answers, feature, outside):
    spec = world.model.spec
    column = spec.id_columns[feature][1] - 1
    table = next(f.table for f in spec.sparse if f.name == feature)
    oov_row = world.encoder.encoding.tables[table].oov_row
    batch = {"dense": world.batch["dense"], "sparse": world.batch["sparse"].astype(np.int64)}
    batch["sparse"][:, column] = oov_row
    expected = world.answers(sparse=batch["sparse"])
    batch["sparse"][:, column] = spec.table(table).vocabulary_size if outside == "rows" else outside
    np.testing.assert_allclose(answers("serve_ids", **batch), expected, atol=1e-6)


def test_minus_one_still_pads(world, answers):
    batch = {"dense": world.batch["dense"], "sparse": np.full_like(world.batch["sparse"], -1)}
    expected = world.answers(sparse=batch["sparse"])
    np.testing.assert_allclose(answers("serve_ids", **batch), expected, atol=1e-6)


def test_tensorflow_2_loads_it_too(world, version_dir):
    signature = tf.saved_model.load(str(version_dir)).signatures["serving_default"]
    answer = signature(**{name: tf.constant(values) for name, values in world.rows.items()})["probability"]
    np.testing.assert_allclose(answer, world.answers(), atol=1e-6)


def test_bfloat16_model(bfloat16_world, tmp_path, served):
    world = bfloat16_world
    answers = served(export_model(world.model, world.encoder, tmp_path))
    np.testing.assert_allclose(answers("serving_default", **world.rows), world.answers(), atol=1e-5)
    np.testing.assert_allclose(answers("serve_ids", **world.batch), world.answers(), atol=1e-5)


def test_only_what_answers_is_saved(world, new_model, tmp_path):
    model = new_model(world.model.spec, dropout=0.5, embedding_l2=0.1)
    model.compile(DLRMOptimizer(embedding=RowWiseAdagrad(0.1), dense=keras.optimizers.legacy.Adam(0.1)))
    model.fit({k: tf.constant(v) for k, v in world.batch.items()}, tf.zeros([8, 1]), verbose=0)
    before = [variable.numpy() for variable in model.variables]
    directory = export_model(model, world.encoder, tmp_path)
    shapes = [
        tuple(shape)
        for name, shape in tf.train.list_variables(str(directory / "variables" / "variables"))
        if name.endswith("VARIABLE_VALUE")
    ]
    assert sorted(shapes) == sorted(tuple(v.shape) for v in (*model.trainable_weights, *world.encoder.variables))
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    model.fit({k: tf.constant(v) for k, v in world.batch.items()}, tf.zeros([8, 1]), verbose=0)


def test_untouched_rows_are_served_as_the_mean_of_the_others(world, new_model, tmp_path, served):
    model = new_model(world.model.spec)
    untouched = {"ad": [1], "site": {2, 1}}
    rows = {name: model.embedding.get_table(name) for name in untouched}
    live = world.answers(model)
    directory = export_model(model, world.encoder, tmp_path, untouched_rows=untouched)
    for name, values in rows.items():
        np.testing.assert_array_equal(model.embedding.get_table(name), values)
    np.testing.assert_array_equal(world.answers(model), live)

    by_hand = new_model(world.model.spec)
    for name, numbers in untouched.items():
        others = [i for i in range(len(rows[name])) if i not in numbers]
        rows[name][list(numbers)] = rows[name][others].mean(axis=0, dtype=np.float64)
        by_hand.embedding.set_table(name, rows[name])
    expected = world.answers(by_hand)
    assert np.abs(expected - live).max() > 1e-3
    np.testing.assert_allclose(served(directory)("serving_default", **world.rows), expected, atol=1e-6)
    with serving_rows(model, untouched):
        np.testing.assert_allclose(world.answers(model), expected, atol=1e-6)


def test_model_on_ids_alone_with_weights(new_model, tmp_path, served):
    spec = FeatureSpec(
        sparse=[
            SparseFeature(name="bag", table="t", hotness=2, combiner="mean", weighted=True),
            SparseFeature(name="other", table="u"),
        ],
        tables=[
            TableConfig(name="t", vocabulary_size=5, embedding_dim=4),
            TableConfig(name="u", vocabulary_size=3, embedding_dim=4),
        ],
    )
    model = new_model(spec)
    answers = served(export_model(model, None, tmp_path, oov_rows={"u": 0, "t": 4}))
    assert set(answers.definitions) - {"__saved_model_init_op"} == {"serve_ids"}
    weights = np.array([[1, 2, 1], [0.5, 0, 3]], np.float32)
    known = {"sparse": np.array([[1, 4, 0], [4, -1, 2]]), "weights": weights}
    outside = {"sparse": np.array([[1, 5, 99], [-7, -1, 2]]), "weights": weights}
    expected = model({name: tf.constant(value) for name, value in known.items()}).numpy()
    np.testing.assert_allclose(answers("serve_ids", **outside), expected, atol=1e-6)


def test_raw_columns_may_be_called_anything(new_model, tmp_path, served):
    names = ["user id", "C1", "c1", "class", "größe", "1st", "a.b", "x/y"]
    spec = FeatureSpec(
        dense=[DenseFeature(name="I-1", transform="identity")],
        sparse=[SparseFeature(name=name, table=name) for name in names],
        tables=[TableConfig(name=name, vocabulary_size=4, embedding_dim=4) for name in names],
    )
    encoding = Encoding(
        features={name: FeatureCoding(source=name) for name in names},
        tables={name: TableCoding(value="string") for name in names},
    )
    builder = VocabularyBuilder(encoding, {name: name for name in names})
    rng = np.random.default_rng(0)
    rows = {name: np.array(["a", "b", "a", "b"], object)[rng.permutation(4)] for name in names}
    rows["I-1"] = np.array([1, 2, np.nan, 4], np.float32)
    frame = pl.DataFrame({name: values.tolist() for name, values in rows.items()})
    builder.add(frame)
    encoder = FeatureEncoder(spec, encoding, *builder.build())
    model = new_model(spec)
    expected = model({name: tf.constant(value) for name, value in encoder.encode_frame(frame).items()}).numpy()
    directory = export_model(model, encoder, tmp_path)
    np.testing.assert_allclose(served(directory)("serving_default", **rows), expected, atol=1e-6)
    signature = tf.saved_model.load(str(directory)).signatures["serving_default"]
    answer = signature(**{name: tf.constant(values) for name, values in rows.items()})["probability"]
    np.testing.assert_allclose(answer, expected, atol=1e-6)


def test_assets_tell_what_it_is(world, tmp_path):
    note = tmp_path / "note.txt"
    note.write_text("hello")
    config = RunConfig(name="unit", seed=5)
    directory = export_model(
        world.model,
        world.encoder,
        tmp_path / "model",
        version=7,
        untouched_rows={"ad": [1]},
        config=config,
        extra_assets={"notes/a.txt": note},
    )
    assert directory == tmp_path / "model" / "7"
    assert (directory / "assets.extra" / "notes" / "a.txt").read_text() == "hello"
    text = (directory / "assets.extra" / "tfdlrm.json").read_text()
    record = ExportRecord.from_json(text)
    assert record.spec == world.model.spec
    assert record.encoding == world.encoder.encoding
    assert record.config == config
    assert record.dense_stats["age"].mean == pytest.approx(40.0)
    assert json.loads(text)["untouched_rows"] == {"ad": [1]}
    assert record.oov_rows == {"ad": 1, "site": 2, "tag": 1, "hashed": 1, "hour": 1}


@pytest.mark.parametrize("bias", [0.0, 17.5, -30.0])
def test_a_shift_is_added_to_the_logits(world, new_model, tmp_path, served, serialize, bias):
    """At a logit of 17.5 the probability is 1 in float32: corrected from there, the answer would stay 1."""
    shift = float(np.log(1e-4))
    model = new_model(world.model.spec)
    last = model.top.hidden[-1]
    kernel, _ = last.get_weights()
    last.set_weights([kernel * (1.0 if bias == 0 else 0.0), np.array([bias], np.float32)])
    directory = export_model(model, world.encoder, tmp_path, logit_shift=shift)
    logits = model.logits({name: tf.constant(value) for name, value in world.batch.items()}).numpy().astype(np.float64)
    expected = 1 / (1 + np.exp(-(logits + shift)))
    answers = served(directory)
    np.testing.assert_allclose(answers("serving_default", **world.rows), expected, rtol=1e-5)
    ids = {**world.batch, "sparse": world.batch["sparse"].astype(np.int64)}
    np.testing.assert_allclose(answers("serve_ids", **ids), expected, rtol=1e-5)
    record = ExportRecord.from_json((directory / "assets.extra" / "tfdlrm.json").read_text())
    assert record.logit_shift == shift
    judged = probability_function(model, shift)(world.batch).numpy()
    np.testing.assert_allclose(answers("serving_default", **world.rows), judged, atol=1e-6)
    np.testing.assert_allclose(answers("serve_ids", **ids), judged, atol=1e-6)
    np.testing.assert_allclose(answers("tf_examples", examples=examples_of(world.rows, serialize)), judged, atol=1e-6)


def test_wrong_arguments_leave_nothing(world, new_model, tmp_path):
    base = tmp_path / "model"
    other = world.model.spec.tables[0].model_copy(update={"vocabulary_size": 99})
    wider = world.model.spec.model_copy(update={"tables": (other, *world.model.spec.tables[1:])})
    cases = [
        (SpecError, "`vocabulary_size` of tables `ad` must be the same in the encoder and the model", wider, {}),
        (SpecError, r"`untouched` rows of table `ad` must lie in \[0, ", None, {"untouched_rows": {"ad": [-1]}}),
        (SpecError, "`name` must be a table", None, {"untouched_rows": {"add": [1]}}),
        (ConfigError, "`oov_rows` must be given exactly where there is no", None, {"oov_rows": {"ad": 1}}),
        (ConfigError, "`extra_assets` must be named by relative", None, {"extra_assets": {"../x": ROOT / "setup.py"}}),
        (ConfigError, "`extra_assets` must be named", None, {"extra_assets": {"tfdlrm.json": ROOT / "setup.py"}}),
        (DataError, "no such file, to be the asset `x`", None, {"extra_assets": {"x": tmp_path / "absent"}}),
        (ConfigError, "`version` must be at least 0", None, {"version": -1}),
        (SpecError, "`logit_shift`.*finite", None, {"logit_shift": float("-inf")}),
    ]
    for kind, message, spec, arguments in cases:
        model = world.model if spec is None else new_model(spec)
        with pytest.raises(kind, match=message):
            export_model(model, world.encoder, base, **arguments)
        assert not base.exists() or not list(base.iterdir())
    for rows, message in (({"ad": 1}, "`oov_rows` must hold the tables"), (None, "`oov_rows` must be given exactly")):
        with pytest.raises((SpecError, ConfigError), match=message):
            export_model(world.model, None, base, oov_rows=rows)
    names = [table.name for table in world.model.spec.tables]
    with pytest.raises(SpecError, match=r"`oov_rows` of table `ad` must lie in \[0, "):
        export_model(world.model, None, base, oov_rows=dict.fromkeys(names, 1000))


KILLED = """
import sys
from pathlib import Path
from tfdlrm.export.saved_model import export_model
from tfdlrm.models.dlrm import DLRM
from tfdlrm.models.probability import probability_function
from tfdlrm.spec.features import FeatureSpec, SparseFeature, TableConfig

spec = FeatureSpec(
    sparse=[SparseFeature(name="a", table="a"), SparseFeature(name="b", table="b")],
    tables=[TableConfig(name=name, vocabulary_size=1_000_000, embedding_dim=8) for name in "ab"],
)
model = DLRM(spec, top_units=(1,))
model.build()
export_model(model, None, Path(sys.argv[1]), oov_rows={"a": 0, "b": 0})
"""


def test_killed_export_leaves_no_version(world, forks, tmp_path):
    base = tmp_path / "model"
    process = forks.start("-c", KILLED, str(base))
    while not (base.exists() and list(base.glob("*/variables"))) and not list(base.glob(".*/variables")):
        assert process.poll() is None, process.output
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    left = [path.name for path in base.iterdir()]
    assert len(left) == 1 and left[0].startswith(".")
    assert export_model(world.model, world.encoder, base).name == "1"
    assert [path.name for path in base.iterdir()] == ["1"]


def test_a_table_without_a_row_for_unseen_values_needs_a_policy(world, tmp_path):
    encoder = world.encoder
    tables = {**encoder.encoding.tables, "ad": encoder.encoding.tables["ad"].model_copy(update={"oov_row": None})}
    encoding = encoder.encoding.model_copy(update={"tables": tables})
    silent = FeatureEncoder(encoder.spec, encoding, encoder.vocabularies, dict(encoder.dense_stats))
    with pytest.raises(ConfigError, match="a value without a row counts as in table `ad`, whose coding has"):
        export_model(world.model, silent, tmp_path / "model")
    assert not (tmp_path / "model").exists() or not list((tmp_path / "model").iterdir())

    silent.save(tmp_path / "encoder")
    with pytest.raises(SpecError, match="table `ad`: `unseen` must be below its rows"):
        FeatureEncoder.load(tmp_path / "encoder", 10_000)
    told = FeatureEncoder.load(tmp_path / "encoder", "zeros")
    path = export_model(world.model, told, tmp_path / "model")
    assert ExportRecord.from_json((path / "assets.extra" / "tfdlrm.json").read_text()).oov_rows["ad"] == -1
    serve = tf.saved_model.load(str(path)).signatures["serve_ids"]
    ids = np.zeros((3, told.spec.n_ids), np.int64)
    ids[:, told.spec.id_columns["ad"][0]] = [10_000, -1, 0]
    answers = serve(dense=tf.ones([3, told.spec.n_dense]), sparse=tf.constant(ids))["probability"][:, 0].numpy()
    assert answers[0] == answers[1] != answers[2]


def test_a_full_disk_is_told_in_a_line_and_leaves_nothing(world, tmp_path):
    """A real one: the process may not write files beyond a size that the variables pass."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256, limits[1]))
    try:
        with pytest.raises(DiskFullError) as error:
            export_model(world.model, world.encoder, tmp_path / "served")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert str(error.value) == (
        f"{tmp_path / 'served'}: not published: the disk is full. Nothing of the export stays there: "
        "free some space and export again."
    )
    assert list((tmp_path / "served").iterdir()) == []
