from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import log_loss

from tfdlrm.export.asking import _ranked
from tfdlrm.export.blessing import HeldOut, bless, refuse_low_auc
from tfdlrm.export.errors import VerifyError
from tfdlrm.export.saved_model import export_model
from tfdlrm.models.dlrm import DLRM

SIGNATURES = {"serving_default", "tf_examples", "serve_ids", "classify", "regress", "rank"}


@pytest.fixture(scope="module")
def judged(world):
    """Return rows whose labels are what the model says."""
    expected = world.answers()[:, 0]
    return HeldOut(world.rows, world.batch, expected, (expected > 0.5).astype(np.float32))


@pytest.fixture(scope="module")
def other(world, new_model):
    """Return a model that is wrong wherever the first one is right."""
    model = new_model(world.model.spec)
    last = model.top.hidden[-1]
    kernel, bias = last.get_weights()
    last.set_weights([-kernel, -bias])
    return model


def test_wrong_answers_get_no_number(world, judged, tmp_path):
    base, wrong = tmp_path / "served", judged.expected.copy()
    wrong[3] += 1e-3
    with pytest.raises(VerifyError) as error:
        rows = dataclasses.replace(judged, expected=wrong)
        export_model(world.model, world.encoder, base, bless=lambda directory: bless(directory, base, rows))
    message = str(error.value)
    assert message.startswith(f"{base}: not published: `serving_default` must answer within 1e-05 of the model.")
    assert message.endswith("No version is in place.")
    assert ".tmp" not in message
    assert list(base.iterdir()) == []


def test_a_version_is_blessed_before_it_has_a_number(world, judged, tmp_path):
    base, seen = tmp_path / "served", []

    def look(directory):
        found = bless(directory, base, judged)
        seen.append((directory.parent, [path.name for path in base.iterdir() if path.name.isdigit()], found))

    path = export_model(world.model, world.encoder, base, rank_candidates=["ad"], bless=look)
    ((parent, numbers, found),) = seen
    assert (parent, numbers) == (base, []) and path == base / "1"
    assert set(found.verified.differences) == SIGNATURES


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 14, 56, 100, 2048])
def test_questions_hold_every_row_once_and_a_place_without_one(rows):
    """Asked of a ranking that answers the number of the row: what it is asked, and where."""
    asked = {}

    class Numbers:
        directory = None
        definitions = tf.compat.v1.MetaGraphDef().signature_def

        def ask(self, signature, inputs, batch_size, *outputs):
            asked.update(inputs)
            scores = np.where(inputs["mask"], inputs["number"], 0)
            return [scores, np.argsort(-np.where(inputs["mask"], scores, -1.0), axis=1, kind="stable")]

        def probability(self, signature, inputs, batch_size):
            return inputs["number"][:, np.newaxis]

    definition = Numbers.definitions["rank"]
    for name in ("number", "mask"):
        definition.inputs[name].tensor_shape.dim.add(size=-1)
        definition.inputs[name].tensor_shape.dim.add(size=-1)
    numbers = np.arange(1, rows + 1, dtype=np.float32)
    found = _ranked(Numbers(), {"number": numbers}, 2048)
    assert not asked["mask"].all()
    np.testing.assert_array_equal(asked["number"][asked["mask"]], numbers)
    np.testing.assert_array_equal(found["rank"][:, 0], numbers)
    np.testing.assert_array_equal(found["expected rank"], numbers)


def test_a_difference_that_chance_explains_refuses_nothing(world, judged, other, version_dir, tmp_path):
    """Labels at random: neither model is better, and a weight of nothing leaves a row out."""
    base = tmp_path / "served"
    export_model(other, world.encoder, base, version=4)
    # Each label once for and once against, so that the mean of the differences is slight beside their spread.
    labels = np.where(np.arange(8) % 2, judged.labels, 1 - judged.labels)
    edge = np.finfo(np.float32).eps
    p, q = (np.clip(x, edge, 1 - edge).astype(np.float64) for x in (judged.expected, world.answers(other)[:, 0]))
    mine, theirs = (-np.log(np.where(labels == 1, x, 1 - x)) for x in (p, q))
    weight = np.array([3.0, 1.0, 1.0, 2.0, 1.0, 1.0, 0.5, 0.0], np.float32)
    mean = np.average(mine - theirs, weights=weight)
    error = np.sqrt((weight**2 * (mine - theirs - mean) ** 2).sum()) / weight.sum()
    assert mean - 1.96 * error < 0 < error
    rows = dataclasses.replace(judged, labels=labels.astype(np.float32), weight=weight)
    found = bless(version_dir, base, rows, max_regression=0.0).comparison
    assert found.log_loss == pytest.approx(log_loss(labels, judged.expected, sample_weight=weight), abs=1e-6)
    assert found.log_loss - found.log_loss_in_place == pytest.approx(mean, abs=1e-6)
    assert found.standard_error == pytest.approx(error, abs=1e-6)


def test_a_worse_model_does_not_replace_a_better_one(world, judged, other, version_dir, tmp_path):
    base = tmp_path / "served"
    export_model(other, world.encoder, base, version=4)
    theirs = world.answers(other)[:, 0]
    better = bless(version_dir, base, judged, max_regression=0.0)
    mine, its = (log_loss(judged.labels, answers) for answers in (judged.expected, theirs))
    assert mine < its - 0.01
    assert set(better.verified.differences) == SIGNATURES
    assert better.comparison.version == base / "4" and better.comparison.rows == 8
    assert better.comparison.log_loss == pytest.approx(mine, abs=1e-6)
    assert better.comparison.log_loss_in_place == pytest.approx(its, abs=1e-6)

    # So many rows that chance does not explain it.
    places = np.tile(np.arange(8), 16)
    worse = dataclasses.replace(
        judged,
        rows={name: values[places] for name, values in judged.rows.items()},
        ids={name: values[places] for name, values in judged.ids.items()},
        expected=judged.expected[places],
        labels=1 - judged.labels[places],
    )
    mine, its = (log_loss(worse.labels, answers) for answers in (worse.expected, theirs[places]))
    with pytest.raises(VerifyError) as error:
        bless(version_dir, base, worse, max_regression=0.005)
    message = str(error.value)
    assert "log loss must be at most 0.005 above that of the version in place (`export.max_regression`)" in message
    assert "beyond what chance explains" in message
    assert f"Received: {mine:.6f}, and {its:.6f} of version 4, on the same 128 rows, standard error" in message
    assert "Version 4 stays in place." in message and "set `export.no_regression` to false" in message


class CallsPython(DLRM):
    def logits(self, inputs, training=None):
        logits = super().logits(inputs, training=training)
        return tf.ensure_shape(tf.numpy_function(lambda values: values, [logits], tf.float32), [None, 1])


def test_operations_that_no_server_has_get_no_number(world, tmp_path):
    model = CallsPython(world.model.spec, bottom_units=(8, 4), top_units=(8, 1))
    model.build()
    with pytest.raises(VerifyError, match=r"must be in stock TensorFlow. Received: \w*PyFunc\w* \(calls back into"):
        export_model(model, world.encoder, tmp_path / "served")
    assert list((tmp_path / "served").iterdir()) == []


@pytest.mark.parametrize("auc", [0.69999, float("nan")])
def test_a_floor_of_auc(tmp_path, auc):
    base = tmp_path / "served"
    refuse_low_auc(base, 0.7, 0.7, 600, "test rows")
    with pytest.raises(VerifyError, match="AUC must be at least `export.min_auc`, 0.7. Received: .* on 600 test rows"):
        refuse_low_auc(base, auc, 0.7, 600, "test rows")
