"""Table rows of keys whose vocabulary is too large for memory: a join of sorted keys with the sorted vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tfdlrm.data.columns import KeyColumn, is_keyed, key_column, string_column, string_tensor
from tfdlrm.data.expansion import expansion_of
from tfdlrm.data.files import atomic_path
from tfdlrm.data.keys import keys_in_bulk, shared_keys
from tfdlrm.data.lookup import UNKNOWN, unknown_row
from tfdlrm.data.mapped_arrays import map_array
from tfdlrm.data.vocabulary import Vocabulary
from tfdlrm.spec.coding import Encoding
from tfdlrm.spec.errors import DataError
from tfdlrm.spec.features import FeatureSpec, SparseFeature

_KEY_BYTES = 48
"""Memory for each key of a batch: key, order, place and row, some of them twice while they are sorted."""
_ENTRY_BYTES = 24
_INDEX_BYTES = 56  # of an entry of a vocabulary that is looked up in memory: key and row in three forms, with room
ReadColumn = Callable[[int, Sequence[str]], pl.DataFrame]
"""Returns columns of the chunk of a number."""


def tables_to_join(
    spec: FeatureSpec,
    encoding: Encoding,
    vocabularies: Mapping[str, Vocabulary],
    key_columns: Collection[str],
    memory_bytes: int,
) -> set[str]:
    """Return the largest tables, so many that the vocabularies of the others fit into memory.

    Only tables whose features all have one value a row are joined: keys, or strings. Where bags carry weights none is,
    as those are encoded for all features together.

    Args:
        spec: The features.
        encoding: Their coding.
        vocabularies: Vocabulary of each table.
        key_columns: Raw columns that are read as keys.
        memory_bytes: The memory.
    """
    sizes = {name: len(vocabulary.keys) * _INDEX_BYTES for name, vocabulary in vocabularies.items()}
    joinable = {name for name in sizes if encoding.tables[name].kind == "vocabulary" and not spec.has_weights}
    for feature in spec.sparse:
        coding = encoding.features[feature.name]
        is_key = coding.source in key_columns or encoding.tables[feature.table].value == "string"
        if coding.separator is not None or not is_key:
            joinable.discard(feature.table)
    candidates = sorted(joinable, key=lambda name: -sizes[name])
    if not spec.dense and len(candidates) == len(spec.tables):
        candidates.pop()  # the encoder must have something left to encode
    joined: set[str] = set()
    left = sum(sizes.values())
    for table in candidates:
        if left <= memory_bytes:
            break
        joined.add(table)
        left -= sizes[table]
    return joined


class BigLookup:
    """Looks up one feature of all chunks, many chunks at a time, and keeps the rows found in files.

    For each batch the vocabulary is read once from beginning to end, piece by piece, beside the batch's sorted keys.

    Args:
        folder: Where the rows go, one file a chunk.
        name: Begins the names of the files.
        feature: The feature, of one raw value a row.
        encoding: The coding of all features.
        vocabulary: The table's vocabulary, mapped from disk.
        memory_bytes: About how much memory may be used.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        feature: SparseFeature,
        encoding: Encoding,
        vocabulary: Vocabulary,
        memory_bytes: int,
    ) -> None:
        self._folder = folder
        self._name = name
        self._coding = encoding.tables[feature.table]
        self._source = encoding.features[feature.name].source
        self._vocabulary: Vocabulary | None = vocabulary
        self._expansion = expansion_of(feature, encoding, vocabulary.rows)
        self._batch_rows = max(1, memory_bytes // 2 // _KEY_BYTES)
        self._entries = max(1, memory_bytes // 2 // _ENTRY_BYTES)

    def run(self, rows: Sequence[int], chunks: Sequence[int], read: ReadColumn, done: Callable[[int], None]) -> None:
        """Look up the chunks of those numbers, but for those that have their file already; to be called once.

        Args:
            rows: Rows of every chunk, by its number.
            chunks: Numbers of the chunks.
            read: Returns columns of a chunk.
            done: Called with the number of rows just looked up.
        """
        batch: list[int] = []
        for chunk in chunks:
            if self._path(chunk).exists():
                done(rows[chunk])
                continue
            if batch and sum(rows[c] for c in batch) + rows[chunk] > self._batch_rows:
                self._run_batch(batch, read, done)
                batch = []
            batch.append(chunk)
        if batch:
            self._run_batch(batch, read, done)
        self._vocabulary = None  # what was read of it would stay in memory

    def rows_of(self, chunk: int, here: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Return the table rows of some samples of a chunk that `run` looked up, `[hotness, samples]`."""
        rows = map_array(self._path(chunk))[here]
        return rows[np.newaxis] if self._expansion is None else self._expansion.array(rows)

    def forget(self, chunk: int) -> None:
        """Remove the file of a chunk."""
        self._path(chunk).unlink(missing_ok=True)

    def _run_batch(self, batch: Sequence[int], read: ReadColumn, done: Callable[[int], None]) -> None:
        columns = [self._keys(read(chunk, (self._source, f"missing:{self._source}"))) for chunk in batch]
        keys = np.concatenate([column.keys.astype(np.uint64) for column in columns])
        missing = np.concatenate([column.missing for column in columns])
        found = self._join(keys)
        found[missing] = self._coding.missing_row
        if self._coding.oov_row is None and (found == UNKNOWN).any():
            raise DataError(f"every value of `{self._source}` must have a row: its coding has no `oov_row`.")
        start = 0
        for chunk, column in zip(batch, columns, strict=True):
            stop = start + len(column.keys)
            with atomic_path(self._path(chunk)) as temporary, open(temporary, "wb") as file:
                np.save(file, found[start:stop])
            done(stop - start)
            start = stop

    def _keys(self, frame: pl.DataFrame) -> KeyColumn:
        if not is_keyed(frame, self._source):  # strings, whose keys are their fingerprints
            keyed = keys_in_bulk(self._coding.value, string_tensor(string_column(frame, self._source)))
            return KeyColumn(keyed.keys.numpy().view(np.uint64), keyed.missing.numpy())
        return shared_keys(key_column(frame, self._source), self._coding)

    def _join(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[Any]:
        """Return the row of each key, those the vocabulary lacks in `oov_row`."""
        vocabulary = self._vocabulary
        if vocabulary is None:
            raise ValueError("`run` must be called once. Received: another call.")
        order = np.argsort(keys.view(np.int64))
        keys = keys[order]
        signed = keys.view(np.int64)
        rows = np.full(len(keys), unknown_row(self._coding), vocabulary.ids.dtype)
        for begin in range(0, len(vocabulary.keys), self._entries):
            entries = np.array(vocabulary.keys[begin : begin + self._entries])
            first, last = np.searchsorted(signed, entries[0]), np.searchsorted(signed, entries[-1], side="right")
            places = np.searchsorted(entries, signed[first:last])
            same = entries[places] == signed[first:last]
            rows[first:last][same] = vocabulary.ids[begin : begin + self._entries][places[same]]
        found = np.empty_like(rows)
        found[order] = rows
        return found

    def _path(self, chunk: int) -> Path:
        return self._folder / f"{self._name}-{chunk:08d}.npy"
