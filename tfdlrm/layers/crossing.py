"""Ids of combinations of features: the cross-product transformation of Wide & Deep, hashed."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfdlrm.spec.features import FeatureSpec

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: Fibonacci hashing


def crossed_ids(spec: FeatureSpec, cross: Sequence[str], ids: tf.Tensor, rows: int) -> tf.Tensor:
    """Return a hash of each combination of ids, one from the bag of each feature (arXiv 1606.07792, equation 1).

    ::

        h <- (h xor (id + 1)) * 0x9E3779B97F4A7C15 mod 2^64;  h <- h xor (h >> 32)      for each id in turn, from h = 0

    Args:
        spec: Features.
        cross: Names of the features.
        ids: `[B, n_ids]` with columns in the order of the spec, -1 for padding.
        rows: The hash is taken modulo this.

    Returns:
        int64 `[B, product of the hotnesses]`, the last feature's bag running fastest; -1 where any id is padding.
    """
    hashes, present = tf.zeros_like(ids[:, :1], tf.uint64), tf.ones_like(ids[:, :1], tf.bool)
    for name in cross:
        bag = ids[:, slice(*spec.id_columns[name])][:, tf.newaxis, :]  # [B, 1, h]
        combined = tf.bitwise.bitwise_xor(hashes[:, :, tf.newaxis], tf.cast(bag + 1, tf.uint64))
        combined *= tf.constant(_GOLDEN, tf.uint64)
        combined = tf.bitwise.bitwise_xor(combined, tf.bitwise.right_shift(combined, tf.constant(32, tf.uint64)))
        width = hashes.shape[1] * bag.shape[2]
        hashes = tf.reshape(combined, [-1, width])
        present = tf.reshape(tf.logical_and(present[:, :, tf.newaxis], bag >= 0), [-1, width])
    remainders = tf.cast(tf.math.floormod(hashes, tf.constant(rows, tf.uint64)), tf.int64)
    return tf.where(present, remainders, tf.constant(-1, tf.int64))


def crossed_weights(spec: FeatureSpec, cross: Sequence[str], weights: tf.Tensor) -> tf.Tensor:
    """Return the product of the weights of each combination of `crossed_ids`, float32; 1 for unweighted features."""
    products = tf.ones_like(weights[:, :1])
    weighted = {feature.name: feature.weighted for feature in spec.sparse}
    for name in cross:
        bag = weights[:, slice(*spec.id_columns[name])]
        bag = bag if weighted[name] else tf.ones_like(bag)
        products = tf.reshape(
            products[:, :, tf.newaxis] * bag[:, tf.newaxis, :], [-1, products.shape[1] * bag.shape[1]]
        )
    return products
