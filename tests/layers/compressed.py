"""What a collection with compressed tables must compute, from its parts, by products with 0/1 matrices in float64."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfdlrm.spec.features import FeatureSpec

MASK = 2**64 - 1


def mix(number: int) -> int:
    """SplitMix64 in Python's unbounded integers."""
    z = (number + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def hashed(table, number):
    settings = table.compression
    if number < 0 or settings is None or settings.hash_rows is None or number < settings.exact_rows:
        return number
    return settings.exact_rows + mix(number) % (settings.hash_rows - settings.exact_rows)


def parts_of(layer):
    """All parts of all tables, float64."""
    return {
        (table.name, part.part): tf.constant(layer.get_part(table.name, part.part), tf.float64)
        for table in layer.spec.tables
        for part in layer.spec.stored(table.name)
    }


def select(rows, size):
    """A matrix that picks rows of another; row -1 picks nothing."""
    matrix = np.zeros([len(rows), size])
    for place, row in enumerate(rows):
        if row >= 0:
            matrix[place, row] = 1
    return matrix


def vectors_of(table, parts, ids):
    rows = [hashed(table, int(i)) for i in ids]
    settings = table.compression
    split = None if settings is None else settings.quotient_remainder

    def read(part, rows):
        return select(rows, parts[table.name, part].shape[0]) @ parts[table.name, part]

    if split is None:
        vectors = read("rows", rows)
    else:
        quotient = read("quotient", [r // split.collisions if r >= 0 else -1 for r in rows])
        remainder = read("remainder", [r % split.collisions if r >= 0 else -1 for r in rows])
        vectors = {
            "mult": lambda: quotient * remainder,
            "add": lambda: quotient + remainder,
            "concat": lambda: tf.concat([quotient, remainder], 1),
        }[split.operation]()
    return vectors if settings is None or settings.dim is None else vectors @ parts[table.name, "projection"]


def oracle(spec: FeatureSpec, parts, ids, weights=None):
    """Projected before pooling, `[B, F, d]`, differentiable in the parts."""
    out = []
    for feature in spec.sparse:
        table = spec.table_of(feature)
        start, stop = spec.id_columns[feature.name]
        flat = ids[:, start:stop].ravel()
        share = tf.constant((flat >= 0).astype(np.float64))
        if feature.weighted:
            share *= weights[:, start:stop].ravel()
        factor = share
        if feature.learned_weights:
            learned = parts[table.name, "pooling_weight"]
            factor *= tf.reshape(select([hashed(table, int(i)) for i in flat], learned.shape[0]) @ learned, [-1])
        shape = [len(ids), feature.hotness, table.embedding_dim]
        bag = tf.reduce_sum(tf.reshape(factor[:, None] * vectors_of(table, parts, flat), shape), axis=1)
        if feature.combiner == "mean":
            bag = tf.math.divide_no_nan(bag, tf.reduce_sum(tf.reshape(share, shape[:2]), axis=1, keepdims=True))
        out.append(bag)
    return tf.stack(out, axis=1)
