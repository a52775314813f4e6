"""From ids to the stored rows of compressed tables: hashing, quotients and remainders, and rows in half precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfdlrm.layers.stacking import POOLING_WEIGHT, Stack
from tfdlrm.spec.compression import Compression, Operation
from tfdlrm.spec.features import FeatureSpec


def hashed_rows(ids: tf.Tensor, exact_rows: Any, hash_rows: Any) -> tf.Tensor:
    """Spread ids over fewer rows: id i keeps row i below `exact_rows`, the others share rows exact_rows to hash_rows.

    Row of any other id: exact_rows + mix(id) mod (hash_rows - exact_rows), in unsigned 64-bit arithmetic, where
    mix is the generator SplitMix64 at state id (Steele, Lea and Flood 2014): z = id + 0x9E3779B97F4A7C15;
    z = (z xor z >> 30) * 0xBF58476D1CE4E5B9; z = (z xor z >> 27) * 0x94D049BB133111EB; mix = z xor z >> 31. It is
    fixed: models that were saved depend on it.

    Args:
        ids: Integer `[..., columns]`; what is negative stays as it is.
        exact_rows: Integer, or one a column.
        hash_rows: Integer, or one a column.

    Returns:
        Rows of the type and shape of `ids`.
    """
    mixed = tf.cast(ids, tf.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        mixed = tf.bitwise.bitwise_xor(mixed, tf.bitwise.right_shift(mixed, np.uint64(shift))) * np.uint64(factor)
    exact = tf.constant(exact_rows, ids.dtype)
    spread = tf.cast(mixed % tf.constant(np.subtract(hash_rows, exact_rows), tf.uint64), ids.dtype)
    return tf.where(ids < exact, ids, exact + spread)


def compose(operation: Operation, quotient: tf.Tensor, remainder: tf.Tensor) -> tf.Tensor:
    """Return the vector of an id from its two rows, `[..., width]` or, under `"concat"`, `[..., 2 width]`."""
    if operation == "mult":
        return quotient * remainder
    if operation == "add":
        return quotient + remainder
    return tf.concat([quotient, remainder], axis=-1)


class Lookups:
    """The rows of all stacks that a batch reads, as one matrix computed with one constant vector a step.

    A lookup is a column of that matrix: one for each id column and part of the table that the column reads. Where no
    table is hashed, none is in two parts and no feature has learned weights, the lookups are the id columns themselves,
    and all that is done to an id is to add the first row of its table.

    Args:
        spec: The features.
        plan: Their stacks.

    Attributes:
        of_stack: For each stack, the lookups that read it, part after part.
        of_weights: For each stack, the lookups that read its learned pooling weights.
    """

    def __init__(self, spec: FeatureSpec, plan: list[Stack]) -> None:
        stored = [spec.table_of(feature) for feature in spec.sparse for _ in range(feature.hotness)]
        compressions = [table.compression or Compression() for table in stored]
        self._hashed = np.flatnonzero([bool(c.hash_rows) for c in compressions])
        self._exact_rows = [compressions[column].exact_rows for column in self._hashed]
        self._hash_rows = [compressions[column].hash_rows for column in self._hashed]
        # Hashed columns stand behind the id columns.
        source = np.arange(spec.n_ids)
        source[self._hashed] = spec.n_ids + np.arange(self._hashed.size)

        self.of_stack: list[np.ndarray] = []
        self.of_weights: list[np.ndarray] = []
        columns, divisors, moduli, first_rows, zero_rows = ([np.zeros(0, np.int64)] for _ in range(5))
        done = 0
        for stack in plan:
            lookups: dict[bool, list[int]] = {False: [], True: []}
            for part in (*stack.form.parts, *([POOLING_WEIGHT] if stack.weight_rows else [])):
                is_weight = part == POOLING_WEIGHT
                read = stack.weight_columns if is_weight else stack.columns
                splits = [compressions[column].quotient_remainder for column in read]
                collisions = np.array([1 if split is None else split.collisions for split in splits])
                ones = np.ones_like(collisions)
                columns.append(source[read])
                divisors.append(collisions if part == "quotient" else ones)
                table_rows = np.array([stored[column].vocabulary_size for column in read])
                moduli.append(collisions if part == "remainder" else table_rows)
                first_rows.append(stack.offsets(part))
                zero_rows.append(ones * ((stack.weight_rows if is_weight else stack.rows) - 1))
                lookups[is_weight].extend(range(done, done + read.size))
                done += read.size
            self.of_stack.append(np.array(lookups[False]))
            self.of_weights.append(np.array(lookups[True], int))
        self._columns, self._first_rows, self._zero_rows = map(np.concatenate, (columns, first_rows, zero_rows))
        self._divisors, self._moduli = np.concatenate(divisors), np.concatenate(moduli)
        self._splits = any(stack.form.operation for stack in plan)
        self._as_ids = not (self._hashed.size or self._splits or any(stack.weight_rows for stack in plan))
        if self._as_ids:
            order = np.argsort(self._columns)
            self._first_rows, self._zero_rows = self._first_rows[order], self._zero_rows[order]
            self.of_stack = [stack.columns for stack in plan]

    def __call__(self, ids: tf.Tensor, present: tf.Tensor, padded: tf.Tensor) -> tf.Tensor:
        """Return the row of its stack that each lookup reads.

        Args:
            ids: `[B, n_ids]`, -1 or a row of the table as the spec has it.
            present: Which of them are not -1.
            padded: Whether any is -1; without, nothing is done about it.

        Returns:
            `[B, lookups]`, of the type of `ids`. Padding reads the last row of a stack, which is zero.
        """
        constant = ids.dtype.as_numpy_dtype
        if self._hashed.size:
            hashed = hashed_rows(take_columns(ids, self._hashed), self._exact_rows, self._hash_rows)
            ids = tf.concat([ids, hashed], axis=1)
        if not self._as_ids:
            ids = tf.gather(ids, self._columns, axis=1)
            present = ids >= 0
        if self._splits:
            ids = ids // self._divisors.astype(constant) % self._moduli.astype(constant)
        rows = ids + self._first_rows.astype(constant)
        zero_rows = self._zero_rows.astype(constant)
        return tf.cond(padded, lambda: tf.where(present, rows, zero_rows), lambda: rows)


def take_columns(matrix: tf.Tensor, columns: np.ndarray) -> tf.Tensor:
    """Take columns of a matrix: by a slice where they are consecutive, which costs least."""
    first, last = int(columns[0]), int(columns[-1])
    if last - first + 1 == columns.size:
        return matrix[:, first : last + 1]
    return tf.gather(matrix, columns, axis=1)


def read_rows(variable: tf.Variable, rows: tf.Tensor) -> tf.Tensor:
    """Look up rows of a variable as float32; their gradient is float32 too, however the variable is stored.

    Rounded to half precision, gradients of repeated ids would lose most of their sum, and those in float16 could be
    zero or infinite.

    Args:
        variable: `[n, width]`, float32, bfloat16 or float16.
        rows: Integers of any shape.

    Returns:
        `[*rows.shape, width]`; the gradient of `variable` is a `tf.IndexedSlices`.
    """
    if variable.dtype == tf.float32:
        return tf.gather(variable, rows)

    # The handle is the argument, not the variable: what a custom gradient knows to be a variable is read as a whole.
    @tf.custom_gradient
    def read(handle: tf.Tensor, rows: tf.Tensor) -> Any:
        def gradient(upstream: tf.Tensor) -> Any:
            values = tf.reshape(upstream, [-1, variable.shape[1]])
            shape = tf.constant(variable.shape.as_list(), tf.int64)
            return tf.IndexedSlices(values, tf.reshape(rows, [-1]), shape), None

        stored = tf.raw_ops.ResourceGather(resource=handle, indices=rows, dtype=variable.dtype)
        return tf.cast(stored, tf.float32), gradient

    # Tapes watch variables that are read as such, if only no row of them.
    tf.gather(variable, tf.zeros([0], rows.dtype))
    vectors: tf.Tensor = read(variable.handle, rows)
    return tf.ensure_shape(vectors, [*rows.shape, variable.shape[1]])
