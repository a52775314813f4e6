"""Counting what training rows hold, in memory or with sorted runs on disk, and building vocabularies of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

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
from tfdlrm.data.disk_arrays import DiskArrays, keep_array
from tfdlrm.data.files import fsync_directory, write_atomic
from tfdlrm.data.key_counts import Counted, KeyCounter, count_keys
from tfdlrm.data.key_runs import Run, SavedRun, SharedKey, merged_on_disk, merged_pieces
from tfdlrm.data.keys import keys_in_bulk, shared_keys
from tfdlrm.data.mapped_arrays import map_array
from tfdlrm.data.parallel import ordered_map, usable_cores
from tfdlrm.data.transforms import DenseStats, StatsCounter
from tfdlrm.data.vocabulary import Vocabulary, id_dtype
from tfdlrm.data.vocabulary_rows import DIGITS_BYTES, NewArray, in_memory, numbered
from tfdlrm.spec.coding import Encoding, TableCoding
from tfdlrm.spec.errors import DataError

_COMPACT_ABOVE = 1 << 20  # counts of chunks are merged when at least this many wait
_KEYED_AT_ONCE = 1 << 20
_MERGE_BYTES = 64  # per entry of a run, while runs are merged and keys get their rows
_TEXT_BYTES = 96  # more, where it has a text: that is grouped and sorted
_TEXT_COPIES = 3  # of the text itself meanwhile
_MOST_THREADS = 8
_FIELDS = ("keys", "ids")
_STATS = "stats.json"
_DONE = "vocabularies.json"
_Number = Callable[[TableCoding, Counted, int, NewArray], Vocabulary]


class VocabularyBuilder:
    """Counts the values of training rows, then gives each its row.

    What comes out depends on how often each value occurs (and, where asked for, where it is first), not on how rows
    are cut into frames. Memory grows with the number of distinct values, unless they are put aside by `save` now and
    then.

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
        # A raw column that two features of one table read alike is counted once.
        self._reads: dict[str, list[_Read]] = {name: [] for name in encoding.tables}
        for name, coding in encoding.features.items():
            table = table_of[name]
            read = _Read(coding.source, coding.separator)
            if encoding.tables[table].kind == "vocabulary" and read not in self._reads[table]:
                self._reads[table].append(read)
        self._counts = {name: _counts(coding) for name, coding in encoding.tables.items()}
        self._rows = 0

    @property
    def nbytes(self) -> int:
        """Bytes that counts take in memory, about."""
        return sum(counts.nbytes for counts in self._counts.values())

    def add(self, frame: pl.DataFrame, rows: npt.NDArray[np.int64] | None = None) -> None:
        """Count training rows.

        Args:
            frame: One row per sample: numbers with null or NaN where missing, strings with null or `""`; a column of
                single hexadecimal values may also hold them as keys, UInt32 or UInt64, with `missing:<name>` beside it.
            rows: int64 `[rows]`, ascending: the place of each row among all, for tables whose values get their rows in
                the order in which they are first seen. Defaults to counting on from the frame before.

        Raises:
            DataError: a column is absent or of another type.
        """
        if rows is None:
            rows = np.arange(self._rows, self._rows + frame.height)
        self._rows += frame.height
        for table, reads in self._reads.items():
            counts = self._counts[table]
            for number, read in enumerate(reads):
                # Of two columns of one table, the values of an earlier row come first, then those of the first column.
                places = rows * len(reads) + number if counts.coding.id_order == "first_seen" else None
                counts.add(frame, read, places)
        for name, stats in self._stats.items():
            stats.add(number_column(frame, name))

    def save(self, folder: Path) -> None:
        """Put the counts since the last `save` aside in a folder, and the statistics so far; memory is free then."""
        for index, counts in enumerate(self._counts.values()):
            counts.take().save(folder, _name(index))
        write_atomic(folder / _STATS, json.dumps({name: stats.state for name, stats in self._stats.items()}))

    def go_on_from(self, folder: Path) -> None:
        """Take over the statistics of a folder that `save` wrote last: its counts are given to `build`."""
        for name, state in json.loads((folder / _STATS).read_text(encoding="utf-8")).items():
            self._stats[name].state = state

    def build(
        self,
        folders: Sequence[Path] = (),
        scratch: Path | None = None,
        memory_bytes: int = 1 << 40,
        some_tables: bool = False,
        grow: Callable[[str, TableCoding, Counted, int, NewArray], Vocabulary] | None = None,
    ) -> tuple[dict[str, Vocabulary], dict[str, DenseStats]]:
        """Return the vocabulary of each table, in the order of the encoding, and the statistics asked for.

        Values seen at least `min_count` times get the rows from `first_id` on, in the order of `id_order`. The
        vocabulary of a hashed table is empty and has its number of rows.

        Args:
            folders: What `save` wrote, all of it; what was counted since is added.
            scratch: Folder for the vocabularies, which are then mapped from files there. Defaults to memory.
            memory_bytes: About how much memory may be used meanwhile, where there is a scratch folder. Defaults to as
                much as it takes. Whatever it is, a table whose `id_order` is `"count_digits"` takes 60 bytes a key;
                of such tables only one at a time is above its share.
            some_tables: Whether folders may lack tables, as those do in which runs were saved one by one. Defaults to
                `False`: a table that is not there was lost.
            grow: Gives keys their rows in place of `numbered`, told the table first. Defaults to `None`.

        Raises:
            DataError: two distinct strings of a table have the same 64-bit fingerprint, or a file of a folder is
                missing or of another length than when it was saved.
        """
        threads = min(usable_cores(), _MOST_THREADS)
        share, alone = memory_bytes // threads, Lock()

        def build(item: tuple[int, str]) -> Vocabulary:
            index, table = item
            there = [f for f in folders if not some_tables or (f / f"{_name(index)}.json").exists()]
            runs: list[Run | SavedRun] = [SavedRun(folder, _name(index)) for folder in there]
            runs.append(self._counts[table].take())
            coding = self._encoding.tables[table]
            needed = DIGITS_BYTES * sum(run.entries for run in runs) if coding.id_order == "count_digits" else 0
            with alone if needed > share else nullcontext():
                number = numbered if grow is None else partial(grow, table)
                return _vocabulary(table, coding, runs, scratch, index, share, number)

        built = ordered_map(build, enumerate(self._counts), threads)
        return dict(zip(self._counts, built, strict=True)), {name: stats.build() for name, stats in self._stats.items()}


