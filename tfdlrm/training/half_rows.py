"""Updates of table rows that are stored in half precision: computed in float32, rounded stochastically.

A step as a rule moves a value of a table by far less than half of the distance to the next value that 8 or 11 bits can
tell apart: rounded to the nearest it would never move. Rounded up or down at random, each with the probability that
makes the mean right, many small steps add up to what they are (Gupta et al. 2015, arXiv 1502.02551, section 3).
"""

from __future__ import annotations

import zlib
from typing import Any

import tensorflow as tf

HALF = (tf.bfloat16, tf.float16)
# Stored bits of the mantissa, and the exponent under which values get no finer. (Those of bfloat16 would get finer
# still; the grid ends where float32 can still count its steps.)
_GRIDS = {tf.bfloat16: (7, -100), tf.float16: (10, -14)}
_FLOAT32_BITS, _FLOAT32_BIAS = 23, 127


def is_half(variable: tf.Variable) -> bool:
    """Return whether a variable is stored in half precision."""
    return variable.dtype in HALF


def summed_by_row(gradient: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the sums of the gradients of equal rows, and the distinct rows."""
    distinct, place = tf.unique(rows)
    return tf.math.unsorted_segment_sum(gradient, place, tf.shape(distinct)[0]), distinct


def move_half_rows(
    optimizer: Any, variable: tf.Variable, rows: tf.Tensor, step: tf.Tensor, decay: tf.Tensor | float = 0.0
) -> tf.Operation:
    """Set each row r to (1 - decay) r - step, rounded stochastically.

    The random numbers are a function of the optimizer's step counter and the variable's name: a run that goes on from
    a checkpoint rounds as it would have without the stop.

    Args:
        optimizer: Whose `iterations` counts the steps.
        variable: A table in half precision, `[n, width]`.
        rows: Distinct rows, integers `[m]`.
        step: float32 `[m, width]`.
        decay: Share that is taken off first.
    """
    values = (1 - decay) * tf.cast(tf.gather(variable, rows), tf.float32) - step
    # The last two parts of the name: what comes before may count the models of a process.
    name = "/".join(str(variable.name).split(":")[0].split("/replica_")[0].split("/")[-2:])
    seed = tf.stack([tf.cast(optimizer.iterations, tf.int64), tf.constant(zlib.crc32(name.encode()), tf.int64)])
    return variable.scatter_update(tf.IndexedSlices(stochastically_rounded(values, variable.dtype, seed), rows))


def stochastically_rounded(values: tf.Tensor, dtype: tf.DType, seed: tf.Tensor) -> tf.Tensor:
    """Round float32 up or down to half precision, so that the expected result is the value itself.

    Values that the type holds stay as they are, zero among them; what is too large becomes infinite.

    Args:
        values: float32.
        dtype: `tf.bfloat16` or `tf.float16`.
        seed: Two integers; equal seeds round alike.
    """
    bits, lowest = _GRIDS[tf.as_dtype(dtype)]
    dropped = _FLOAT32_BITS - bits
    exponent = tf.bitwise.right_shift(tf.bitcast(values, tf.int32), _FLOAT32_BITS) & 0xFF
    exponent = tf.maximum(exponent, lowest + _FLOAT32_BIAS)
    spacing = tf.bitcast(tf.bitwise.left_shift(exponent - bits, _FLOAT32_BITS), tf.float32)
    noise = tf.random.stateless_uniform(tf.shape(values), seed, 0, 1 << dropped, tf.int32)
    # As many bits of noise as are dropped: the sum is exact, so that nothing is rounded before the floor does it.
    return tf.cast(tf.floor(values / spacing + tf.cast(noise, tf.float32) * 2.0**-dropped) * spacing, dtype)
