import itertools

import numpy as np
import pytest

from tfdlrm.layers.embedding import EmbeddingCollection
from tfdlrm.spec.features import FeatureSpec

ROWS, D = 30_000, 16
OPERATIONS = (None, "mult", "add", "concat")


def layer_of(compression, initializer="uniform_rows", seed=5):
    table = {"name": "x", "vocabulary_size": ROWS, "embedding_dim": D, "initializer": initializer}
    return EmbeddingCollection(
        FeatureSpec(sparse=[{"name": "a", "table": "x"}], tables=[{**table, "compression": compression}]), seed=seed
    )


@pytest.mark.parametrize(("operation", "dim", "hash_rows"), itertools.product(OPERATIONS, (None, 8), (None, 9000)))
def test_vectors_start_with_the_variance_of_the_plain_table(operation, dim, hash_rows):
    split = {"operation": operation, "collisions": 90} if operation else None
    settings = {"quotient_remainder": split, "dim": dim, "hash_rows": hash_rows}
    # A projection has few numbers and an `add` few rows: over several draws, what depends on their luck averages out.
    rows = np.stack([layer_of(settings, seed=seed).get_table("x") for seed in range(3)])
    assert rows.var() == pytest.approx(1 / ROWS / 3, rel=0.15)
    assert abs(rows.mean()) < 0.1 * rows.std()


def test_the_exact_bounds_of_each_part():
    bound = ROWS**-0.5
    layer = layer_of({"quotient_remainder": {"collisions": 200}})
    quotient, remainder = layer.get_part("x", "quotient"), layer.get_part("x", "remainder")
    assert 0.99 * bound < np.abs(quotient).max() * (13 / 12) ** 0.5 <= bound
    assert 0.5 <= remainder.min() < 0.51
    assert 1.49 < remainder.max() <= 1.5
    layer = layer_of({"quotient_remainder": {"collisions": 200, "operation": "add"}})
    for part in ("quotient", "remainder"):
        assert 0.99 * bound < np.abs(layer.get_part("x", part)).max() * 2**0.5 <= bound * 1.000001
    layer = layer_of({"dim": 4})
    kernel = layer.get_part("x", "projection")
    assert np.abs(kernel).max() <= (6 / 20) ** 0.5
    assert kernel.var() == pytest.approx(2 / 20, rel=0.4)


def test_half_tables_start_as_the_rounded_plain_table():
    plain = layer_of(None).get_table("x")
    np.testing.assert_allclose(layer_of({"dtype": "bfloat16"}).get_table("x"), plain, rtol=2**-8)
    np.testing.assert_allclose(layer_of({"dtype": "float16"}).get_table("x"), plain, rtol=2**-10, atol=2**-25)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dim", [None, 8])
def test_zeros_are_zeros_and_can_be_trained(operation, dim):
    split = {"operation": operation, "collisions": 90} if operation else None
    layer = layer_of({"quotient_remainder": split, "dim": dim}, "zeros")
    assert not layer.get_table("x").any()
    if operation == "mult":  # with two zeros no gradient would reach either
        assert layer.get_part("x", "remainder").min() >= 0.5