class _Read(NamedTuple):
    """What a feature reads: a raw column, and what separates the values of a bag."""

    source: str
    separator: str | None


def _counts(coding: TableCoding) -> _KeyCounts | _TextCounts:
    return _TextCounts(coding) if coding.value == "string" else _KeyCounts(coding)


class _KeyCounts:
    """How often each value of one table was seen, by key."""

    def __init__(self, coding: TableCoding) -> None:
        self.coding = coding
        self._counter = KeyCounter(firsts=coding.id_order == "first_seen")

    @property
    def nbytes(self) -> int:
        return self._counter.nbytes

    def take(self) -> Run:
        return Run(self._counter.take())

    def add(self, frame: pl.DataFrame, read: _Read, places: npt.NDArray[np.int64] | None) -> None:
        if self.coding.value == "number":
            values = number_column(frame, read.source)
            there = np.isfinite(values)
            keys = keys_in_bulk("number", tf.constant(values[there])).keys.numpy().view(np.uint64)
            self._counter.add(count_keys(keys, None if places is None else places[there]))
        elif read.separator is None and is_keyed(frame, read.source):
            self._add_keys(key_column(frame, read.source), places)
        else:
            self._add_texts(string_column(frame, read.source), read.separator, places)

    def _add_keys(self, column: KeyColumn, places: npt.NDArray[np.int64] | None) -> None:
        keys, missing = shared_keys(column, self.coding)
        if missing.any():
            keys = keys[~missing]
            places = None if places is None else places[~missing]
        self._counter.add(count_keys(keys, places))

    def _add_texts(self, values: pl.Series, separator: str | None, places: npt.NDArray[np.int64] | None) -> None:
        frame = values.alias("value").to_frame()
        if places is None:
            # Distinct values first: bags are split, and strings keyed, once per distinct string of the chunk.
            frame = frame.group_by("value").agg(pl.len().cast(pl.Int64).alias("count"))
        else:
            frame = frame.with_columns(pl.lit(1, pl.Int64).alias("count"), pl.Series("place", places))
        missing = frame.filter(pl.col("value") == "")
        if separator is not None:
            missing = frame.filter(pl.col("value").str.contains(f"^(?:{re.escape(separator)})*$"))
            frame = frame.with_columns(pl.col("value").str.split(separator)).explode("value")
        frame = frame.filter(pl.col("value") != "")
        keyed = keys_in_bulk("hex", string_tensor(frame["value"]))
        valid = keyed.valid.numpy()
        self._add_counts(
            keyed.keys.numpy()[valid].view(np.uint64), np.zeros(int(valid.sum()), bool), frame.filter(valid)
        )
        if self.coding.missing_key is not None:
            self._add_counts(np.zeros(missing.height, np.uint64), np.ones(missing.height, bool), missing)

    def _add_counts(self, keys: npt.NDArray[np.uint64], missing: npt.NDArray[np.bool_], frame: pl.DataFrame) -> None:
        # Strings of one key, 0a and A, may both be there.
        firsts = frame["place"].to_numpy() if "place" in frame.columns else None
        keys = shared_keys(KeyColumn(keys, missing), self.coding).keys
        self._counter.add(Counted(keys, frame["count"].to_numpy(), firsts))


