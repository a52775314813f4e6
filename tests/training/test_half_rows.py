import numpy as np
import pytest
import tensorflow as tf
from tf_keras.optimizers import legacy

from tfdlrm.spec.errors import ConfigError
from tfdlrm.training.half_rows import stochastically_rounded
from tfdlrm.training.optimizers import DLRMOptimizer
from tfdlrm.training.row_optimizers import SGD, Adagrad, Ftrl, LazyAdam, RowWiseAdagrad
from tfdlrm.training.schedule import WarmupHoldDecay

HALF = pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
RNG = np.random.default_rng(0)


def rounded(values, dtype, seed=0):
    return tf.cast(stochastically_rounded(tf.constant(values, tf.float32), dtype, [seed, 1]), tf.float64).numpy()


def neighbours(values, dtype):
    """The two values of the type between which each value lies, found by stepping from the nearest one."""
    near = np.asarray(values, np.float64).astype(dtype.as_numpy_dtype)
    up, down = (np.nextafter(near, near.dtype.type(side)) for side in (np.inf, -np.inf))
    exact = near.astype(np.float64)
    low = np.where(exact > values, down.astype(np.float64), exact)
    high = np.where(exact < values, up.astype(np.float64), exact)
    return low, high


@HALF
def test_what_the_type_holds_stays(dtype):
    near = tf.cast(tf.cast(RNG.normal(size=500) * 10.0 ** RNG.integers(-7, 5, 500), dtype), tf.float32).numpy()
    held = np.concatenate([near, [0.0, -0.0, 1.0, -2.0, 2.0**-24, 60000.0 if dtype == tf.float16 else 1e38]])
    held = tf.cast(tf.cast(held, dtype), tf.float32).numpy()
    for seed in range(5):
        np.testing.assert_array_equal(rounded(held, dtype, seed), held)


@HALF
def test_other_values_go_to_a_neighbour_with_the_right_mean(dtype):
    values = np.float32([1.001, -1.001, 3e-4, -7.7e-5, 1.3e-5, 0.333, -250.3, 2.0 - 2**-13, 3.1e-8])
    low, high = neighbours(values, dtype)
    n = 20_000
    got = rounded(np.tile(values, [n, 1]), dtype)
    assert ((got == low) | (got == high)).all()
    error = (got.mean(axis=0) - values) / np.maximum(high - low, 1e-300)
    assert np.abs(error).max() < 4 * 0.5 / n**0.5  # four standard errors of a fair coin, the worst case


@HALF
def test_neither_infinity_nor_nan_is_made_finite(dtype):
    got = rounded([np.inf, -np.inf, np.nan], dtype)
    np.testing.assert_array_equal(got, [np.inf, -np.inf, np.nan])


@HALF
@pytest.mark.parametrize("kind", [SGD, RowWiseAdagrad])
def test_many_tiny_steps_add_up_where_plain_rounding_loses_them(dtype, kind):
    width, steps = 4000, 50
    initial = tf.cast(tf.ones([2, width]), dtype)
    variable, optimizer = tf.Variable(initial), kind(1e-4)
    gradient = tf.IndexedSlices(tf.ones([1, width]), tf.constant([1]), tf.constant([2, width]))
    plain, total = initial[1], 0.0

    @tf.function
    def step():
        optimizer.apply_gradients([(gradient, variable)])

    for count in range(steps):
        step()
        size = 1e-4 if kind is SGD else 1e-4 / np.sqrt(count + 1)
        total += size
        plain = tf.cast(tf.cast(plain, tf.float32) - size, dtype)
    moved = 1 - tf.cast(variable[1], tf.float64).numpy()
    spacing = 2.0**-8 if dtype == tf.bfloat16 else 2.0**-11
    # A step goes one spacing or none: the sum over the steps has about the variance spacing * total.
    assert moved.mean() == pytest.approx(total, abs=4 * (spacing * total / width) ** 0.5)
    np.testing.assert_array_equal(plain, initial[1])  # not one of the steps was noticed
    np.testing.assert_array_equal(variable[0], initial[0])


