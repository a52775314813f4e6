"""Keys to table rows: one table's vocabulary, or its hash, in stock TensorFlow operations; and the same in bulk."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfdlrm.data.columns import KeyColumn
from tfdlrm.data.key_counts import count_keys
from tfdlrm.data.key_index import KeyIndex
from tfdlrm.data.keys import hash_rows, modulo_keys, shared_keys
from tfdlrm.data.vocabulary import Vocabulary
from tfdlrm.spec.coding import TableCoding

_LAST_KEY = np.iinfo(np.int64).max
UNKNOWN = -2
"""Stands for the row of a value that a table has none for, where the coding has no `oov_row`."""
_LARGE = 1 << 15  # entries whose keys fill a quarter of a megabyte, more than a first-level cache holds


def unknown_row(coding: TableCoding) -> int:
    """Return the row of a value that the table has none for, `UNKNOWN` where the coding has no such row."""
    return UNKNOWN if coding.oov_row is None else coding.oov_row


def bucket_rows(coding: TableCoding, keys: tf.Tensor) -> tf.Tensor:
    """Return the buckets of int64 keys, from 0: int64 of any shape. The coding must have buckets."""
    buckets = coding.buckets or 1
    return modulo_keys(keys, buckets) if coding.kind == "modulo" else hash_rows(keys, buckets)


class TableLookup(tf.Module):
    """The rows of one table's keys, by binary search in sorted keys, by hash, or by the keys themselves.

    Args:
        coding: The table's coding rules.
        vocabulary: Its vocabulary; empty where the table hashes.
    """

    def __init__(self, coding: TableCoding, vocabulary: Vocabulary) -> None:
        super().__init__(name="table_lookup")
        self.coding = coding
        self._table_rows = vocabulary.rows
        # One entry more, at the largest possible key, so that every search ends at an entry. Its row is that of
        # unknown values, which is right for the one key it matches.
        keys = np.append(vocabulary.keys, _LAST_KEY)
        ids = np.append(vocabulary.ids, np.array(unknown_row(coding), vocabulary.ids.dtype))
        self._place_type = tf.int64 if len(keys) >= 2**31 else tf.int32
        # Integers would be placed on a GPU, but keys come from strings, and those live on the CPU.
        with tf.device("/CPU:0"):
            self._keys = tf.Variable(keys, trainable=False, name="keys")
            self._ids = tf.Variable(ids, trainable=False, name="ids")

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary, read back from the variables that hold it."""
        return Vocabulary(self._keys.numpy()[:-1], self._ids.numpy()[:-1], self._table_rows)

    def __call__(self, keys: tf.Tensor, in_bulk: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """Look keys up; the coding's `modulus` is applied, its `missing_key` must have been.

        Args:
            keys: int64 `[1, n]`.
            in_bulk: Whether to sort the keys of a large table first. Neighbouring searches then touch the same memory,
                which for tens of thousands of keys takes a third of the time.

        Returns:
            int32 or int64 rows `[1, n]`, and whether the table has a row for the key: where not, the row means nothing.
        """
        if self.coding.modulus is not None:
            keys = modulo_keys(keys, self.coding.modulus)
        if self.coding.buckets is not None:
            rows = self.coding.first_id + bucket_rows(self.coding, keys)
            return tf.cast(rows, self._ids.dtype), tf.ones_like(keys, tf.bool)
        if not in_bulk or self._keys.shape[0] < _LARGE:
            return self._search(keys)
        order = tf.argsort(keys[0])
        back = tf.math.invert_permutation(order)
        rows, known = self._search(tf.gather(keys, order, axis=1))
        return tf.gather(rows, back, axis=1), tf.gather(known, back, axis=1)

    def _search(self, keys: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # Read whole, which copies nothing. A gather straight from a variable makes TensorFlow expect sparse writes,
        # and from then on copy all of it for every reader.
        own_keys, ids = tf.convert_to_tensor(self._keys), tf.convert_to_tensor(self._ids)
        # The operation inside tf.searchsorted, which adds ten of reshaping to it for each table.
        place = tf.raw_ops.LowerBound(sorted_inputs=tf.expand_dims(own_keys, 0), values=keys, out_type=self._place_type)
        return tf.gather(ids, place), tf.equal(tf.gather(own_keys, place), keys)


class BulkLookup:
    """The rows that a `TableLookup` gives the keys of a table, several times faster for tens of thousands of them.

    Tables without a vocabulary give each distinct key its bucket once, by the function of the graph.

    Args:
        coding: The table's coding rules.
        vocabulary: Its vocabulary; empty where the table hashes.
    """

    def __init__(self, coding: TableCoding, vocabulary: Vocabulary) -> None:
        self._coding = coding
        self._dtype = vocabulary.ids.dtype
        self._index = KeyIndex(vocabulary.keys, vocabulary.ids) if coding.kind == "vocabulary" else None

    def __call__(self, column: KeyColumn) -> npt.NDArray[Any]:
        """Look keys up.

        Returns:
            int32 or int64 `[rows]`: `missing_row` where missing, `unknown_row` where the table has no row for a key.
        """
        column = shared_keys(column, self._coding)
        index = self._bucketed(column.keys) if self._index is None else self._index
        rows = index.rows_of(column.keys, unknown_row(self._coding))
        np.putmask(rows, column.missing, self._coding.missing_row)
        return rows

    def _bucketed(self, keys: npt.NDArray[Any]) -> KeyIndex:
        distinct = count_keys(keys).keys.astype(np.uint64).view(np.int64)
        rows = self._coding.first_id + bucket_rows(self._coding, tf.constant(distinct)).numpy()
        return KeyIndex(distinct, rows.astype(self._dtype))
