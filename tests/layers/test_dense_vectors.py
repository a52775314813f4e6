import numpy as np
import pytest

from tests.layers.contract import check_layer_contract
from tfdlrm.layers.dense_vectors import DenseVectors

RNG = np.random.default_rng(0)


def test_contract(tmp_path):
    numbers = RNG.normal(size=(4, 3)).astype(np.float32)
    check_layer_contract(DenseVectors, {"embedding_dim": 5, "seed": 2}, numbers, tmp_path)


def test_a_number_scales_the_vector_of_its_feature():
    numbers = RNG.normal(size=(4, 3)).astype(np.float32)
    layer = DenseVectors(2)
    result = layer(numbers).numpy()
    vectors = layer.get_weights()[0]
    assert result.shape == (4, 3, 2)
    for sample, feature, k in np.ndindex(result.shape):
        assert result[sample, feature, k] == pytest.approx(numbers[sample, feature] * vectors[feature, k], rel=1e-6)


def test_seed_and_spread():
    first, same, other = (DenseVectors(1000, seed=seed) for seed in (1, 1, 2))
    for layer in (first, same, other):
        layer.build([None, 10])
    np.testing.assert_array_equal(first.vectors, same.vectors)
    assert not np.array_equal(first.vectors, other.vectors)
    assert np.std(first.vectors) == pytest.approx(0.05, rel=0.03)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`embedding_dim` must be at least 1. Received: 0"):
        DenseVectors(0)
    with pytest.raises(ValueError, match=r"`inputs` must have shape \[B, n\] with n known"):
        DenseVectors(2)(np.zeros([2, 3, 1], np.float32))