@HALF
@pytest.mark.parametrize("decay", [0.0, 0.25])
@pytest.mark.parametrize("kind", ["sgd", "rowwise_adagrad"])
def test_steps_match_numpy(dtype, decay, kind):
    initial = RNG.integers(-8, 9, (12, 3)) / 4.0
    make = {"sgd": SGD, "rowwise_adagrad": RowWiseAdagrad}[kind]
    optimizer, variable = make(0.5, weight_decay=decay), tf.Variable(tf.cast(initial, dtype))
    expected, squares = initial.copy(), np.zeros(12)
    for ids in ([1, 5, 1, 1, 7], [0, 11, 5]):
        values = RNG.normal(size=(len(ids), 3)).astype(np.float32)
        gradient = tf.IndexedSlices(tf.constant(values), tf.constant(ids), tf.constant([12, 3]))
        before = tf.cast(variable, tf.float64).numpy()
        optimizer.apply_gradients([(gradient, variable)])
        expected = before.copy()
        for row in set(ids):
            total = values[np.array(ids) == row].sum(axis=0, dtype=np.float64)
            squares[row] += np.mean(total**2)
            scale = 1.0 if kind == "sgd" else 1 / (np.sqrt(squares[row]) + 1e-10)
            expected[row] -= 0.5 * decay * before[row] + 0.5 * scale * total
        low, high = neighbours(expected, dtype)
        after = tf.cast(variable, tf.float64).numpy()
        assert ((after >= low - 1e-7) & (after <= high + 1e-7)).all()
        touched = np.isin(np.arange(12), ids)
        np.testing.assert_array_equal(after[~touched], before[~touched])
        assert (after[touched] != before[touched]).any(axis=1).all()
    if kind == "rowwise_adagrad":
        assert optimizer.accumulator(variable).dtype == tf.float32
        np.testing.assert_allclose(optimizer.accumulator(variable), squares, rtol=1e-5)


def test_rounding_repeats_with_the_step_and_differs_between_steps():
    def run(first_step):
        optimizer, variable = SGD(0.01), tf.Variable(tf.ones([4, 200], tf.bfloat16), name="outer/embedding/stack_0")
        optimizer.iterations.assign(first_step)
        gradient = tf.IndexedSlices(tf.ones([1, 200]), tf.constant([2]), tf.constant([4, 200]))
        optimizer.apply_gradients([(gradient, variable)])
        return variable.numpy().astype(np.float32)

    np.testing.assert_array_equal(run(7), run(7))
    assert (run(7) != run(8)).any()


class Tables:
    def __init__(self, *variables):
        self.stacks = list(variables)


@pytest.mark.parametrize("part", [LazyAdam(), Adagrad(), Ftrl(), SGD(momentum=0.9), legacy.Adam()])
def test_optimizers_that_cannot_round_refuse_half_tables(part):
    optimizer = DLRMOptimizer(embedding=part, dense=legacy.SGD(0.1))
    with pytest.raises(ConfigError, match=f"`embedding` must be SGD without momentum.*{type(part).__name__}"):
        optimizer.bind([Tables(tf.Variable(tf.ones([3, 2])), tf.Variable(tf.ones([3, 2], tf.bfloat16)))])
    late = Tables()  # built after it was bound
    optimizer.bind([late])
    late.stacks.append(tf.Variable(tf.ones([3, 2], tf.float16)))
    gradient = tf.IndexedSlices(tf.ones([1, 2]), tf.constant([2]), tf.constant([3, 2]))
    with pytest.raises(ConfigError, match="`embedding` must be SGD without momentum"):
        optimizer.apply_gradients([(gradient, late.stacks[0])])


@HALF
def test_the_pair_clips_schedules_and_steps_half_and_dense_weights_together(dtype):
    table, kernel = tf.Variable(tf.ones([3, 2], dtype)), tf.Variable(tf.ones([2]))
    schedule = WarmupHoldDecay(warmup_steps=2)
    optimizer = DLRMOptimizer(SGD(1.0), legacy.SGD(1.0), learning_rate=schedule, global_clipnorm=1.0)
    optimizer.bind([Tables(table)])
    gradient = tf.IndexedSlices(tf.constant([[3.0, 0.0]]), tf.constant([2]), tf.constant([3, 2]))
    factor = float(optimizer._decayed_lr(tf.float32))
    optimizer.apply_gradients([(gradient, table), (tf.constant([0.0, 4.0]), kernel)])
    assert factor > 0
    np.testing.assert_allclose(kernel, [1, 1 - 0.8 * factor], rtol=1e-6)
    np.testing.assert_allclose(tf.cast(table, tf.float32)[2], [1 - 0.6 * factor, 1], atol=2**-8)