class _TextCounts:
    """How often each string of one table was seen, by string: their keys are fingerprints, which may collide."""

    def __init__(self, coding: TableCoding) -> None:
        self.coding = coding
        self._clear()

    def _clear(self) -> None:
        self._merged = pl.DataFrame(schema={"value": pl.String, "count": pl.Int64})
        self._waiting: list[pl.DataFrame] = []
        self._waiting_rows = 0

    @property
    def nbytes(self) -> int:
        return sum(int(frame.estimated_size()) for frame in (self._merged, *self._waiting))

    def add(self, frame: pl.DataFrame, read: _Read, places: npt.NDArray[np.int64] | None) -> None:
        values = string_column(frame, read.source).alias("value").to_frame()
        counts = values.group_by("value").agg(pl.len().cast(pl.Int64).alias("count"))
        if read.separator is not None:
            counts = _merge(counts.with_columns(pl.col("value").str.split(read.separator)).explode("value"))
        self._waiting.append(counts.filter(pl.col("value") != ""))
        self._waiting_rows += self._waiting[-1].height
        if self._waiting_rows >= max(_COMPACT_ABOVE, self._merged.height):
            self._compact()

    def take(self) -> Run:
        """Return the counts by fingerprint, ascending as unsigned numbers."""
        self._compact()
        slices = self._merged.iter_slices(_KEYED_AT_ONCE)
        keys = [keys_in_bulk("string", string_tensor(s["value"])).keys.numpy().view(np.uint64) for s in slices]
        ordered = self._merged.with_columns(pl.Series("key", np.concatenate([np.empty(0, np.uint64), *keys])))
        ordered = ordered.sort("key", "value")
        self._clear()
        return Run(Counted(ordered["key"].to_numpy(), ordered["count"].to_numpy()), ordered["value"])

    def _compact(self) -> None:
        self._merged = _merge(pl.concat([self._merged, *self._waiting]))
        self._waiting, self._waiting_rows = [], 0


