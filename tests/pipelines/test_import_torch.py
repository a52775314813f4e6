"""The command: from a file of PyTorch to a model that is served, and the user's mistakes in one line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tests.models.test_golden import GOLDEN
from tests.pipelines.small_runs import call, refusal
from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.data.planted import write_planted
from tfdlrm.data.prepare import prepare
from tfdlrm.pipelines import import_torch
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.features import FeatureSpec

FINAL = GOLDEN / "dot_sgd_final.pt"


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "dot_sgd.npz")


def refused(*argv):
    return refusal(*argv, main=import_torch.main)


def test_a_checkpoint_is_served_on_ids(golden, tmp_path):
    outcome = call(import_torch.main, "--checkpoint", FINAL, "--out", tmp_path / "fb", "--unseen", "zeros")
    assert (outcome.code, outcome.err) == (0, "")
    for words in ("facebookresearch/dlrm: 4 tables", "rows 1,000 x 8", "13 dense features; interaction: dot"):
        assert words in outcome.out
    assert outcome.out.splitlines()[-1] == f"Model: {tmp_path / 'fb' / '1'}"
    served = tf.saved_model.load(str(tmp_path / "fb" / "1")).signatures["serve_ids"]
    ids = tf.constant(golden["ids"][0, :, :, 0], tf.int64)
    answer = served(dense=tf.constant(golden["dense"][0]), sparse=ids)["probability"]
    np.testing.assert_allclose(answer, golden["forward/final_on_step0"], atol=1e-5)


def test_a_checkpoint_becomes_a_keras_file(golden, tmp_path):
    spec = FeatureSpec(
        dense=[{"name": f"n{i}"} for i in range(13)],
        sparse=[{"name": f"s{i}", "table": f"s{i}"} for i in range(4)],
        tables=[{"name": f"s{i}", "vocabulary_size": n, "embedding_dim": 8} for i, n in enumerate((1000, 50, 3, 200))],
    )
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    path = tmp_path / "models" / "fb.keras"
    outcome = call(import_torch.main, "--checkpoint", FINAL, "--spec", tmp_path / "spec.json", "--out", path)
    assert (outcome.code, outcome.err) == (0, "")
    assert [file.name for file in path.parent.iterdir()] == ["fb.keras"]
    model = keras.models.load_model(path)
    assert model.spec == spec
    answer = model({"dense": golden["dense"][0], "sparse": golden["ids"][0, :, :, 0]})
    np.testing.assert_allclose(answer, golden["forward/final_on_step0"], atol=1e-5)


def test_with_the_prepared_rows_it_was_trained_on_it_is_served_on_raw_values(tmp_path):
    write_planted(tmp_path / "rows.tsv", 1500)
    prepare(DataConfig(), [tmp_path / "rows.tsv"], tmp_path / "data", 8)
    encoder = FeatureEncoder.load(tmp_path / "data")
    rng = np.random.default_rng(2)
    tables = [table.vocabulary_size for table in encoder.spec.tables]
    vectors = len(tables) + 1
    shapes = {f"emb_l.{i}.weight": (rows, 4) for i, rows in enumerate(tables)}
    shapes |= {"bot_l.0.weight": (4, 13), "bot_l.0.bias": (4,)}
    shapes |= {"top_l.0.weight": (1, 4 + vectors * (vectors - 1) // 2), "top_l.0.bias": (1,)}
    np.savez(tmp_path / "w.npz", **{name: rng.normal(size=shape, scale=0.2) for name, shape in shapes.items()})
    outcome = call(
        *(import_torch.main, "--checkpoint", tmp_path / "w.npz", "--tables-from", tmp_path / "data"),
        *("--out", tmp_path / "raw"),
    )
    assert (outcome.code, outcome.err) == (0, "")
    served = tf.saved_model.load(str(tmp_path / "raw" / "1"))
    raw = {
        name: tf.constant([1.0, float("nan")] if spec.dtype == tf.float32 else ["68fd1e64", ""])
        for name, spec in encoder.raw_signature().items()
    }
    by_ids = served.signatures["serve_ids"](
        **{k: tf.cast(v, tf.int64) if k == "sparse" else v for k, v in encoder.encode(raw).items()}
    )
    by_values = served.signatures["serving_default"](**raw)
    np.testing.assert_allclose(by_values["probability"], by_ids["probability"], atol=1e-6)


def test_without_out_it_only_looks(tmp_path):
    outcome = call(import_torch.main, "--checkpoint", GOLDEN / "torchrec_dlrm.pt")
    assert (outcome.code, outcome.err) == (0, "")
    for words in ("TorchRec: 3 tables", "t_cat_2", "over_arch.model.0._mlp.1._linear", "5 x 8", "float32"):
        assert words in outcome.out
    assert "Model:" not in outcome.out


def test_mistakes_are_one_line(tmp_path):
    out = ("--out", tmp_path / "x")
    assert "`--unseen` must say" in refused("--checkpoint", FINAL, *out)
    assert "must be zeros or a row without --tables-from" in refused("--checkpoint", FINAL, *out, "--unseen", "rare")
    assert "[0, 3)" in refused("--checkpoint", FINAL, *out, "--unseen", "3")
    assert "No such file" in refused("--checkpoint", tmp_path / "none.pt")
    assert "a directory" in refused("--checkpoint", tmp_path)
    shutil.copyfile(FINAL, tmp_path / "cut.pt")
    with (tmp_path / "cut.pt").open("r+b") as file:
        file.truncate(20_000)
    assert "cut.pt: cut short or damaged" in refused("--checkpoint", tmp_path / "cut.pt")
    (tmp_path / "spec.json").write_text(json.dumps({"sparse": 3}))
    assert "spec.json: `sparse`" in refused("--checkpoint", FINAL, "--spec", tmp_path / "spec.json")
    spec = FeatureSpec(
        sparse=[{"name": "a", "table": "a"}], tables=[{"name": "a", "vocabulary_size": 5, "embedding_dim": 8}]
    )
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    assert "the spec's 1 tables, ['a']. Received: 4" in refused("--checkpoint", FINAL, "--spec", tmp_path / "spec.json")
    assert "give: 40 for cat. Received: shape (16, 18)" in refused("--checkpoint", FINAL, "--interaction", "cat")
    assert not (tmp_path / "x").exists()
