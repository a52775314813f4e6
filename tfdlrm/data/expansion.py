"""One id to a bag of ids, the same bag every time: the synthetic multi-hot form of Criteo that MLPerf trains on.

MLPerf keeps a table of `rows x hotness` drawn ids for each feature, 16 GB for its largest one alone. Here an id is
drawn when it is asked for: a hash of (seed, feature, id, position) is the random number. The rule is written twice, in
stock TensorFlow operations for a model that serves one-hot requests and in NumPy for encoding in bulk, in arithmetic
that is exact in both: integers modulo 2^64, and float64 operations that IEEE 754 rounds in one way only.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfdlrm.spec.coding import NO_ROW, Encoding, Expand
from tfdlrm.spec.features import SparseFeature

_MASK = 2**64 - 1
# The generator SplitMix64 (Steele, Lea and Flood, 2014): a counter in steps of _STEP, mixed.
_STEP = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = 31


class Expansion:
    """Expands ids of one feature.

    A bag begins with the id itself. Further ids are drawn from the rows of single values, those from `first_id` on
    (from all rows, where there are none); a longer bag begins with the shorter one. The bag of -1, which adds nothing,
    adds nothing either: all of it is -1.

    Args:
        expand: Distribution and seed.
        feature: Name of the feature: two features of one table get bags of their own.
        hotness: Ids in a bag, at least 1.
        first_id: First row of a single value.
        rows: Rows of the table.
    """

    def __init__(self, expand: Expand, feature: str, hotness: int, first_id: int, rows: int) -> None:
        digest = hashlib.blake2b(f"{expand.seed}/{feature}".encode(), digest_size=8).digest()
        self._key = int.from_bytes(digest, "big")
        self._positions = [position * _STEP & _MASK for position in range(1, hotness)]
        self._is_uniform = expand.distribution == "uniform"
        self._first = first_id if first_id < rows else 0
        self._count = rows - self._first

    def tensor(self, ids: tf.Tensor) -> tf.Tensor:
        """Return the bags `[hotness, n]` of ids `[1, n]`, int32 or int64, eagerly or in a graph."""
        if not self._positions:
            return ids
        own = tf.bitcast(tf.cast(ids, tf.int64), tf.uint64)
        positions = tf.constant(np.array(self._positions, np.uint64)[:, np.newaxis])
        bits = _mixed_tensor(_mixed_tensor(own * _uint64(_STEP) + _uint64(self._key)) + positions)
        if self._is_uniform:
            place = tf.math.floormod(_int64(bits, 1), tf.constant(self._count, tf.int64))
        else:
            root = tf.constant(2.0**32, tf.float64) / tf.cast(_int64(bits, 32) + 1, tf.float64)
            square = root * root
            value = tf.floor(square * square - 1.0)
            place = tf.cast(tf.math.floormod(value, tf.constant(self._count, tf.float64)), tf.int64)
        drawn = tf.where(ids < 0, tf.constant(NO_ROW, ids.dtype), tf.cast(place + self._first, ids.dtype))
        return tf.concat([ids, drawn], axis=0)

    def array(self, ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the bags `[hotness, n]` of ids `[n]`, int32 or int64."""
        bags = np.empty([1 + len(self._positions), len(ids)], ids.dtype)
        bags[0] = ids
        with np.errstate(over="ignore"):
            start = _mixed_array(ids.astype(np.int64).view(np.uint64) * np.uint64(_STEP) + np.uint64(self._key))
            for bag, position in zip(bags[1:], self._positions, strict=True):
                bag[:] = self._first + self._place(_mixed_array(start + np.uint64(position)))
        bags[:, ids < 0] = NO_ROW
        return bags

    def _place(self, bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        if self._is_uniform:
            return (bits >> np.uint64(1)).astype(np.int64) % self._count
        # With u uniform in (0, 1], u^-4 - 1 has the Pareto (Lomax) distribution of shape 1/4.
        root = 2.0**32 / ((bits >> np.uint64(32)).astype(np.float64) + 1.0)
        square = root * root
        return np.fmod(np.floor(square * square - 1.0), float(self._count)).astype(np.int64)


def expansion_of(feature: SparseFeature, encoding: Encoding, rows: int) -> Expansion | None:
    """Return the expansion of a feature whose table has that many rows, `None` where its bags are not drawn."""
    expand = encoding.features[feature.name].expand
    if expand is None:
        return None
    return Expansion(expand, feature.name, feature.hotness, encoding.tables[feature.table].first_id, rows)


def _mixed_array(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    for shift, factor in _MIX:
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return bits ^ (bits >> np.uint64(_LAST_SHIFT))


def _mixed_tensor(bits: tf.Tensor) -> tf.Tensor:
    for shift, factor in _MIX:
        bits = tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, _uint64(shift))) * _uint64(factor)
    return tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, _uint64(_LAST_SHIFT)))


def _int64(bits: tf.Tensor, shift: int) -> tf.Tensor:
    """Return uint64 numbers shifted right by at least one bit as int64."""
    return tf.bitcast(tf.bitwise.right_shift(bits, _uint64(shift)), tf.int64)


def _uint64(value: int) -> tf.Tensor:
    return tf.constant(np.uint64(value))
