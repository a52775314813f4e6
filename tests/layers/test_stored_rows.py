import numpy as np
import pytest
import tensorflow as tf

from tests.layers.compressed import mix
from tfdlrm.layers.stored_rows import hashed_rows, read_rows


def test_the_generator_is_the_published_one():
    # The first numbers of SplitMix64 seeded with 1234567, as in its reference tests: each adds one increment.
    states = [(1234567 + n * 0x9E3779B97F4A7C15) % 2**64 for n in range(3)]
    assert [mix(state) for state in states] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_hashed_rows_match_python_integers(dtype):
    ids = np.array([-1, 0, 4, 5, 6, 2**31 - 1, 123456789])
    got = hashed_rows(tf.constant(ids, dtype), 5, 17).numpy()
    assert got.tolist() == [-1, 0, 4, *(5 + mix(int(i)) % 12 for i in ids[3:])]
    assert got.dtype == dtype
    matrix = hashed_rows(tf.constant([ids[3:5], ids[3:5]], dtype), [0, 5], [9, 1000])
    assert matrix.numpy().tolist() == [[mix(5) % 9, 5 + mix(6) % 995]] * 2


def test_large_ids_keep_all_their_bits():
    ids = np.array([2**40 + 7, 2**40 + 2**32 + 7, 7])
    rows = hashed_rows(tf.constant(ids), 0, 10**6).numpy()
    assert rows.tolist() == [mix(int(i)) % 10**6 for i in ids]
    assert len(set(rows.tolist())) == 3


def test_hashes_fill_all_rows_evenly():
    rows = hashed_rows(tf.range(100_000), 100, 1100).numpy()
    counts = np.bincount(rows, minlength=1100)
    assert (counts[:100] == 1).all()
    expected = 99_900 / 1000
    assert counts[100:].var() == pytest.approx(expected, rel=0.15)  # Poisson's, about
    assert (
        (counts[100:] - expected) ** 2 / expected
    ).sum() < 1150  # chi-square of 999 degrees: 1143 is the 99.9% point


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("in_graph", [False, True])
def test_gradients_of_half_rows_are_not_rounded(dtype, in_graph):
    variable = tf.Variable(tf.cast(np.ones([5, 2]), dtype))
    upstream = np.float32(1 + 2**-20)

    def gradient():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(read_rows(variable, tf.constant([[1, 3, 1]])) * upstream)
        return tape.gradient(loss, variable)

    got = (tf.function(gradient) if in_graph else gradient)()
    assert got.indices.numpy().tolist() == [1, 3, 1]
    assert got.dense_shape.numpy().tolist() == [5, 2]
    np.testing.assert_array_equal(got.values, np.full([3, 2], upstream))
