"""Checks of what an encoder is made from, of what it is given, and of what it makes of that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import tensorflow as tf

from tfdlrm.data.lookup import UNKNOWN
from tfdlrm.data.transforms import DenseStats, needs_stats
from tfdlrm.data.vocabulary import Vocabulary, table_rows
from tfdlrm.spec.coding import Encoding, FeatureCoding
from tfdlrm.spec.errors import DataError, SpecError, did_you_mean
from tfdlrm.spec.features import FeatureSpec, SparseFeature, TableConfig


def row_vector(raw: Mapping[str, tf.Tensor], name: str, dtype: tf.DType) -> tf.Tensor:
    """Return a raw column, `[B]` or `[B, 1]`, as `[1, B]`.

    Raises:
        DataError: it is absent, or of another type or rank.
    """
    if name not in raw:
        raise DataError(f"`raw` must have the column `{name}`.{did_you_mean(name, raw)}")
    values = tf.convert_to_tensor(raw[name])
    if values.dtype != dtype:
        raise DataError(f"column `{name}` must be {dtype.name}. Received: {values.dtype.name}.")
    if values.shape.rank not in (1, 2) or values.shape[1:] not in ([], [1]):
        raise DataError(f"column `{name}` must have the shape [B] or [B, 1]. Received: {values.shape}.")
    return tf.reshape(values, [1, -1])


def refuse_unless_encodable(feature: SparseFeature, coding: FeatureCoding) -> None:
    """Raise `SpecError` for a feature that no raw column can fill."""
    if feature.hotness > 1 and coding.separator is None and coding.expand is None:
        raise SpecError(
            f"`hotness` of feature `{feature.name}` must be 1 where its coding has neither `separator` nor `expand`. "
            f"Received: {feature.hotness}."
        )
    if feature.weighted != (coding.weights is not None):
        raise SpecError(
            f"`weighted` of feature `{feature.name}` must say whether its coding has `weights`. "
            f"Received: {feature.weighted} and {coding.weights!r}."
        )


def stats_used(spec: FeatureSpec, stats: Mapping[str, DenseStats]) -> dict[str, DenseStats]:
    """Return the statistics that the dense features need.

    Raises:
        SpecError: some are not there.
    """
    used = [f.name for f in spec.dense if needs_stats(f)]
    absent = sorted(set(used) - set(stats))
    if absent:
        raise SpecError(
            f"`dense_stats` must hold every feature whose transform needs them. Received none for {absent}."
        )
    return {name: stats[name] for name in used}


def vocabulary_of(table: TableConfig, encoding: Encoding, vocabularies: Mapping[str, Vocabulary]) -> Vocabulary:
    """Return the vocabulary of a table, an empty one where it has buckets.

    Raises:
        SpecError: it is not there, or the table has fewer rows than it needs.
    """
    coding = encoding.tables[table.name]
    if coding.kind != "vocabulary":
        vocabulary = Vocabulary.empty(coding)
    elif table.name in vocabularies:
        vocabulary = vocabularies[table.name]
    else:
        raise SpecError(f"`vocabularies` must hold table `{table.name}`. Received: {sorted(vocabularies)}.")
    if table.vocabulary_size < max(vocabulary.rows, table_rows(coding, 0)):
        raise SpecError(
            f"`vocabulary_size` of table `{table.name}` must be at least the {vocabulary.rows} rows of its vocabulary. "
            f"Received: {table.vocabulary_size}."
        )
    return vocabulary


def refuse_unknown(spec: FeatureSpec, encoding: Encoding, frame: pl.DataFrame, sparse: npt.NDArray[Any]) -> None:
    """Raise if a value has no row in a table whose coding has no `oov_row`.

    Args:
        spec: The features.
        encoding: Their coding.
        frame: Raw rows.
        sparse: Their ids, `[n_ids, rows]`, `UNKNOWN` for such a value.

    Raises:
        DataError: there is one; the message has the first.
    """
    for feature in spec.sparse:
        start, stop = spec.id_columns[feature.name]
        if encoding.tables[feature.table].oov_row is not None:
            continue
        unknown = (sparse[start:stop] == UNKNOWN).any(axis=0)
        if unknown.any():
            source = encoding.features[feature.name].source
            value = frame[source][int(np.argmax(unknown))]
            shown = f"{value:08x}" if isinstance(value, int) else repr(value)
            raise DataError(
                f"column `{source}` must hold values that table `{feature.table}` has rows for, since its coding has "
                f"no `oov_row`. Received: {shown}. Count all rows (vocabulary_rows) or give an `oov_row`."
            )
