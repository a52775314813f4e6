"""Vocabularies: which row of a table each value of the training rows gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import tensorflow as tf

from tfdlrm.data.columns import (
    KeyColumn,
    is_keyed,
    key_column,
    number_column,
    raw_columns,
    string_column,
    string_tensor,
)
from tfdlrm.data.files import atomic_path
from tfdlrm.data.key_counts import Counted, KeyCounter, count_keys
from tfdlrm.data.keys import keys_in_bulk
from tfdlrm.data.parallel import ordered_map, usable_cores
from tfdlrm.data.transforms import DenseStats, StatsCounter
from tfdlrm.spec.coding import Encoding, TableCoding
from tfdlrm.spec.errors import DataError

_COMPACT_ABOVE = 1 << 20  # counts of chunks are merged when at least this many wait
_KEYED_AT_ONCE = 1 << 20


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The rows of one table's values: 12 bytes an entry, 16 in a table of 2^31 rows or more.

    Attributes:
        keys: int64 keys, strictly ascending.
        ids: Row of each key; int32, or int64 where `rows` is at least 2^31. Same length as `keys`.
        rows: Rows of the table, reserved rows included.

    Raises:
        DataError: the arrays are not of that form.
    """

    keys: npt.NDArray[np.int64]
    ids: npt.NDArray[Any]
    rows: int

    def __post_init__(self) -> None:
        wanted = id_dtype(self.rows)
        if self.keys.dtype != np.int64 or self.ids.dtype != wanted or self.keys.shape != self.ids.shape:
            raise DataError(
                f"`keys` and `ids` must be int64 and {wanted} arrays of one length. Received: {self.keys.dtype} "
                f"{list(self.keys.shape)} and {self.ids.dtype} {list(self.ids.shape)}."
            )
        if self.keys.ndim != 1 or bool((self.keys[1:] <= self.keys[:-1]).any()):
            raise DataError("`keys` must be one strictly ascending row of numbers.")
        if self.ids.size and not 0 <= int(self.ids.min()) <= int(self.ids.max()) < self.rows:
            raise DataError(f"`ids` must lie in [0, {self.rows}). Received: {self.ids.min()} to {self.ids.max()}.")

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays."""
        return int(self.keys.nbytes + self.ids.nbytes)

    @classmethod
    def empty(cls, coding: TableCoding) -> Vocabulary:
        """Return the vocabulary of a table without values of its own: one that hashes, or that saw none."""
        rows = table_rows(coding, coding.buckets or 0)
        return cls(np.empty(0, np.int64), np.empty(0, id_dtype(rows)), rows)

    def save(self, path: Path | str) -> None:
        """Write the vocabulary to `path` (NumPy's `.npz`), whole or not at all."""
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, keys=self.keys, ids=self.ids, rows=np.int64(self.rows))

    @classmethod
    def load(cls, path: Path | str) -> Vocabulary:
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing, or holds no vocabulary.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(arrays["keys"], arrays["ids"], int(arrays["rows"]))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file.") from None
        except Exception as error:  # NumPy and zipfile raise what they like on damaged files
            raise DataError(f"{path}: not a vocabulary: {error}") from None


def id_dtype(rows: int) -> npt.DTypeLike:
    """Return the NumPy type of row ids below `rows`."""
    return np.dtype(np.int32 if rows < 2**31 else np.int64)


def table_rows(coding: TableCoding, values: int) -> int:
    """Return the rows of a table with `values` values (or buckets) of its own, reserved rows included."""
    reserved = [coding.rare_row] if coding.min_count > 1 or coding.max_values else []
    reserved += [coding.missing_row] if coding.missing_key is None else []
    reserved += [coding.oov_row] if coding.oov_row is not None else []
    return max([coding.first_id + values, *(1 + row for row in reserved)])


class VocabularyBuilder:
    """Counts the values of training rows, then gives each its row.

    What comes out depends on how often each value occurs, not on the order of rows or how they are cut into frames.
    Memory grows with the number of distinct values, not with the number of rows.

    Args:
        encoding: The coding rules.
        table_of: Table of each sparse feature, by feature name. Features of one table are counted together.
        standardize: Dense features whose mean and standard deviation are wanted.

    Raises:
        SpecError: features ask for one raw column both as a number and as a string, or numbers by a separator.

    Example:
        >>> from tfdlrm.spec.coding import FeatureCoding
        >>> encoding = Encoding(features={"c": FeatureCoding(source="c")}, tables={"c": TableCoding()})
        >>> builder = VocabularyBuilder(encoding, {"c": "c"})
        >>> builder.add(pl.DataFrame({"c": ["0a", "0b", "0b", ""]}))
        >>> vocabularies, _ = builder.build()
        >>> vocabularies["c"].keys.tolist(), vocabularies["c"].ids.tolist(), vocabularies["c"].rows
        ([10, 11], [3, 2], 4)
    """

    def __init__(self, encoding: Encoding, table_of: Mapping[str, str], standardize: Iterable[str] = ()) -> None:
        self._encoding = encoding
        self._stats = {name: StatsCounter() for name in standardize}
        raw_columns(encoding, table_of, self._stats)  # refuses columns that features disagree on
        self._counts = {name: _Counts(coding) for name, coding in encoding.tables.items()}
        # A raw column that two features of one table read alike is counted once.
        self._reads = {
            (table_of[name], coding.source, coding.separator): None
            for name, coding in encoding.features.items()
            if encoding.tables[table_of[name]].kind == "vocabulary"
        }

    def add(self, frame: pl.DataFrame) -> None:
        """Count training rows.

        Args:
            frame: One row per sample: numbers with null or NaN where missing, strings with null or `""`; a column of
                single hexadecimal values may also hold them as keys, UInt32 or UInt64, with `missing:<name>` beside it.

        Raises:
            DataError: a column is absent or of another type.
        """
        for table, source, separator in self._reads:
            counts = self._counts[table]
            if counts.coding.value == "number":
                counts.add_numbers(number_column(frame, source))
            elif counts.coding.value == "hex" and separator is None and is_keyed(frame, source):
                counts.add_keys(key_column(frame, source))
            else:
                counts.add_strings(string_column(frame, source), separator)
        for name, stats in self._stats.items():
            stats.add(number_column(frame, name))

    def build(self) -> tuple[dict[str, Vocabulary], dict[str, DenseStats]]:
        """Return the vocabulary of each table, in the order of the encoding, and the statistics asked for.

        Values seen at least `min_count` times get the rows from `first_id` on, the most frequent first and equally
        frequent ones by key. The vocabulary of a hashed table is empty and has its number of rows.

        Raises:
            DataError: two distinct strings of a table have the same 64-bit fingerprint.
        """
        built = ordered_map(lambda name: self._counts[name].build(name), self._counts, usable_cores())
        return dict(zip(self._counts, built, strict=True)), {name: stats.build() for name, stats in self._stats.items()}


