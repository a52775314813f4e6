import numpy as np
import pytest

from tests.layers.contract import check_layer_contract
from tfdlrm.layers.linear import LinearTerms

RNG = np.random.default_rng(0)


def inputs(rows=4, dense=3):
    ids = RNG.normal(size=(rows, 5, 1)).astype(np.float32)
    return [ids, RNG.normal(size=(rows, dense)).astype(np.float32)] if dense else ids


@pytest.mark.parametrize("dense", [3, 0])
def test_contract(dense, tmp_path):
    check_layer_contract(LinearTerms, {}, inputs(dense=dense), tmp_path, compute_dtype_follows_policy=False)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_matches_a_sum_term_by_term(policy):
    ids, dense = inputs()
    layer = LinearTerms(dtype=policy)
    np.testing.assert_array_equal(layer([ids, 0 * dense]), ids.sum(axis=1))  # weights and bias start at 0
    weight, bias = RNG.normal(size=(3, 1)).astype(np.float32), np.array([0.7], np.float32)
    layer.set_weights([weight, bias])
    expected = []
    for sample in range(4):
        total = bias[0]
        for feature in range(5):
            total += ids[sample, feature, 0]
        for feature in range(3):
            total += weight[feature, 0] * dense[sample, feature]
        expected.append([total])
    np.testing.assert_allclose(layer([ids, dense]), expected, rtol=1e-5)


@pytest.mark.parametrize("shapes", [[(2, 3)], [(2, 3, 2)], [(2, 3, 1), (2, 3, 1)], [(2, 3, 1), (2, 3), (2, 3)]])
def test_bad_shapes(shapes):
    with pytest.raises(ValueError, match=r"`inputs` must have shapes \[B, F, 1\] and \[B, n\]"):
        LinearTerms().build(shapes)
