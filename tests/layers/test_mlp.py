import numpy as np
import pytest
import tensorflow as tf

from tests.layers.contract import check_layer_contract
from tfdlrm.layers.dropout import CountedDropout
from tfdlrm.layers.mlp import MLP


def test_contract(tmp_path):
    inputs = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    check_layer_contract(MLP, {"units": [6, 3], "final_activation": None, "seed": 3}, inputs, tmp_path)


def test_contract_of_dropout(tmp_path):
    inputs = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    check_layer_contract(CountedDropout, {"rate": 0.4, "seed": 3}, inputs, tmp_path)


def test_dropout_keeps_the_mean_and_the_share():
    layer = CountedDropout(0.25, seed=1)
    out = layer(tf.ones([200, 500]), training=True).numpy()
    assert set(np.unique(out)) == {0.0, np.float32(1 / 0.75)}
    assert (out == 0).mean() == pytest.approx(0.25, abs=0.01)


def test_forward_matches_numpy():
    mlp = MLP([4, 2], final_activation="sigmoid", seed=1)
    x = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    y = mlp(x).numpy()
    (w1, b1), (w2, b2) = (layer.get_weights() for layer in mlp.hidden)
    expected = 1 / (1 + np.exp(-(np.maximum(x @ w1 + b1, 0) @ w2 + b2)))
    np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_initial_variances_are_the_papers():
    n, m = 400, 600
    mlp = MLP([m, m], seed=2)
    mlp.build(tf.TensorShape([None, n]))
    kernel, bias = mlp.hidden[0].get_weights()
    assert kernel.var() == pytest.approx(2 / (n + m), rel=0.02)
    assert bias.var() == pytest.approx(1 / m, rel=0.2)
    assert abs(kernel.mean()) < 1e-3
    # Not truncated: a normal of this size has values beyond 3.5 standard deviations.
    assert np.abs(kernel).max() > 3.5 * kernel.std()


def test_layers_of_one_shape_start_apart():
    mlp = MLP([8, 8, 8], seed=5)
    mlp.build(tf.TensorShape([None, 8]))
    kernels = [layer.get_weights()[0] for layer in mlp.hidden]
    assert not np.allclose(kernels[0], kernels[1])
    assert not np.allclose(kernels[1], kernels[2])


def test_same_seed_same_weights():
    first, second = MLP([3], seed=9), MLP([3], seed=9)
    x = tf.ones([1, 4])
    np.testing.assert_array_equal(first(x), second(x))


def test_dropout_only_in_training_and_counted():
    mlp = MLP([1000, 1], final_activation=None, dropout=0.5, seed=4)
    x = tf.ones([2, 3])
    np.testing.assert_array_equal(mlp(x), mlp(x))
    first, second = mlp(x, training=True), mlp(x, training=True)
    assert not np.allclose(first, second)
    again = MLP([1000, 1], final_activation=None, dropout=0.5, seed=4)
    np.testing.assert_array_equal(again(x, training=True), first)
    assert int(mlp.drops[0].calls) == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"units": []}, r"`units` must be one or more widths.*Received: \[\]"),
        ({"units": [4, 0]}, r"`units` must be .* Received: \[4, 0\]"),
        ({"units": [4], "dropout": 1.0}, r"`dropout` must be at least 0 and below 1. Received: 1.0"),
    ],
)
def test_bad_arguments(config, message):
    with pytest.raises(ValueError, match=message):
        MLP(**config)
