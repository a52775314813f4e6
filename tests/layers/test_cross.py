import numpy as np
import pytest
import tensorflow_recommenders as tfrs

from tests.layers.contract import check_layer_contract
from tfdlrm.layers.cross import CrossNetwork

RNG = np.random.default_rng(0)
KINDS = {"vector": {"kernel": "vector"}, "matrix": {}, "low_rank": {"rank": 2}}


def network(depth=3, n=5, **config):
    """Return a network with biases that are not zero."""
    layer = CrossNetwork(depth, seed=3, **config)
    layer.build([None, n])
    for bias in layer.biases:
        bias.assign(RNG.normal(size=n))
    return layer


def crossed(layer, inputs):
    """Oracle: the equations, number by number."""
    outputs = []
    for x0 in inputs.astype(np.float64):
        x, n = x0, len(x0)
        for factors, bias in zip(layer.kernels, layer.biases, strict=True):
            factors, bias = [factor.numpy().astype(np.float64) for factor in factors], bias.numpy()
            if layer.kernel == "vector":
                product = sum(factors[0][j, 0] * x[j] for j in range(n))
                x = np.array([x0[i] * product + bias[i] + x[i] for i in range(n)])
                continue
            matrix = factors[0]
            if len(factors) == 2:
                v, u = factors
                matrix = np.array([[sum(v[j, r] * u[r, i] for r in range(len(u))) for i in range(n)] for j in range(n)])
            products = [sum(matrix[j, i] * x[j] for j in range(n)) for i in range(n)]
            x = np.array([x0[i] * (products[i] + bias[i]) + x[i] for i in range(n)])
        outputs.append(x)
    return np.array(outputs)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_contract(config, tmp_path):
    inputs = RNG.uniform(-0.5, 0.5, size=(4, 5)).astype(np.float32)
    check_layer_contract(CrossNetwork, {"depth": 2, "seed": 1, **config}, inputs, tmp_path)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_matches_the_equations(config):
    layer, inputs = network(**config), RNG.normal(size=(6, 5)).astype(np.float32)
    np.testing.assert_allclose(layer(inputs), crossed(layer, inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [None, 2])
def test_matches_tensorflow_recommenders(rank):
    layer, inputs = network(rank=rank), RNG.normal(size=(6, 5)).astype(np.float32)
    x = inputs
    for factors, bias in zip(layer.kernels, layer.biases, strict=True):
        other = tfrs.layers.dcn.Cross(projection_dim=rank)
        other(inputs, inputs)
        other.set_weights([*(factor.numpy() for factor in factors), bias.numpy()])
        x = other(inputs, x)
    np.testing.assert_allclose(layer(inputs), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_seeds(config):
    first, same, other = (CrossNetwork(2, seed=seed, **config) for seed in (1, 1, 2))
    for layer in (first, same, other):
        layer.build([None, 5])
    for one, two, three in zip(first.get_weights()[:2], same.get_weights()[:2], other.get_weights()[:2], strict=True):
        np.testing.assert_array_equal(one, two)
        assert not np.array_equal(one, three)
    assert not np.array_equal(first.kernels[0][0], first.kernels[1][0])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"depth": 0}, "`depth` must be at least 1. Received: 0"),
        ({"depth": 1, "rank": 0}, "`rank` must be at least 1, .* Received: 0"),
        ({"depth": 1, "rank": 2, "kernel": "vector"}, '`rank` must be .*`None` for `kernel` "vector". Received: 2'),
        ({"depth": 1, "kernel": "tensor"}, '`kernel` must be "matrix" or "vector"'),
    ],
)
def test_bad_arguments(config, message):
    with pytest.raises(ValueError, match=message):
        CrossNetwork(**config)


def test_bad_shape():
    with pytest.raises(ValueError, match=r"`inputs` must have shape \[B, n\] with n known"):
        CrossNetwork(1)(np.zeros([2, 3, 4], np.float32))
