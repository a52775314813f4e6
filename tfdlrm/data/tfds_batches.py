"""From any TFDS data set of named columns to an encoder learnt from it, and to batches for a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import polars as pl
import tensorflow as tf

from tfdlrm.data.columns import RawColumns, raw_columns
from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.data.vocabulary_builder import VocabularyBuilder
from tfdlrm.spec.coding import Encoding
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.criteo import LABEL
from tfdlrm.spec.derive import encoding_of, spec_of
from tfdlrm.spec.errors import ConfigError, DataError, did_you_mean

_LEARN_ROWS = 65_536


def learn_encoder(
    dataset: tf.data.Dataset,
    data: DataConfig | None = None,
    embedding_dim: int = 16,
    *,
    progress: Callable[[int], None] = lambda rows: None,
) -> FeatureEncoder:
    """Learn vocabularies and statistics from the rows of a TFDS data set: give it training rows only.

    Args:
        dataset: Rows one by one, not batched: dictionaries of columns, or pairs of one and a label as
            `as_supervised=True` gives them.
        data: Which columns are features and how they are coded. Defaults to those of Criteo.
        embedding_dim: Width of the tables in the encoder's spec.
        progress: Called with the number of rows just read.

    Raises:
        DataError: a column is absent, or is not what its feature reads.
        ConfigError: `data.growth` names a run.
    """
    data = DataConfig() if data is None else data
    if data.growth.from_run is not None:
        raise ConfigError("`data.growth` must not be given here: vocabularies grow where raw files are prepared.")
    encoding = encoding_of(data)
    table_of = {column.name: column.table or column.name for column in data.sparse}
    columns = raw_columns(encoding, table_of, [column.name for column in data.dense])
    standardize = [column.name for column in data.dense if column.transform == "standardize"]
    builder = VocabularyBuilder(encoding, table_of, standardize)
    read = tf.autograph.experimental.do_not_convert(_Reader(columns, encoding).read)
    for batch in dataset.ragged_batch(_LEARN_ROWS).map(read).prefetch(1):
        frame = pl.DataFrame({name: _series(values) for name, values in batch.items()})
        builder.add(frame)
        progress(frame.height)
    vocabularies, stats = builder.build()
    spec = spec_of(data, {name: vocabulary.rows for name, vocabulary in vocabularies.items()}, embedding_dim)
    return FeatureEncoder(spec, encoding, vocabularies, stats)


def batches_of(
    dataset: tf.data.Dataset,
    encoder: FeatureEncoder,
    batch_size: int,
    *,
    label: str = LABEL,
    drop_remainder: bool = False,
) -> tf.data.Dataset:
    """Return batches for a model from a TFDS data set, encoded as a served request would be.

    Whole numbers are read as text where a feature wants text; a sequence is joined to the bag it is in raw files.

    Args:
        dataset: Rows one by one, as for `learn_encoder`. Shuffle it before.
        encoder: Turns raw columns into model input.
        batch_size: Rows per batch, at least 1.
        label: Column of the label, where rows are not pairs with it.
        drop_remainder: Whether a last short batch is left out.

    Returns:
        A dataset of `({"dense": float32 [B, n_dense], "sparse": int32|int64 [B, n_ids]}, label float32 [B, 1])`.

    Raises:
        ConfigError: `batch_size` is below 1.
        DataError: a column is absent, or is not what its feature reads.
    """
    if batch_size < 1:
        raise ConfigError(f"`batch_size` must be at least 1. Received: {batch_size}.")
    reader = _Reader(encoder.columns, encoder.encoding)

    @tf.autograph.experimental.do_not_convert  # or an error raised here would come in a text of many lines
    def encode(*row: Any) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        labels = row[1] if len(row) == 2 else _column(_columns_of(row), label)
        return encoder.encode(reader.read(*row)), tf.reshape(tf.cast(labels, tf.float32), [-1, 1])

    batches = dataset.ragged_batch(batch_size, drop_remainder=drop_remainder)
    return batches.map(encode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)


class _Reader:
    """Turns batched columns of whatever type into those that an encoder reads, `[B]` of float32 or string."""

    def __init__(self, columns: RawColumns, encoding: Encoding) -> None:
        self._columns = columns
        self._separators = {f.source: f.separator for f in encoding.features.values() if f.separator is not None}

    def read(self, *row: Any) -> dict[str, tf.Tensor]:
        columns = _columns_of(row)
        numbers = {name: self._number(name, _column(columns, name)) for name in self._columns.numbers}
        return numbers | {name: self._string(name, _column(columns, name)) for name in self._columns.strings}

    def _number(self, name: str, values: Any) -> tf.Tensor:
        if isinstance(values, tf.RaggedTensor) or values.dtype == tf.string:
            raise DataError(f"column `{name}` must hold one number a row. Received: {_kind(values)}.")
        return tf.cast(values, tf.float32)

    def _string(self, name: str, values: Any) -> tf.Tensor:
        is_bag, separator = isinstance(values, tf.RaggedTensor), self._separators.get(name)
        if not (values.dtype == tf.string or values.dtype.is_integer) or (is_bag and separator is None):
            raise DataError(f"column `{name}` must hold one text or whole number a row. Received: {_kind(values)}.")
        if is_bag:
            texts = (
                values if values.dtype == tf.string else values.with_flat_values(tf.strings.as_string(values.values))
            )
            return tf.strings.reduce_join(texts, axis=-1, separator=separator)
        return values if values.dtype == tf.string else tf.strings.as_string(values)


def _columns_of(row: tuple[Any, ...]) -> Mapping[str, Any]:
    """Return the columns of a row, which is a dictionary or a pair of one and a label."""
    if len(row) > 2 or not isinstance(row[0], Mapping):
        raise DataError("`dataset` must yield dictionaries, or pairs of one and a label. Received: something else.")
    columns: Mapping[str, Any] = row[0]
    return columns


def _column(columns: Mapping[str, Any], name: str) -> Any:
    if name not in columns:
        raise DataError(f"`dataset` must have the column `{name}`.{did_you_mean(name, columns)}")
    return columns[name]


def _kind(values: Any) -> str:
    return f"{'bags of ' if isinstance(values, tf.RaggedTensor) else ''}{values.dtype.name}"


def _series(values: tf.Tensor) -> pl.Series:
    if values.dtype == tf.string:
        return pl.Series([text.decode("utf-8") for text in values.numpy()], dtype=pl.String)
    return pl.Series(values.numpy())
