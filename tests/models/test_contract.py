"""The contract of every model, checked the same way for all of them: from a batch to a served answer."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tests.models.contract import (
    ROWS,
    SETTINGS,
    SPECS,
    compile_pair,
    draw_weights,
    large_ops,
    make_batch,
    make_model,
    make_spec,
)
from tests.models.oracles import forward
from tfdlrm.export.saved_model import export_model
from tfdlrm.models.build import MODELS
from tfdlrm.training.checkpoint import TrainState, load_checkpoint, save_checkpoint
from tfdlrm.training.optimizers import DLRMOptimizer
from tfdlrm.training.row_optimizers import SGD

every_case = pytest.mark.parametrize("case", SETTINGS)
# Where a graph is traced or written, variants of a model add seconds and nothing new.
every_model = pytest.mark.parametrize("case", [case for case, (name, _) in SETTINGS.items() if case == name])


def test_every_model_of_the_package_is_here():
    own = {name for name, model in MODELS.items() if model.__module__.startswith("tfdlrm.models.")}
    assert own == {name for name, _ in SETTINGS.values()}


def tensors(batch):
    return {name: tf.constant(value) for name, value in batch.items()}


@every_case
@pytest.mark.parametrize("spec", SPECS)
def test_forward_matches_numpy(case, spec):
    model = draw_weights(make_model(case, SPECS[spec]))
    batch, _ = make_batch(SPECS[spec])
    probability = model(tensors(batch))
    expected = forward(model, batch)
    assert np.ptp(expected) > 0.1  # rows differ, so that equal answers mean something
    assert (probability.dtype, probability.shape) == (tf.float32, (16, 1))
    np.testing.assert_allclose(probability, expected, rtol=1e-4, atol=1e-6)
    one = {name: value[:1] for name, value in {**batch, "sparse": batch["sparse"].astype(np.int64)}.items()}
    np.testing.assert_allclose(model(tensors(one)), expected[:1], rtol=1e-4, atol=1e-6)


@every_model
def test_learns_and_resumes_from_a_checkpoint_bit_for_bit(case, tmp_path):
    spec = SPECS["plain"]
    batch, label = make_batch(spec, rows=400)
    model = compile_pair(make_model(case))
    losses = model.fit(batch, label, batch_size=50, epochs=5, shuffle=False, verbose=0).history["loss"]
    share = label.mean()
    assert losses[-1] < losses[0]
    assert losses[-1] < 0.9 * -(share * np.log(share) + (1 - share) * np.log(1 - share))
    path = save_checkpoint(model, tmp_path, TrainState(step=40))
    again = compile_pair(make_model(case))
    assert load_checkpoint(again, path).step == 40
    for each in (model, again):
        each.fit(batch, label, batch_size=50, shuffle=False, verbose=0)
    assert len(model.weights) == len(again.weights)
    for one, other in zip(
        [*model.weights, *model.optimizer.weights], [*again.weights, *again.optimizer.weights], strict=True
    ):
        np.testing.assert_array_equal(one, other)


# Keras' folder format traces every layer: ten seconds a model, and `test_served_through_the_version_1_loader` traces
# all of them. It is here for the plainest, for one whose layers hold layers, and for one of two towers.
FOLDERS = [(case, "saved_model") for case in ("dlrm", "dcn_v2", "wide_deep")]


@pytest.mark.parametrize(
    ("case", "name"),
    [*((case, "model.keras") for case, (name, _) in SETTINGS.items() if case == name), *FOLDERS],
)
def test_save_and_load_model(case, name, tmp_path):
    spec = SPECS["weighted_bags"]
    batch, label = make_batch(spec)
    # Dropout has a counter of its own to bring back.
    model = compile_pair(make_model(case, spec, dropout=0.1, embedding_l2=0.01), eagerly=True)
    model.fit(batch, label, verbose=0)
    model.save(str(tmp_path / name))
    loaded = keras.models.load_model(str(tmp_path / name))
    np.testing.assert_array_equal(loaded(tensors(batch)), model(tensors(batch)))
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    if name == "saved_model" and case == "dlrm":
        loaded.fit(batch, label, verbose=0)
    if name.endswith(".keras"):
        assert type(loaded) is type(model)
        assert loaded.get_config() == model.get_config()
        for one, other in zip(
            [*model.weights, *model.optimizer.weights], [*loaded.weights, *loaded.optimizer.weights], strict=True
        ):
            np.testing.assert_array_equal(one, other)
        for each in (model, loaded):
            each.run_eagerly = True
            each.fit(batch, label, shuffle=False, verbose=0)
        np.testing.assert_allclose(loaded(tensors(batch)), model(tensors(batch)), rtol=1e-6)


@every_model
def test_served_through_the_version_1_loader(case, tmp_path):
    spec = SPECS["weighted_bags"]
    model = draw_weights(make_model(case, spec))
    batch, _ = make_batch(spec)
    oov_rows = {"user": 1, "tag": 2, "item": 3}
    directory = export_model(model, None, tmp_path, oov_rows=oov_rows)
    unseen = {**batch, "sparse": batch["sparse"].astype(np.int64)}
    unseen["sparse"][:4, 0] = [ROWS, -7, 2**40, 5]
    known = {**batch, "sparse": batch["sparse"].copy()}
    known["sparse"][:4, 0] = [1, 1, 1, 5]
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(directory))
        signature = loaded.signature_def["serve_ids"]
        feeds = {signature.inputs[name].name: value for name, value in unseen.items()}
        assert set(signature.inputs) == set(unseen)
        answer = session.run(signature.outputs["probability"].name, feeds)
    np.testing.assert_allclose(answer, model(tensors(known)), atol=1e-6)
    np.testing.assert_allclose(answer, forward(model, known), atol=1e-5)


@every_case
def test_mixed_bfloat16(case):
    model = draw_weights(make_model(case, precision="mixed_bfloat16"))
    batch, label = make_batch(model.spec)
    probability = model(tensors(batch))
    assert probability.dtype == tf.float32
    np.testing.assert_allclose(probability, forward(model, batch), atol=0.03)
    compile_pair(model, eagerly=True)
    before = model.get_weights()
    model.fit(batch, label, verbose=0)
    assert all(variable.dtype == tf.float32 for variable in model.weights)
    assert all(np.isfinite(value).all() for value in model.get_weights())
    assert all(
        np.abs(old - new).max() > 0
        for old, new in zip(before, model.get_weights(), strict=True)
        if old.dtype == np.float32
    )


@every_case
def test_accumulation_takes_the_same_step(case):
    batch, label = make_batch(SPECS["bags"])
    models = [draw_weights(make_model(case, SPECS["bags"])) for _ in range(2)]
    for model, steps in zip(models, (1, 3), strict=True):
        optimizer = DLRMOptimizer(SGD(0.5), keras.optimizers.legacy.SGD(0.5))
        model.compile(optimizer, run_eagerly=True, accumulation_steps=steps)
        before = model.get_weights()
        model.train_on_batch(tensors(batch), tf.constant(label))
    moved = [np.abs(old - new).max() for old, new in zip(before, model.get_weights(), strict=True)]
    assert min(moved) > 0
    for one, other in zip(*[model.get_weights() for model in models], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@every_model
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_loss_is_computed_from_logits(case, policy):
    """At a logit of 1e4 on the wrong side the loss is 1e4 with gradient 1, not a clipped 15.3 with gradient 0."""
    model = make_model(case, precision=policy)
    for variable in model.weights:
        variable.assign(tf.zeros_like(variable))
    linear = getattr(model, "linear_terms", None)
    bias = model.top.hidden[-1].bias if linear is None else linear.bias
    model.compile(keras.optimizers.legacy.SGD(0.1), loss="binary_crossentropy")
    batch, _ = make_batch(model.spec, rows=4)

    @tf.function
    def step(label):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(batch, label, model(batch, training=True))
        return loss, tape.gradient(loss, bias)

    in_bfloat16 = linear is None and policy != "float32"
    expected = float(tf.cast(tf.cast(1e4, tf.bfloat16), tf.float32)) if in_bfloat16 else 1e4
    for label, wrong in ((0.0, 1e4), (1.0, -1e4)):
        bias.assign([wrong])
        loss, gradient = step(tf.fill([4, 1], label))
        assert float(loss) == pytest.approx(expected, rel=1e-6)
        assert float(gradient[0]) == pytest.approx(np.sign(wrong), rel=1e-6)


@every_case
def test_weights_follow_from_the_seed_and_names_from_the_model(case):
    name, _ = SETTINGS[case]
    model, same = make_model(case), make_model(case)
    called = MODELS[name].from_config(model.get_config())  # not built: its first batch builds it
    called(tensors(make_batch(model.spec)[0]))
    names = [variable.name for variable in model.weights]
    assert len(set(names)) == len(names)
    for other in (same, called):
        assert [variable.name for variable in other.weights] == names
        for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(one, two)


@every_model
def test_no_op_of_a_training_step_has_the_shape_of_a_table(case):
    """Cost per step must not depend on the number of rows."""
    rows = 54_321
    settings = {"cross_rows": rows} if case == "wide_deep" else {}
    model = compile_pair(make_model(case, make_spec(hotness=2, rows=rows), embedding_l2=0.1, **settings))
    assert not large_ops(model, *make_batch(model.spec), rows)