class _Counts:
    """How often each value of one table was seen: by key, or by string where keys are fingerprints that may collide."""

    def __init__(self, coding: TableCoding) -> None:
        self.coding = coding
        self._by_key = KeyCounter()
        self._by_text = pl.DataFrame(schema={"value": pl.String, "count": pl.Int64})
        self._waiting: list[pl.DataFrame] = []
        self._waiting_rows = 0

    def add_keys(self, column: KeyColumn) -> None:
        self._by_key.add(count_keys(column.keys[~column.missing] if column.missing.any() else column.keys))

    def add_numbers(self, values: npt.NDArray[np.float32]) -> None:
        keys = keys_in_bulk("number", tf.constant(values[np.isfinite(values)]))
        self._by_key.add(count_keys(keys.keys.numpy().view(np.uint64)))

    def add_strings(self, values: pl.Series, separator: str | None) -> None:
        # Distinct values first: bags are split, and strings keyed, once per distinct string of the chunk.
        counts = _count(values)
        if separator is not None:
            counts = _merge(counts.with_columns(pl.col("value").str.split(separator)).explode("value"))
        counts = counts.filter(pl.col("value") != "")
        if self.coding.value == "hex":
            keys = keys_in_bulk("hex", string_tensor(counts["value"]))
            valid = keys.valid.numpy()
            # Strings of one key, 0a and A, may both be there.
            self._by_key.add(Counted(keys.keys.numpy()[valid].view(np.uint64), counts["count"].to_numpy()[valid]))
        else:
            self._add_texts(counts)

    def build(self, table: str) -> Vocabulary:
        coding = self.coding
        if coding.kind == "hash":
            return Vocabulary.empty(coding)
        keys, counts = self._by_key.total() if coding.value != "string" else self._fingerprints(table)
        order = np.argsort(-counts, kind="stable")  # equally frequent ones stay in the order of their keys
        keys, counts = keys[order], counts[order]
        kept = int((counts >= coding.min_count).sum())
        rows = table_rows(coding, kept)
        ids = np.full(len(keys), coding.rare_row, id_dtype(rows))
        ids[:kept] = np.arange(coding.first_id, coding.first_id + kept)
        if coding.rare_row == coding.oov_row:  # rare values then need no entry: unknown ones get the same row
            keys, ids = keys[:kept], ids[:kept]
        order = np.argsort(keys)
        return Vocabulary(keys[order], ids[order], rows)

    def _add_texts(self, counts: pl.DataFrame) -> None:
        self._waiting.append(counts)
        self._waiting_rows += counts.height
        if self._waiting_rows >= max(_COMPACT_ABOVE, self._by_text.height):
            self._compact()

    def _compact(self) -> None:
        self._by_text = _merge(pl.concat([self._by_text, *self._waiting]))
        self._waiting, self._waiting_rows = [], 0

    def _fingerprints(self, table: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the fingerprints of the strings, ascending, and how often each was seen."""
        self._compact()
        values, counts = self._by_text["value"], self._by_text["count"].to_numpy()
        slices = values.to_frame().iter_slices(_KEYED_AT_ONCE)
        keys = np.concatenate(
            [np.empty(0, np.int64), *(keys_in_bulk("string", string_tensor(s["value"])).keys.numpy() for s in slices)]
        )
        order = np.argsort(keys)
        keys = keys[order]
        same = np.flatnonzero(keys[1:] == keys[:-1])
        if same.size:
            first, second = sorted(values[int(order[same[0] + i])] for i in (0, 1))
            raise DataError(
                f"values of table `{table}` must have distinct 64-bit fingerprints. "
                f'Received: {first!r} and {second!r}, which share one. Set kind = "hash" for this table.'
            )
        return keys, counts[order]


def _count(values: pl.Series) -> pl.DataFrame:
    """Return the columns `value` and `count`."""
    return values.alias("value").to_frame().group_by("value").agg(pl.len().cast(pl.Int64).alias("count"))


def _merge(counts: pl.DataFrame) -> pl.DataFrame:
    """Return counts with one line a value."""
    return counts.group_by("value").agg(pl.col("count").sum())
