from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import log_loss

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

    worse = dataclasses.replace(judged, labels=1 - judged.labels)
    mine, its = (log_loss(worse.labels, answers) for answers in (judged.expected, theirs))
    with pytest.raises(VerifyError) as error:
        bless(version_dir, base, worse, max_regression=0.005)
    message = str(error.value)
    assert "log loss must be at most 0.005 above that of the version in place (`export.max_regression`)" in message
    assert f"Received: {mine:.6f}, and {its:.6f} of version 4, on the same 8 rows" in message
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
    refuse_low_auc(base, 0.7, 0.7, 600, "test")
    with pytest.raises(VerifyError, match="AUC must be at least `export.min_auc`, 0.7. Received: .* on 600 test rows"):
        refuse_low_auc(base, auc, 0.7, 600, "test")
