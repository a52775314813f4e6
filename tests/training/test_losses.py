"""Every loss against NumPy in double precision, with gradients; what it keeps at extreme logits and through saving."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy.special import expit

from tfdlrm.models.build import MODELS, build
from tfdlrm.spec.config import load_config
from tfdlrm.spec.errors import ConfigError, SpecError
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.spec.model_config import ModelConfig
from tfdlrm.spec.train_config import TrainConfig
from tfdlrm.training.losses import ClickLoss, build_loss
from tfdlrm.training.trainer import compile_model

RNG = np.random.default_rng(5)
SPEC = FeatureSpec(
    dense=[{"name": "x"}],
    sparse=[{"name": "a", "table": "a"}, {"name": "b", "table": "b"}],
    tables=[{"name": n, "vocabulary_size": 9, "embedding_dim": 4} for n in "ab"],
)
SMALL = ModelConfig(embedding_dim=4, bottom_units=(8, 4), top_units=(8, 1), pair=("a", "b"), crosses=(("a", "b"),))
KINDS = [{"loss": "bce"}, {"loss": "wbce", "loss_weights": (0.5, 3.0)}, {"loss": "mse"}]
SETTINGS = [
    {**kind, "loss_threshold": threshold, "label_smoothing": smoothing}
    for kind, threshold, smoothing in itertools.product(KINDS, (0.0, 0.1), (0.0, 0.2))
]


def oracle(logits, labels, loss, loss_weights=None, loss_threshold=0.0, label_smoothing=0.0):
    """Return the loss of each row and its derivative by the logit."""
    p = expit(logits)
    inside = (p >= loss_threshold) & (p <= 1 - loss_threshold)
    # 1 - p from the logit itself: at 40 it is 4e-18, which a difference would lose.
    q = expit(-logits)
    if loss_threshold:
        p, q = np.clip(p, loss_threshold, 1 - loss_threshold), np.clip(q, loss_threshold, 1 - loss_threshold)
    target = labels * (1 - label_smoothing) + label_smoothing / 2
    if loss == "mse":
        return (p - target) ** 2, 2 * (p - target) * p * q * inside
    weight = np.where(labels == 1, loss_weights[1], loss_weights[0]) if loss == "wbce" else 1.0
    return -weight * (target * np.log(p) + (1 - target) * np.log(q)), weight * (p - target) * inside


def computed(loss, logits, labels, sample_weight=None, in_graph=False):
    variable = tf.Variable(logits[:, None], dtype=tf.float32)

    def step():
        with tf.GradientTape() as tape:
            value = loss(tf.constant(labels[:, None], tf.float32), keras.activations.sigmoid(variable), sample_weight)
        return value, tape.gradient(value, variable)

    value, gradient = (tf.function(step) if in_graph else step)()
    return float(value), gradient.numpy()[:, 0]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_value_and_gradient_are_numpys(settings, weighted):
    logits = np.concatenate([RNG.normal(scale=2, size=50), [-40, 40, -40, 40]])
    labels = np.concatenate([RNG.integers(0, 2, 50), [0, 0, 1, 1]]).astype(float)
    weight = RNG.uniform(0, 2, logits.size) if weighted else np.ones(logits.size)
    losses, slopes = oracle(logits, labels, **settings)
    sample_weight = tf.constant(weight[:, None], tf.float32) if weighted else None
    value, gradient = computed(ClickLoss(**settings), logits, labels, sample_weight)
    assert value == pytest.approx(np.mean(weight * losses), rel=1e-5)
    np.testing.assert_allclose(gradient, weight * slopes / logits.size, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("settings", KINDS[:2], ids=str)
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_logit_of_10000_on_the_wrong_side_costs_10000(settings, label):
    logit, weight = (1e4, 0.5) if label == 0 else (-1e4, 3.0)
    weight = weight if settings["loss"] == "wbce" else 1.0
    value, gradient = computed(ClickLoss(**settings), np.array([logit]), np.array([label]), in_graph=True)
    assert value == pytest.approx(weight * 1e4, rel=1e-6)
    assert gradient[0] == pytest.approx(weight * np.sign(logit), rel=1e-6)


def test_a_threshold_next_to_nothing_loses_no_digit():
    """At t = 1e-12 probabilities in float32 could not be drawn in at all: 1 - t is 1."""
    loss = ClickLoss(loss_threshold=1e-12)
    value, gradient = computed(loss, np.array([25.0]), np.array([0.0]))
    assert (value, gradient[0]) == pytest.approx((25.0, 1.0), rel=1e-6)
    value, gradient = computed(loss, np.array([30.0]), np.array([0.0]))
    assert value == pytest.approx(-np.log(1e-12), rel=1e-6)
    assert gradient[0] == 0


def test_labels_of_one_dimension_are_rows_too():
    p = tf.constant([[0.2], [0.7], [0.4]])
    for settings in SETTINGS:
        loss = ClickLoss(**settings)
        assert float(loss(tf.constant([1.0, 0.0, 1.0]), p)) == float(loss(tf.constant([[1.0], [0.0], [1.0]]), p))


def test_plain_log_loss_has_the_operations_of_keras_own():
    def operations(loss):
        @tf.function
        def step(label, logit):
            return loss(label, keras.activations.sigmoid(logit))

        columns = [tf.TensorSpec([None, 1], tf.float32)] * 2
        return [op.type for op in step.get_concrete_function(*columns).graph.get_operations()]

    assert len(operations(ClickLoss())) <= len(operations(keras.losses.BinaryCrossentropy()))
    assert sorted(operations(ClickLoss())) == sorted(operations(keras.losses.BinaryCrossentropy()))


def batch_of(rows):
    features = {"dense": RNG.normal(size=(rows, 1)).astype(np.float32), "sparse": RNG.integers(0, 9, (rows, 2))}
    return features, RNG.integers(0, 2, (rows, 1)).astype(np.float32), RNG.random((rows, 1), np.float32)


def compiled(name="dlrm", precision="float32", **settings):
    model = build(name, SPEC, SMALL, precision, seed=2)
    compile_model(model, TrainConfig(**{"embedding": {"name": "adagrad"}, **settings}))
    return model


def loss_of(model, features, label, weight=None):
    """Return what a training step would minimise."""
    weight = None if weight is None else tf.constant(weight)
    return float(model.compute_loss(features, tf.constant(label), model(features), weight))


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("settings", SETTINGS[-1:] + SETTINGS[7:8], ids=str)
def test_any_model_is_trained_by_it(name, settings):
    model = compiled(name, **settings)
    features, label, weight = batch_of(60)
    logits = model.logits(features).numpy()[:, 0].astype(float)
    losses, _ = oracle(logits, label[:, 0], **settings)
    assert loss_of(model, features, label, weight) == pytest.approx(np.mean(weight[:, 0] * losses), rel=1e-4)


def test_accumulated_passes_take_the_same_step():
    features, label, weight = batch_of(23)
    models = [compiled(accumulation_steps=steps, **SETTINGS[7]) for steps in (1, 4)]
    logs = [
        model.fit(features, label, sample_weight=weight, batch_size=10, shuffle=False, verbose=0) for model in models
    ]
    assert logs[0].history["loss"] == pytest.approx(logs[1].history["loss"], rel=1e-5)
    for one, other in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("file", ["model.keras", "saved"])
def test_survives_saving(tmp_path, file):
    model = compiled(**SETTINGS[7])
    features, label, weight = batch_of(12)
    model.fit(features, label, verbose=0)
    model.save(tmp_path / file)
    loaded = keras.models.load_model(tmp_path / file)
    assert loaded.loss.get_config() == model.loss.get_config()
    assert loaded.loss.settings.loss_weights == (0.5, 3.0)
    found = [loss_of(one, features, label, weight) for one in (model, loaded)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_under_bfloat16_the_loss_is_of_the_models_logits():
    model = compiled(precision="mixed_bfloat16", **SETTINGS[5])
    features, label, _ = batch_of(40)
    losses, _ = oracle(model.logits(features).numpy()[:, 0].astype(float), label[:, 0], **SETTINGS[5])
    assert loss_of(model, features, label) == pytest.approx(losses.mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_weights": (1.0, 2.0)}, '`loss_weights` must be given exactly where `loss` is "wbce"'),
        ({"loss": "wbce"}, '`loss_weights` must be given exactly where `loss` is "wbce". Received: None'),
        ({"loss": "wbce", "loss_weights": (1.0, 0.0)}, r"`loss_weights` must both be above 0. Received: \[1.0, 0.0\]"),
        ({"loss_threshold": 0.5}, "`loss_threshold` must be below 0.5.* Received: 0.5"),
        ({"loss_threshold": -0.1}, "`loss_threshold`.*greater than or equal to 0. Received: -0.1"),
        ({"loss": "hinge"}, "'bce', 'wbce' or 'mse'. Received: 'hinge'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(SpecError, match=message):
        ClickLoss(**settings)
    overrides = [f"train.{key}={value if key == 'loss' else value!r}" for key, value in settings.items()]
    with pytest.raises(ConfigError, match=message.replace(r"Received: \[1.0, 0.0\]", "Received")):
        load_config(None, [text.replace("(", "[").replace(")", "]") for text in overrides])


def test_configuration_reaches_the_model():
    config = load_config(None, ["train.loss=wbce", "train.loss_weights=[1, 2.5]", "train.label_smoothing=0.1"]).train
    loss = build_loss(config)
    assert loss.get_config() == {
        **{"name": "click_loss", "reduction": "auto", "loss": "wbce", "loss_weights": [1.0, 2.5]},
        **{"loss_threshold": 0.0, "label_smoothing": 0.1},
    }
