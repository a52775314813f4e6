import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from tfdlrm.training.schedule import WarmupHoldDecay


def factors(schedule, steps):
    return np.array([float(schedule(tf.constant(step, tf.int64))) for step in range(steps)])


def test_warm_up_hold_decay_end():
    got = factors(WarmupHoldDecay(warmup_steps=4, decay_start_step=6, decay_steps=4, power=2, end_factor=0.1), 14)
    decay = [0.1 + 0.9 * (1 - k / 4) ** 2 for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(got, [0.25, 0.5, 0.75, 1, 1, 1, *decay, 0.1, 0.1, 0.1, 0.1], rtol=1e-5)


def test_first_step_is_above_zero_and_the_factor_never_rises_again():
    got = factors(WarmupHoldDecay(warmup_steps=10, decay_start_step=20, decay_steps=30), 200)
    assert got[0] > 0
    assert got.max() == 1.0
    top = int(np.argmax(got))
    assert (np.diff(got[:top]) > 0).all()
    assert (np.diff(got[top:]) <= 0).all()
    assert (got[50:] == 0).all()


def test_no_warm_up_no_decay_is_the_base():
    np.testing.assert_array_equal(factors(WarmupHoldDecay(base=0.5), 3), 0.5)


def test_decay_from_the_first_step():
    np.testing.assert_allclose(factors(WarmupHoldDecay(decay_steps=2, power=1), 3), [0.5, 0, 0])


def test_round_trip_through_an_optimizer():
    schedule = WarmupHoldDecay(warmup_steps=5, decay_start_step=7, decay_steps=3, base=0.2)
    optimizer = keras.optimizers.legacy.SGD(schedule)
    clone = keras.optimizers.legacy.SGD.from_config(optimizer.get_config())
    np.testing.assert_array_equal(factors(clone.learning_rate, 12), factors(schedule, 12))


def test_bad_arguments():
    with pytest.raises(ValueError, match="`decay_start_step` must be at least `warmup_steps`. Received: 3 and 5"):
        WarmupHoldDecay(warmup_steps=5, decay_start_step=3, decay_steps=1)
    with pytest.raises(ValueError, match="must be at least 0"):
        WarmupHoldDecay(warmup_steps=-1)
