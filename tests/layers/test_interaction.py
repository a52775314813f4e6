import numpy as np
import pytest
import tensorflow as tf

from tests.layers.contract import check_layer_contract
from tfdlrm.layers.interaction import CatInteraction, DotInteraction
from tfdlrm.layers.triangle import lower_triangle

RNG = np.random.default_rng(0)


def pairwise(vectors, self_interaction):
    """Oracle: the products one by one, in the order (1,0), (2,0), (2,1) ..."""
    rows = []
    for sample in vectors:
        rows.append(
            [sample[i] @ sample[j] for i in range(len(sample)) for j in range(i + 1 if self_interaction else i)]
        )
    return np.array(rows)


@pytest.mark.parametrize("self_interaction", [False, True])
def test_contract(self_interaction, tmp_path):
    inputs = RNG.normal(size=(4, 5, 3)).astype(np.float32)
    check_layer_contract(DotInteraction, {"self_interaction": self_interaction}, inputs, tmp_path)


def test_contract_of_a_list(tmp_path):
    inputs = [RNG.normal(size=(4, 3)).astype(np.float32) for _ in range(3)]
    check_layer_contract(DotInteraction, {}, inputs, tmp_path)


def test_contract_of_cat(tmp_path):
    check_layer_contract(CatInteraction, {}, RNG.normal(size=(4, 5, 3)).astype(np.float32), tmp_path)


@pytest.mark.parametrize("self_interaction", [False, True])
def test_matches_pairwise_products(self_interaction):
    vectors = RNG.normal(size=(6, 7, 4)).astype(np.float32)
    products = DotInteraction(self_interaction)(vectors)
    np.testing.assert_allclose(products, pairwise(vectors, self_interaction), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", ["product", "copies"])
@pytest.mark.parametrize(("n", "self_interaction"), [(1, True), (2, False), (2, True), (27, False), (27, True)])
def test_both_ways_pick_the_same_triangle(n, self_interaction, way):
    vectors = RNG.normal(size=(3, n, 4)).astype(np.float32)
    products = tf.function(lower_triangle(n, self_interaction, way))(vectors)
    np.testing.assert_allclose(products, pairwise(vectors, self_interaction), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", ["product", "copies"])
@pytest.mark.parametrize("self_interaction", [False, True])
def test_gradient_matches_finite_differences(self_interaction, way):
    vectors = RNG.normal(size=(2, 4, 3))
    upstream = RNG.normal(size=(2, 10 if self_interaction else 6))
    pick = tf.function(lower_triangle(4, self_interaction, way))
    with tf.GradientTape() as tape:
        x = tf.constant(vectors)
        tape.watch(x)
        loss = tf.reduce_sum(pick(x) * upstream)
    gradient = tape.gradient(loss, x).numpy()
    step = 1e-6
    for index in np.ndindex(vectors.shape):
        shifted = vectors.copy()
        shifted[index] += step
        difference = ((pairwise(shifted, self_interaction) - pairwise(vectors, self_interaction)) * upstream).sum()
        assert gradient[index] == pytest.approx(difference / step, abs=1e-4)


def test_cat_is_concatenation():
    vectors = RNG.normal(size=(2, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(CatInteraction()(vectors), vectors.reshape(2, 12))
    np.testing.assert_array_equal(CatInteraction()([vectors[:, i] for i in range(3)]), vectors.reshape(2, 12))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros([2, 3], np.float32), r"`inputs` must have shape \[B, n, d\]"),
        (np.zeros([2, 1, 3], np.float32), r"`inputs` must hold at least two vectors"),
        ([np.zeros([2, 3], np.float32), np.zeros([2, 4], np.float32)], r"list of tensors \[B, d\] of one width"),
    ],
)
def test_bad_inputs(inputs, message):
    with pytest.raises(ValueError, match=message):
        DotInteraction()(inputs)
