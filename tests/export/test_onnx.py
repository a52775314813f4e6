"""Models as ONNX: what ONNX Runtime answers, files and limits."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf

from tests.export import specs
from tfdlrm.export import onnx as module
from tfdlrm.export.onnx import export_onnx
from tfdlrm.export.quantized import bits_to_half
from tfdlrm.export.saved_model import ExportRecord, export_model
from tfdlrm.export.verify import VerifyError
from tfdlrm.models.build import build
from tfdlrm.spec.config import ModelConfig
from tfdlrm.spec.errors import ConfigError
from tfdlrm.spec.features import FeatureSpec

SETTINGS = {"embedding_dim": 8, "bottom_units": (8,), "top_units": (8, 1)}
PLAIN = [{"vocabulary_size": 60, "embedding_dim": 8}, {"vocabulary_size": 45, "embedding_dim": 8}]


def spec_of(tables, features=None) -> FeatureSpec:
    return specs.spec_of(tables, features or [{"hotness": 1 + i % 2} for i in range(len(tables))], ("x", "y"))


def model_of(spec, name="dlrm", precision="float32"):
    model = build(name, spec, ModelConfig(name=name, **SETTINGS), precision, seed=1)
    rng = np.random.default_rng(3)
    for collection in model.collections.values():
        for table in collection.spec.tables:
            for part in collection.spec.stored(table.name):
                rows = rng.standard_normal((part.rows, part.dim)).astype(np.float32)
                collection.set_part(table.name, part.part, rows)
    return model


def exported(model, folder, **kwargs) -> tuple[ExportRecord, Path]:
    path = export_model(model, None, folder, oov_rows={table.name: 1 for table in model.spec.tables}, **kwargs)
    return ExportRecord.from_json((path / "assets.extra" / "tfdlrm.json").read_text()), path


def batch_of(spec, rows=20):
    rng = np.random.default_rng(5)
    batch = {
        "dense": rng.standard_normal((rows, 2)).astype(np.float32),
        "sparse": rng.integers(-1, 45, (rows, spec.n_ids)),
    }
    return batch | ({"weights": rng.uniform(0, 2, (rows, spec.n_ids)).astype(np.float32)} if spec.has_weights else {})


def answers(path, batch):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, batch)[0]


@pytest.mark.parametrize("name", ["dlrm", "dcn_v2", "wide_deep", "deepfm"])
def test_models_answer_what_they_predict(tmp_path, name):
    model = model_of(spec_of(PLAIN), name)
    record, version = exported(model, tmp_path / "v", logit_shift=-0.5, untouched_rows={"t0": [1, 2]})
    out = tmp_path / "deep" / "model.onnx"
    report = export_onnx(model, record, version, out)
    assert report.difference < 1e-5 and not report.external and report.bytes == out.stat().st_size
    batch = batch_of(model.spec)
    batch["sparse"][:, 0] = np.arange(3, 23)  # none that is the mean of others, as the model itself has it not
    plain = model({key: tf.constant(value) for key, value in batch.items()}).numpy()
    expected = 1 / (1 + (1 - plain) / plain * np.exp(0.5))
    assert np.ptp(expected) > 0.1
    touched = (batch["sparse"] != 1).all(1) & (batch["sparse"] != 2).all(1)
    np.testing.assert_allclose(answers(out, batch)[touched], expected[touched], atol=1e-5)
    # What stands in the file is what it says: inputs, output, operations of ONNX alone.
    graph = onnx.load(out).graph
    assert [value.name for value in graph.input] == ["sparse", "dense"]
    assert [value.name for value in graph.output] == ["probability"]
    assert [tuple(t.dims) for t in graph.initializer if t.name.startswith("table_")]
    assert {o.domain for o in onnx.load(out).opset_import} <= {"", "ai.onnx.ml"}
    assert sorted(path.name for path in out.parent.iterdir()) == ["model.onnx"]


def every_kind() -> FeatureSpec:
    kinds = zip(itertools.cycle((True, False)), (None, "mult", "add", "concat"), strict=False)
    tables = [
        {
            "vocabulary_size": 50 + number,
            "embedding_dim": 8,
            "compression": {
                **({"hash_rows": 12, "exact_rows": 3} if hash_ else {}),
                "quotient_remainder": operation and {"operation": operation},
                "dim": (None, 6)[number % 2],
                "dtype": ("float32", "bfloat16", "float16")[number % 3],
            },
        }
        for number, (hash_, operation) in enumerate(kinds)
    ]
    return spec_of(tables, specs.mixed_features(len(tables), weighted_every=3))


CASES = [("float32", every_kind()), ("int4", every_kind()), ("int8", spec_of(PLAIN)), ("float16", spec_of(PLAIN))]


@pytest.mark.parametrize(("form", "spec"), CASES, ids=[form for form, _ in CASES])
def test_every_kind_of_table_in_every_form(tmp_path, form, spec):
    model = model_of(spec)
    record, version = exported(model, tmp_path / "v", tables=form)
    report = export_onnx(model, record, version, tmp_path / "model.onnx")
    batch = batch_of(model.spec)
    loaded = tf.saved_model.load(str(version))
    expected = loaded.signatures["serve_ids"](**{key: tf.constant(value) for key, value in batch.items()})
    np.testing.assert_allclose(answers(tmp_path / "model.onnx", batch), expected["probability"], atol=1e-5)
    assert np.ptp(expected["probability"]) > 0.1
    assert report.difference < 1e-5
    assert all(collection.stand_in is None for collection in model.collections.values())


def test_tables_beyond_a_limit_lie_in_a_file_beside(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_BYTES", 7 * 32)  # several pieces a table
    model = model_of(spec_of(PLAIN))
    record, version = exported(model, tmp_path / "v")
    inline, out = tmp_path / "inline.onnx", tmp_path / "model.onnx"
    assert not export_onnx(model, record, version, inline).external
    report = export_onnx(model, record, version, out, inline_bytes=107 * 32 - 1)
    (data,) = tmp_path.glob("model.onnx.*.data")
    assert data.name == f"model.onnx.{hashlib.sha256(data.read_bytes()).hexdigest()[:16]}.data"
    assert report.external and report.bytes == out.stat().st_size + data.stat().st_size
    beside = [t for t in onnx.load(out, load_external_data=False).graph.initializer if "table_" in t.name]
    assert beside and not any(tensor.raw_data for tensor in beside)
    assert out.stat().st_size < inline.stat().st_size - 100 * 26  # what says where they lie is less than the tables
    batch = batch_of(model.spec)
    np.testing.assert_array_equal(answers(out, batch), answers(inline, batch))
    onnx.checker.check_model(str(out))
    moved = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer if "table_" in t.name}
    tables = np.concatenate([model.embedding.get_table(name) for name in ("t0", "t1")])
    held = np.concatenate([rows for rows in moved.values()])
    assert {row.tobytes() for row in tables} <= {row.tobytes() for row in held}
    # A graph that is still open, or copied, reads the tables it was written with, or none.
    before = out.read_bytes()
    model.embedding.set_table("t1", model.embedding.get_table("t1") + 0.1)
    export_onnx(model, *exported(model, tmp_path / "v"), out, inline_bytes=1)
    (newer,) = tmp_path.glob("model.onnx.*.data")
    assert newer != data and data.name.encode() in before and newer.name.encode() in out.read_bytes()
    data = newer
    # Small enough to lie inside again, it leaves no file of another behind.
    assert not export_onnx(model, *exported(model, tmp_path / "v"), out).external
    assert not data.exists()


def test_another_answer_is_refused_and_nothing_written(tmp_path):
    model = model_of(spec_of(PLAIN))
    record, version = exported(model, tmp_path / "v")
    (tmp_path / "model.onnx").write_text("before")
    model.embedding.set_table("t1", model.embedding.get_table("t1") + 0.1)
    with pytest.raises(VerifyError, match=r"model.onnx: ONNX differs from .*/1 by 0\.\d+, above 1e-05"):
        export_onnx(model, record, version, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "v"]


def test_a_model_in_bfloat16_is_refused(tmp_path):
    model = model_of(spec_of(PLAIN), precision="mixed_bfloat16")
    record, version = exported(model, tmp_path / "v")
    with pytest.raises(ConfigError, match='`train.precision` must be "float32" of a model that is written as ONNX'):
        export_onnx(model, record, version, tmp_path / "model.onnx")


def test_half_precision_by_arithmetic_is_half_precision():
    bits = np.arange(2**16, dtype="<u2")
    pairs = bits.view(np.uint8).reshape(-1, 4)
    expected = bits_to_half(tf.constant(pairs)).numpy()
    np.testing.assert_array_equal(expected.ravel(), bits.view(np.float16).astype(np.float32))
    finite = np.isfinite(expected)
    assert finite.sum() == 2**16 - 2**11
    np.testing.assert_array_equal(module._bits_to_half(tf.constant(pairs)).numpy()[finite], expected[finite])
