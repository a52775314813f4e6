"""The one mapping from raw rows to model input, used by `prepare` and held by the SavedModel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import tensorflow as tf

from tfdlrm.data.bag_weights import batch_weights, frame_weights
from tfdlrm.data.columns import (
    is_keyed,
    key_column,
    number_column,
    raw_columns,
    string_column,
    string_tensor,
    transposed,
)
from tfdlrm.data.encoder_checks import (
    refuse_unknown,
    refuse_unless_encodable,
    row_vector,
    stats_used,
    vocabulary_of,
)
from tfdlrm.data.encoder_files import EncoderParts, load_parts, part_names, save_parts
from tfdlrm.data.expansion import expansion_of
from tfdlrm.data.keys import Keys, keys_of, with_missing_keys
from tfdlrm.data.lookup import UNKNOWN, BulkLookup, TableLookup, unknown_row
from tfdlrm.data.once import Once
from tfdlrm.data.raw_bags import Bags, padded
from tfdlrm.data.transforms import BulkTransform, DenseStats, transform_dense
from tfdlrm.data.vocabulary import Vocabulary
from tfdlrm.spec.coding import Encoding, Unseen, ValueKind
from tfdlrm.spec.features import FeatureSpec, SparseFeature

# Strings live on the CPU only, and a look-up is cheaper than carrying its keys to another device and back.
_DEVICE = "/CPU:0"
_BulkIds = Callable[[dict[str, tf.Tensor]], tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]]


class FeatureEncoder(tf.Module):
    """Turns raw columns into the batch contract's `dense` and `sparse`.

    Vocabularies are untrainable variables, so that a SavedModel keeps them beside its graph, which may not grow
    beyond 2 GB. A value's id depends on that value alone, never on the batch around it.

    A category may be anything: a value that training rows did not have, or that is not hexadecimal where it should
    be, gets the table's `oov_row`, and is an error where the coding has none. Empty parts of a bag are skipped; a bag
    without any is missing and has one id, that of a missing value. Values beyond the feature's hotness are dropped.

    Where a coding says `expand`, the one id of a row becomes a bag of `hotness` ids; see `tfdlrm.data.expansion`.

    Numbers below the smallest normal float32 (1.2e-38) count as zero, before and after a dense feature's transform.

    Args:
        spec: The features, in column order.
        encoding: The coding rules of the same features.
        vocabularies: Vocabulary of each table; tables that hash may be left out.
        dense_stats: Statistics of the features whose transform needs them.

    Raises:
        SpecError: spec and encoding disagree, a vocabulary or statistic is missing, or a table has fewer rows than
            its vocabulary needs.

    Example:
        >>> from tfdlrm.spec.coding import FeatureCoding, TableCoding
        >>> from tfdlrm.spec.features import DenseFeature, TableConfig
        >>> spec = FeatureSpec(
        ...     dense=[DenseFeature(name="x")],
        ...     sparse=[SparseFeature(name="c", table="c")],
        ...     tables=[TableConfig(name="c", vocabulary_size=3, embedding_dim=4)],
        ... )
        >>> encoding = Encoding(features={"c": FeatureCoding(source="c")}, tables={"c": TableCoding()})
        >>> vocabulary = Vocabulary(np.array([10]), np.array([2], np.int32), rows=3)
        >>> encoder = FeatureEncoder(spec, encoding, {"c": vocabulary}, {})
        >>> batch = encoder.encode({"x": tf.constant([0.0, 3.0]), "c": tf.constant(["0A", "ff"])})
        >>> batch["sparse"].numpy().tolist()
        [[2], [1]]
    """

    def __init__(
        self,
        spec: FeatureSpec,
        encoding: Encoding,
        vocabularies: Mapping[str, Vocabulary],
        dense_stats: Mapping[str, DenseStats],
        name: str = "feature_encoder",
    ) -> None:
        super().__init__(name=name)
        encoding.check(spec)
        self.spec = spec
        self.encoding = encoding
        self.columns = raw_columns(encoding, {f.name: f.table for f in spec.sparse}, spec.dense_names)
        # Read-only views and tuples: TensorFlow would wrap a dict or list and save it as a part of the model.
        self.dense_stats = MappingProxyType(stats_used(spec, dense_stats))
        self._id_type = tf.as_dtype(spec.id_dtype)
        for feature in spec.sparse:
            refuse_unless_encodable(feature, encoding.features[feature.name])
        self._lookups = tuple(
            TableLookup(encoding.tables[table.name], vocabulary_of(table, encoding, vocabularies))
            for table in spec.tables
        )
        self._groups = self._grouped(spec.sparse)
        self._has_unknown = any(coding.oov_row is None for coding in encoding.tables.values())
        expansions = {f.name: expansion_of(f, encoding, self._lookup_of(f.table).vocabulary.rows) for f in spec.sparse}
        self._expansions = MappingProxyType({name: made for name, made in expansions.items() if made is not None})
        # What encoding in bulk makes. A tf.function or a dict as an attribute would be exported with the model.
        self._bulk = Once()

    @property
    def vocabularies(self) -> dict[str, Vocabulary]:
        """The vocabulary of each table, in spec order."""
        return {t.name: lookup.vocabulary for t, lookup in zip(self.spec.tables, self._lookups, strict=True)}

    def raw_signature(self, part: FeatureSpec | None = None) -> dict[str, tf.TensorSpec]:
        """Return the raw columns that `encode` reads, each of shape `[None]`: float32 numbers, then strings."""
        columns = self.columns
        if part is not None:
            features = {name: self.encoding.features[name] for name in part.sparse_names}
            encoding = self.encoding.model_copy(update={"features": features})
            columns = raw_columns(encoding, {f.name: f.table for f in part.sparse}, part.dense_names)
        numbers = {name: tf.TensorSpec([None], tf.float32, name) for name in columns.numbers}
        return numbers | {name: tf.TensorSpec([None], tf.string, name) for name in columns.strings}

    def encode(self, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Encode a batch; stock TensorFlow operations only, eagerly or in a graph.

        Args:
            raw: The columns of `raw_signature`, each `[B]` or `[B, 1]`: numbers with NaN where missing, strings
                with `""` where missing, a bag as one string joined by its separator. Other columns are ignored.

        Returns:
            `dense`, float32 `[B, n_dense]`, and `sparse`, `[B, n_ids]` of int32, or int64 where a table has 2^31 rows
            or more; with weighted features `weights`, float32 `[B, n_ids]`, 1 for the others.

        Raises:
            DataError: a column is absent, or of another type or rank.
            tf.errors.InvalidArgumentError: a table has no row for a value, and its coding no `oov_row`.
        """
        return self._encode(raw)

    def encode_part(self, raw: Mapping[str, tf.Tensor], part: FeatureSpec) -> dict[str, tf.Tensor]:
        """Encode some of the features as `encode` does all.

        Args:
            raw: The columns of `raw_signature(part)`; others are ignored.
            part: The features and the tables they read, out of those of the encoder.
        """
        return self._encode(raw, part)

    def _encode(self, raw: Mapping[str, tf.Tensor], part: FeatureSpec | None = None) -> dict[str, tf.Tensor]:
        spec, groups = (self.spec, self._groups) if part is None else (part, self._grouped(part.sparse))
        with tf.device(_DEVICE):
            columns = {name: row_vector(raw, name, of.dtype) for name, of in self.raw_signature(part).items()}
            bags = {f.name: self._bags(f, columns[self._source(f)]) for f in spec.sparse}
            batch = tf.shape(next(iter(columns.values())))[1]
            dense, sparse = tf.zeros([batch, 0], tf.float32), tf.zeros([batch, 0], self._id_type)
            if spec.dense:
                values = tf.concat([columns[name] for name in spec.dense_names], axis=0)
                dense = transform_dense(spec.dense, self.dense_stats, tf.transpose(values))
            if bags:
                ids = self._ids(bags, groups)
                sparse = tf.transpose(tf.concat([ids[name] for name in spec.sparse_names], axis=0))
                if self._has_unknown:
                    sparse = self._refusing_unknown(sparse)
            batched = {"dense": dense, "sparse": sparse}
            if spec.has_weights:
                batched["weights"] = batch_weights(spec, self.encoding, columns)
            return batched

    def encode_frame(
        self, frame: pl.DataFrame, dropped: Counter[str] | None = None, file: int | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Encode the rows of a frame: the values of `encode`, many times faster on many rows.

        Distinct texts are found in Polars, and only those are keyed and looked up, by the functions of `encode`. Keys
        that are there as numbers are looked up by `BulkLookup`. May be called from several threads.

        Args:
            frame: Number columns with null or NaN where missing, string columns with null or `""`; a column of
                single hexadecimal values may also hold them as keys, UInt32 or UInt64, with `missing:<name>` beside it.
            dropped: Counts, by feature, the values beyond its hotness that were dropped; added to.
            file: Number of the raw file that the rows are of, where a `log_file_minimum` feature shall be shifted by
                the minimum of that file. `None` shifts as `encode` does.

        Returns:
            What `encode` returns, as NumPy arrays.

        Raises:
            DataError: a column is absent or of another type; a table has no row for a value, and its coding no
                `oov_row`; or a bag has not one weight for each value.
        """
        dense = np.empty((self.spec.n_dense, frame.height), np.float32)
        sparse = np.empty((self.spec.n_ids, frame.height), self._id_type.as_numpy_dtype)
        keyed = [f for f in self.spec.sparse if self._reads_keys(f) and is_keyed(frame, self._source(f))]
        others = tuple(f for f in self.spec.sparse if f not in keyed)
        with tf.device(_DEVICE):
            for row, number in enumerate(self.spec.dense):
                own = file if number.transform == "log_file_minimum" else None
                transform = self._bulk((number, own), partial(BulkTransform, number, self.dense_stats, own))
                dense[row] = transform(number_column(frame, number.name))
            for feature in keyed:
                lookup = self._bulk(feature.table, partial(self._bulk_lookup, feature.table))
                start, stop = self.spec.id_columns[feature.name]
                ids, expansion = lookup(key_column(frame, self._source(feature))), self._expansions.get(feature.name)
                sparse[start:stop] = ids if expansion is None else expansion.array(ids)
            if others:
                self._encode_texts(frame, others, sparse, dropped)
            weights = {"weights": frame_weights(self.spec, self.encoding, frame)} if self.spec.has_weights else {}
        if self._has_unknown:
            refuse_unknown(self.spec, self.encoding, frame, sparse)
        return {"dense": transposed(dense), "sparse": transposed(sparse), **weights}

    def _encode_texts(
        self,
        frame: pl.DataFrame,
        features: tuple[SparseFeature, ...],
        sparse: npt.NDArray[Any],
        dropped: Counter[str] | None,
    ) -> None:
        """Fill in the rows, one for each id column, of features whose raw values are not keyed yet."""
        sources = dict.fromkeys(self._source(f) for f in features)
        distinct = {name: self._distinct(frame, name) for name in sources}
        encode = self._bulk(features, partial(self._in_bulk, features))
        ids, lengths = encode({name: column.values for name, column in distinct.items()})
        for feature in features:
            codes = distinct[self._source(feature)].codes
            start, stop = self.spec.id_columns[feature.name]
            for own, row in zip(ids[feature.name].numpy(), range(start, stop), strict=True):
                np.take(own, codes, out=sparse[row])
            if dropped is not None and feature.name in lengths:
                beyond = np.maximum(lengths[feature.name].numpy() - feature.hotness, 0)
                dropped[feature.name] += int(beyond[codes].sum())

    @property
    def asset_names(self) -> tuple[str, ...]:
        """Files that `save` writes, relative to its directory: what travels beside an exported model."""
        return part_names(len(self.spec.tables))

    def save(self, directory: Path | str) -> None:
        """Write `encoder.json` and one file per table under `vocabulary/`; `encoder.json` comes last and has checksums.

        Args:
            directory: Made if it is missing.
        """
        save_parts(EncoderParts(self.spec, self.encoding, self.vocabularies, dict(self.dense_stats)), Path(directory))

    @classmethod
    def load(cls, directory: Path | str, unseen: Unseen | None = None) -> FeatureEncoder:
        """Read what `save` wrote.

        Args:
            directory: Where `save` wrote.
            unseen: What values without a row count as in tables whose coding has no `oov_row`, for serving:
                `"missing"`, `"rare"`, `"zeros"`, or a row. `None` leaves them an error.

        Raises:
            DataError: a file is missing, damaged, or not the one that was saved with the others.
            SpecError: `unseen` names no row of a table that needs one.
        """
        parts = load_parts(Path(directory))
        return cls(*(parts if unseen is None else parts.serving(unseen)))

    def _source(self, feature: SparseFeature) -> str:
        return self.encoding.features[feature.name].source

    def _bags(self, feature: SparseFeature, values: tf.Tensor) -> Bags:
        """Take raw values `[1, n]` apart into bags."""
        separator = self.encoding.features[feature.name].separator
        if separator is None:
            return Bags(values, None)
        parts = tf.strings.split(values[0], separator)
        parts = tf.ragged.boolean_mask(parts, tf.not_equal(parts, ""))
        return Bags(tf.transpose(parts.to_tensor("", shape=[None, feature.hotness])), parts.row_lengths())

    def _in_bulk(self, features: tuple[SparseFeature, ...]) -> _BulkIds:
        """Return the function from raw columns `[1, n]` to ids, `[hotness, n]` by feature, and the lengths of bags.

        n may differ by column.
        """
        groups = self._grouped(features)

        def encode(columns: dict[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
            bags = {f.name: self._bags(f, columns[self._source(f)]) for f in features}
            lengths = {name: bag.length for name, bag in bags.items() if bag.length is not None}
            return self._ids(bags, groups, in_bulk=True), lengths

        types = {name: spec.dtype for name, spec in self.raw_signature().items()}
        sources = dict.fromkeys(self._source(f) for f in features)
        compiled: _BulkIds = tf.function(
            encode,
            input_signature=[{name: tf.TensorSpec([1, None], types[name]) for name in sources}],
            autograph=False,
        )
        return compiled

    def _lookup_of(self, table: str) -> TableLookup:
        return self._lookups[self.spec.tables.index(self.spec.table(table))]

    def _bulk_lookup(self, table: str) -> BulkLookup:
        lookup = self._lookup_of(table)
        return BulkLookup(lookup.coding, lookup.vocabulary)

    def _reads_keys(self, feature: SparseFeature) -> bool:
        """Tell whether a feature's raw column may hold keys: one hexadecimal value a row."""
        is_hex = self.encoding.tables[feature.table].value == "hex"
        return is_hex and self.encoding.features[feature.name].separator is None

    def _grouped(self, features: Iterable[SparseFeature]) -> Mapping[ValueKind, _Group]:
        """Return features and their tables by kind of value."""
        groups: dict[ValueKind, _Group] = {}
        for table, lookup in zip(self.spec.tables, self._lookups, strict=True):
            readers = [feature.name for feature in features if feature.table == table.name]
            if readers:
                group = groups.setdefault(lookup.coding.value, _Group([], [], []))
                group.tables_of_readers.extend(len(group.lookups) for _ in readers)
                group.readers.extend(readers)
                group.lookups.append(lookup)
        return MappingProxyType(groups)

    def _ids(
        self, bags: Mapping[str, Bags], groups: Mapping[ValueKind, _Group], in_bulk: bool = False
    ) -> dict[str, tf.Tensor]:
        """Return the ids of bags, `[hotness, n]` for each feature; `in_bulk` changes the pace only."""
        ids = {}
        for kind, group in groups.items():
            # Few operations, whatever the number of features: all values of one kind lie in one row [1, values], one
            # feature after another, and are keyed together; those of one table are looked up together.
            parts = [tf.reshape(bags[name].parts, [1, -1]) for name in group.readers]
            sizes = tf.stack([tf.size(part) for part in parts])
            rows = self._rows(group, keys_of(kind, tf.concat(parts, axis=1)), sizes, in_bulk)
            for name, own in zip(group.readers, tf.split(rows, sizes, axis=1, num=len(parts)), strict=True):
                ids[name] = own if bags[name].length is None else padded(own, bags[name])
                if name in self._expansions:
                    ids[name] = self._expansions[name].tensor(own)
        return ids

    def _rows(self, group: _Group, keys: Keys, sizes: tf.Tensor, in_bulk: bool) -> tf.Tensor:
        """Return the table rows of keys `[1, values]`, `sizes` of them for each reader of the group."""
        sizes = tf.math.segment_sum(sizes, tf.constant(group.tables_of_readers))  # for each table
        codings = [lookup.coding for lookup in group.lookups]
        keys = with_missing_keys(keys, [coding.missing_key for coding in codings], sizes)
        parts = tf.split(keys.keys, sizes, axis=1, num=len(group.lookups))
        found = [lookup(part, in_bulk) for lookup, part in zip(group.lookups, parts, strict=True)]
        rows = tf.concat([tf.cast(own_rows, self._id_type) for own_rows, _ in found], axis=1)
        known = tf.logical_and(keys.valid, tf.concat([own_known for _, own_known in found], axis=1))
        oov = tf.repeat(tf.constant([unknown_row(c) for c in codings], self._id_type), sizes)
        missing = tf.repeat(tf.constant([c.missing_row for c in codings], self._id_type), sizes)
        return tf.where(keys.missing, missing, tf.where(known, rows, oov))

    def _refusing_unknown(self, sparse: tf.Tensor) -> tf.Tensor:
        """Return ids `[B, n_ids]` if all values have a row; a graph stops otherwise."""
        refused = [name for name, coding in self.encoding.tables.items() if coding.oov_row is None]
        message = f"every value must have a row in tables without `oov_row`: {', '.join(refused)}."
        known = tf.reduce_all(tf.not_equal(sparse, tf.cast(UNKNOWN, sparse.dtype)))
        with tf.control_dependencies([tf.debugging.Assert(known, [message])]):
            return tf.identity(sparse)

    def _distinct(self, frame: pl.DataFrame, source: str) -> _Distinct:
        if source in self.columns.numbers:
            values = number_column(frame, source)  # cheaper to key than to tell apart
            return _Distinct(tf.constant(values[np.newaxis]), np.arange(len(values)))
        column = string_column(frame, source).alias("value").to_frame().with_row_index("row")
        groups = column.group_by("value").agg("row")
        codes = np.empty(frame.height, np.int64)
        codes[groups["row"].explode().to_numpy()] = np.repeat(np.arange(groups.height), groups["row"].list.len())
        return _Distinct(tf.expand_dims(string_tensor(groups["value"]), 0), codes)


class _Group(NamedTuple):
    """The tables of one kind of value, and the features that read them, table by table.

    Attributes:
        lookups: One for each table.
        readers: Feature names.
        tables_of_readers: Index in `lookups` of each reader's table; ascending.
    """

    lookups: list[TableLookup]
    readers: list[str]
    tables_of_readers: list[int]


class _Distinct(NamedTuple):
    """A raw column taken apart: `values`, `[1, n]`, and the index in them of each row's value, `[rows]`."""

    values: tf.Tensor
    codes: npt.NDArray[np.int64]