def _vocabulary(
    table: str,
    coding: TableCoding,
    runs: Sequence[Run | SavedRun],
    scratch: Path | None,
    index: int,
    memory_bytes: int,
    number: _Number,
) -> Vocabulary:
    """Merge the runs of one table and give its values their rows."""
    if coding.kind != "vocabulary":
        return Vocabulary.empty(coding)
    entries = sum(run.entries for run in runs)
    try:
        if scratch is None:
            (merged,) = merged_pieces(runs, entries)
            return number(coding, merged, max(1, entries), in_memory)
        at_once = max(1 << 12, memory_bytes // _entry_bytes(runs))
        arrays = DiskArrays(scratch, _name(index))
        if entries <= at_once:
            (merged,) = merged_pieces(runs, at_once)
        else:
            merged = merged_on_disk(runs, at_once, scratch, _name(index))
        vocabulary = number(coding, merged, at_once, arrays)
    except SharedKey as shared:
        first, second = shared.texts
        raise DataError(
            f"values of table `{table}` must have distinct 64-bit fingerprints. "
            f'Received: {first!r} and {second!r}, which share one. Set kind = "hash" for this table.'
        ) from None
    arrays.remove("firsts")
    for path in scratch.glob(f"{_name(index)}.merged.*"):
        path.unlink()
    return vocabulary


def _entry_bytes(runs: Sequence[Run | SavedRun]) -> int:
    """Return how much memory an entry of the runs takes while they are merged, about."""
    if not any(run.has_texts for run in runs):
        return _MERGE_BYTES
    texts = sum(run.text_bytes for run in runs) / max(1, sum(run.entries for run in runs))
    return _MERGE_BYTES + _TEXT_BYTES + math.ceil(_TEXT_COPIES * texts)


def _name(index: int) -> str:
    """Return how the files of a table's number begin: names of tables may hold what file names may not."""
    return f"{index:05d}"


def _merge(counts: pl.DataFrame) -> pl.DataFrame:
    """Return counts with one line a value."""
    return counts.group_by("value").agg(pl.col("count").sum())


def save_vocabularies(vocabularies: Mapping[str, Vocabulary], folder: Path) -> None:
    """Write vocabularies so that `map_vocabularies` can map them into memory; once it returns, they are durable.

    Args:
        vocabularies: The vocabularies. Of those that `VocabularyBuilder.build` made with `folder` as its scratch folder
            the arrays are there already.
        folder: Where they go.

    Raises:
        OSError: the disk has no room for them.
    """
    sizes = {}
    for index, (table, vocabulary) in enumerate(vocabularies.items()):
        sizes[table] = {"rows": vocabulary.rows, "entries": len(vocabulary.keys)}
        for field in _FIELDS if len(vocabulary.keys) else ():
            keep_array(getattr(vocabulary, field), folder / f"{_name(index)}.{field}.npy")
    fsync_directory(folder)
    write_atomic(folder / _DONE, json.dumps(sizes))


def map_vocabularies(folder: Path) -> dict[str, Vocabulary] | None:
    """Return what `save_vocabularies` wrote, mapped into memory; `None` if it never ended.

    Raises:
        DataError: a file is missing or damaged.
    """
    if not (folder / _DONE).exists():
        return None
    found = {}
    for index, (table, size) in enumerate(json.loads((folder / _DONE).read_text(encoding="utf-8")).items()):
        arrays = [np.empty(0, np.int64), np.empty(0, id_dtype(size["rows"]))]
        if size["entries"]:
            arrays = [_mapped(folder / f"{_name(index)}.{field}.npy", size["entries"]) for field in _FIELDS]
        found[table] = Vocabulary(arrays[0], arrays[1], size["rows"])
    return found


def _mapped(path: Path, entries: int) -> npt.NDArray[Any]:
    try:
        array = map_array(path)
    except FileNotFoundError:
        raise DataError(f"{path}: missing, though vocabularies were saved in its folder.") from None
    except ValueError as error:
        raise DataError(f"{path}: damaged since it was written: {error}") from None
    if len(array) != entries:
        raise DataError(f"{path}: must have the {entries} entries that were written. Received: {len(array)}.")
    return array
