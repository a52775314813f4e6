import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfdlrm.models.accumulation import accumulated_gradients
from tfdlrm.models.dlrm import DLRM
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.spec.train_config import EmbeddingOptimizerConfig, TrainConfig
from tfdlrm.training.trainer import build_optimizer

RNG = np.random.default_rng(0)
SPEC = FeatureSpec(
    dense=[{"name": "x"}, {"name": "y"}],
    sparse=[{"name": "a", "table": "a", "hotness": 3, "combiner": "mean"}, {"name": "b", "table": "b"}],
    tables=[{"name": n, "vocabulary_size": 9, "embedding_dim": 4} for n in "ab"],
)


def rows(count):
    features = {
        "dense": RNG.normal(size=(count, 2)).astype(np.float32),
        "sparse": RNG.integers(-1, 9, size=(count, 4)).astype(np.int32),
    }
    return features, RNG.integers(0, 2, size=(count, 1)).astype(np.float32), RNG.random((count, 1), np.float32)


def model_with(pieces, optimizer="sgd", **kwargs):
    model = DLRM(SPEC, bottom_units=(8, 4), top_units=(8, 1), seed=1, **kwargs)
    model.build()
    config = TrainConfig(embedding=EmbeddingOptimizerConfig(name=optimizer, learning_rate=0.1))
    loss = keras.losses.BinaryCrossentropy()
    model.compile(build_optimizer(config), loss, accumulation_steps=pieces, weighted_metrics=["mse"])
    return model


@pytest.mark.parametrize(("optimizer", "pieces", "weighted"), [("sgd", 2, True), ("rowwise_adagrad", 7, False)])
def test_pieces_equal_one_large_batch(optimizer, pieces, weighted):
    # 10 rows a batch, the last one has 3: uneven pieces, and fewer rows than pieces.
    features, label, weight = rows(23)
    parts = (features, label, weight) if weighted else (features, label)
    data = tf.data.Dataset.from_tensor_slices(parts).batch(10)
    whole, cut = model_with(1, optimizer, embedding_l2=0.1), model_with(pieces, optimizer, embedding_l2=0.1)
    start = cut.get_weights()
    logs = [model.fit(data, epochs=2, verbose=0).history for model in (whole, cut)]
    for name, values in logs[0].items():
        np.testing.assert_allclose(logs[1][name], values, rtol=1e-5)
    for expected, got in zip(whole.get_weights(), cut.get_weights(), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)
    assert all(np.abs(new - old).max() > 0 for new, old in zip(cut.get_weights(), start, strict=True))


def test_gradients_stay_sparse():
    features, label, _ = rows(12)
    model = model_with(3)
    inputs = {name: tf.constant(values) for name, values in features.items()}
    step = tf.function(lambda: accumulated_gradients(model, inputs, tf.constant(label), None, 3))
    gradients, predicted = step()
    sparse = [g for g in gradients if isinstance(g, tf.IndexedSlices)]
    assert sum(int(tf.size(g.indices)) for g in sparse) == 12 * SPEC.n_ids
    np.testing.assert_allclose(predicted, model(features), rtol=1e-5)


def test_survives_saving(tmp_path):
    model = model_with(4)
    model.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").accumulation_steps == 4


def test_no_pieces_is_refused():
    with pytest.raises(ValueError, match=r"`accumulation_steps` must be at least 1. Received: 0."):
        model_with(0)
