"""The values of one sparse feature: a bag a row, of raw values or of their ids."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

PADDING = -1


class Bags(NamedTuple):
    """Bags of one feature.

    Attributes:
        parts: `[hotness, n]` raw values, `""` after the last of a bag.
        length: Values each bag had before it was cut to `hotness`, int64 `[n]`; `None` for one value a row.
    """

    parts: tf.Tensor
    length: tf.Tensor | None


def padded(ids: tf.Tensor, bags: Bags) -> tf.Tensor:
    """Return ids `[1, hotness * n]` as `[hotness, n]`, padded after the last value of each bag."""
    hotness = bags.parts.shape[0]
    # A bag of no values keeps its first id, which is that of a missing value.
    padding = tf.range(hotness, dtype=tf.int64)[:, tf.newaxis] >= tf.maximum(bags.length, 1)
    return tf.where(padding, tf.constant(PADDING, ids.dtype), tf.reshape(ids, [hotness, -1]))
