import numpy as np
import pytest

from tests.layers.contract import check_layer_contract
from tfdlrm.layers.cin import CompressedInteraction

RNG = np.random.default_rng(0)


def pooled_maps(layer, inputs):
    """Oracle: equations 6 and 7 of the paper in loops over maps and pairs."""
    samples, m, _ = inputs.shape
    outputs = []
    for sample in range(samples):
        x0 = inputs[sample].astype(np.float64)
        maps, pooled = x0, []
        for kernel, units in zip(layer.get_weights(), layer.units, strict=True):
            weights = kernel.reshape(len(maps), m, units)
            new = []
            for h in range(units):
                total = np.zeros(x0.shape[1])
                for i in range(len(maps)):
                    for j in range(m):
                        total += weights[i, j, h] * (maps[i] * x0[j])
                new.append(total)
                pooled.append(total.sum())
            maps = np.array(new)
        outputs.append(pooled)
    return np.array(outputs)


def test_contract(tmp_path):
    inputs = RNG.uniform(-0.5, 0.5, size=(4, 5, 3)).astype(np.float32)
    check_layer_contract(CompressedInteraction, {"units": [4, 2], "seed": 1}, inputs, tmp_path)


@pytest.mark.parametrize("units", [[3], [4, 2, 3]])
def test_matches_the_equations(units):
    inputs = RNG.normal(size=(3, 4, 5)).astype(np.float32)
    layer = CompressedInteraction(units, seed=1)
    np.testing.assert_allclose(layer(inputs), pooled_maps(layer, inputs), rtol=1e-4, atol=1e-4)


def test_seeds():
    first, same, other = (CompressedInteraction([5, 1], seed=seed) for seed in (1, 1, 2))
    for layer in (first, same, other):
        layer.build([None, 5, 2])
    for one, two, three in zip(first.get_weights(), same.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
        assert not np.array_equal(one, three)


@pytest.mark.parametrize("units", [[], [3, 0]])
def test_bad_units(units):
    with pytest.raises(ValueError, match="`units` must be one or more numbers of at least 1"):
        CompressedInteraction(units)


def test_bad_shape():
    with pytest.raises(ValueError, match=r"`inputs` must have shape \[B, m, d\] with m and d known"):
        CompressedInteraction([2])(np.zeros([2, 3], np.float32))
