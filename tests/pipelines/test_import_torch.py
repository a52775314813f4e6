"""The command: from a file of PyTorch to a model that is served, and the user's mistakes in one line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import polars as pl
import pytest
import tensorflow as tf
import tf_keras as keras

from tests.models.test_golden import GOLDEN
from tests.pipelines.small_runs import call, refusal
from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.data.vocabulary_builder import VocabularyBuilder
from tfdlrm.pipelines import import_torch
from tfdlrm.spec.coding import Encoding, FeatureCoding, TableCoding
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


def test_with_the_encoder_of_its_rows_it_is_served_on_raw_values(tmp_path):
    names = ("city", "shop")
    encoding = Encoding(
        features={name: FeatureCoding(source=name) for name in names},
        # As published recipes have it: what was never seen has no row, and serving must be told.
        tables={name: TableCoding(value="string", oov_row=None, missing_row=0, first_id=1) for name in names},
    )
    builder = VocabularyBuilder(encoding, {name: name for name in names}, standardize=[])
    builder.add(pl.DataFrame({"city": ["Rome", "Oslo", "Rome"], "shop": ["a", "b", "b"]}))
    vocabularies, stats = builder.build()
    spec = FeatureSpec(
        dense=[{"name": "price"}],
        sparse=[{"name": name, "table": name} for name in names],
        tables=[
            {"name": name, "vocabulary_size": vocabulary.rows, "embedding_dim": 1}
            for name, vocabulary in vocabularies.items()
        ],
    )
    FeatureEncoder(spec, encoding, vocabularies, stats).save(tmp_path / "data")
    rng = np.random.default_rng(2)
    shapes = {f"emb_l.{i}.weight": (table.vocabulary_size, 5) for i, table in enumerate(spec.tables)}
    shapes |= {"bot_l.0.weight": (5, 1), "bot_l.0.bias": (5,), "top_l.0.weight": (1, 8), "top_l.0.bias": (1,)}
    weights = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    np.savez(tmp_path / "w.npz", **weights)
    outcome = call(
        *(import_torch.main, "--checkpoint", tmp_path / "w.npz", "--tables-from", tmp_path / "data"),
        *("--out", tmp_path / "raw", "--unseen", "zeros"),
    )
    assert (outcome.code, outcome.err) == (0, "")
    served = tf.saved_model.load(str(tmp_path / "raw" / "1")).signatures["serving_default"]
    answer = served(
        price=tf.constant([2.0, float("nan")]), city=tf.constant(["Oslo", "Bonn"]), shop=tf.constant(["", "b"])
    )["probability"]
    # Row 0 is a missing value's, row 1 the most frequent value's.
    cities, shops, nothing = weights["emb_l.0.weight"], weights["emb_l.1.weight"], np.zeros(5)
    by_hand = []
    for price, a, b in ((2.0, cities[2], shops[0]), (0.0, nothing, shops[1])):
        x = np.maximum(np.log1p(price) * weights["bot_l.0.weight"][:, 0] + weights["bot_l.0.bias"], 0)
        features = np.concatenate([x, [a @ x, b @ x, b @ a]])
        by_hand.append(1 / (1 + np.exp(-(weights["top_l.0.weight"] @ features + weights["top_l.0.bias"]))))
    np.testing.assert_allclose(answer, by_hand, atol=1e-5)


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
