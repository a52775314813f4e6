import numpy as np
import pytest

from tests.layers.contract import check_layer_contract
from tfdlrm.layers.factorization import FactorizationInteraction

RNG = np.random.default_rng(0)


def all_pairs(vectors):
    """Oracle: the dot products one by one, as the machine is defined."""
    sums = []
    for sample in vectors:
        total = 0.0
        for i in range(len(sample)):
            for j in range(i + 1, len(sample)):
                total += float(np.dot(sample[i].astype(np.float64), sample[j].astype(np.float64)))
        sums.append([total])
    return np.array(sums)


def test_contract(tmp_path):
    vectors = RNG.normal(size=(4, 5, 3)).astype(np.float32)
    check_layer_contract(FactorizationInteraction, {}, vectors, tmp_path, compute_dtype_follows_policy=False)


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_matches_all_pairs(n, policy):
    vectors = RNG.normal(size=(6, n, 4)).astype(np.float32)
    layer = FactorizationInteraction(dtype=policy)
    np.testing.assert_allclose(layer(vectors), all_pairs(vectors), rtol=1e-4, atol=1e-5)


def test_bad_shape():
    with pytest.raises(ValueError, match=r"`inputs` must have shape \[B, n, d\]"):
        FactorizationInteraction()(np.zeros([2, 3], np.float32))
