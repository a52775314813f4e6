"""Which raw row trains, which validates, which tests: by position, by time, by the hash of a key, or at random."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from tfdlrm.data.dropped_rows import row_numbers
from tfdlrm.data.reader import RawChunk, RawReader
from tfdlrm.spec.errors import ConfigError, DataError
from tfdlrm.spec.raw import Split

TRAIN, VALIDATION, TEST = 0, 1, 2
SPLIT_NAMES = ("train", "validation", "test")
EVERYWHERE = 3
"""Code of a row that trains, validates and tests: only `split.by = "whole_and_half"` has such rows."""
Codes = npt.NDArray[np.int8]


def in_split(codes: Codes, split: str) -> npt.NDArray[np.bool_]:
    """Tell which rows, by their codes, are in the split of that name."""
    mask: npt.NDArray[np.bool_] = (codes == SPLIT_NAMES.index(split)) | (codes == EVERYWHERE)
    return mask


class SplitPlan:
    """Tells the split of every row; `SplitPlan.make` returns the plan of a rule.

    Bad rows keep their place in the count, so setting one aside moves no other row to another split. (Under
    `by = "time"` they have no place, and the shares are those of the rows that have a time.)

    Attributes:
        key: Raw column that the reader must carry as an extra one, if any.
    """

    key: str | None = None

    @staticmethod
    def make(split: Split, rows_per_file: Sequence[int], times: pl.Series | None = None) -> SplitPlan:
        """Return the plan of a split.

        Args:
            split: The rule.
            rows_per_file: Rows of each raw file, bad ones included.
            times: Time of each row over all files, null where it has none, for `split.by = "time"`; see `read_times`.
                Rows of equal time keep their order.

        Raises:
            ConfigError: no row would train.

        Example:
            >>> plan = SplitPlan.make(Split(by="days", days=3), [7])
            >>> plan.codes_of_rows(np.arange(7)).tolist()  # parts of 3, 2 and 2 rows; the last is halved
            [0, 0, 0, 0, 0, 2, 1]
        """
        rows = sum(rows_per_file)
        if split.by == "hash":
            return _HashPlan(split)
        if split.by == "random":
            return _RandomPlan(split)
        if split.by == "time":
            if times is None or len(times) != rows:
                raise ConfigError(f"`times` must hold {rows} values. Received: {0 if times is None else len(times)}.")
            timed = pl.DataFrame({"time": times}).with_row_index("row").drop_nulls().sort("time", "row")
            by_time = _PartsPlan(split, _shares(split, timed.height), [TRAIN, VALIDATION, TEST])
            codes = np.full(rows, -1, np.int8)
            codes[timed["row"].to_numpy()] = by_time.codes_of_rows(np.arange(timed.height))
            return _RowsPlan(codes)
        if split.by == "order":
            return _PartsPlan(split, _shares(split, rows), [TRAIN, VALIDATION, TEST])
        if split.by == "fold":
            codes_of_folds = [TEST if part == split.fold else TRAIN for part in range(split.folds)]
            return _PartsPlan(split, equal_parts(rows, split.folds), codes_of_folds)
        if split.by == "whole_and_half":
            return _PartsPlan(split, [rows - rows // 2, rows // 2], [TRAIN, EVERYWHERE])
        *train, last = equal_parts(rows, split.days) if split.days else rows_per_file
        uses = {"test_first": [TEST, VALIDATION], "validation_first": [VALIDATION, TEST], "test": [TEST, TEST]}
        first = last - last // 2 if split.odd_row == "first" else last // 2
        return _PartsPlan(split, [*train, first, last - first], [*(TRAIN for _ in train), *uses[split.last_day]])

    def codes(self, chunk: RawChunk) -> Codes:
        """Return the split of each row of a chunk, 0 train, 1 validation, 2 test, 3 all of them: int8 `[rows]`."""
        return self.codes_of_rows(chunk.rows)

    def codes_of_rows(self, rows: npt.NDArray[np.int64]) -> Codes:
        """Return the split of rows by their numbers over all files.

        Raises:
            ConfigError: the split depends on what the rows hold.
        """
        raise ConfigError('the split of a row must be asked of its chunk where split.by = "hash".')

    def stretches(self) -> list[tuple[int, int]] | None:
        """Return the consecutive stretches of rows as (row after the last, code); `None` where rows are mixed."""
        return None


class _PartsPlan(SplitPlan):
    """Consecutive parts of the rows, each with its split."""

    def __init__(self, split: Split, lengths: Sequence[int], codes: Sequence[int]) -> None:
        if not any(length for length, code in zip(lengths, codes, strict=True) if code in (TRAIN, EVERYWHERE)):
            raise ConfigError(f'split.by = "{split.by}" must leave rows to train on. Received: {sum(lengths)} rows.')
        self._ends = np.cumsum(lengths)
        self._codes = np.array(codes, np.int8)

    def codes_of_rows(self, rows: npt.NDArray[np.int64]) -> Codes:
        return self._codes[np.searchsorted(self._ends, rows, side="right")]

    def stretches(self) -> list[tuple[int, int]]:
        return list(zip(self._ends.tolist(), self._codes.tolist(), strict=True))


class _RowsPlan(SplitPlan):
    """A split for every single row: one byte each."""

    def __init__(self, codes: Codes) -> None:
        self._codes = codes

    def codes_of_rows(self, rows: npt.NDArray[np.int64]) -> Codes:
        return self._codes[rows]


class _RandomPlan(SplitPlan):
    """Shares of a number drawn for each row by its place over all files."""

    _STREAM = 1 << 64
    """Added to the seed: rows are left out by the numbers below."""

    def __init__(self, split: Split) -> None:
        self._key = self._STREAM + (split.seed or 0)
        self._fractions = split.fractions

    def codes_of_rows(self, rows: npt.NDArray[np.int64]) -> Codes:
        if not len(rows):
            return np.empty(0, np.int8)
        train, validation, test = self._fractions
        place = row_numbers(rows, self._key)
        last = TEST if test else VALIDATION
        codes: Codes = np.where(place < train, TRAIN, np.where(place < train + validation, VALIDATION, last))
        return codes.astype(np.int8)


class _HashPlan(SplitPlan):
    """Shares of the hash of a key, the same in every version of Python and Polars."""

    def __init__(self, split: Split) -> None:
        self.key = split.key
        self._fractions = split.fractions

    def codes(self, chunk: RawChunk) -> Codes:
        keys = chunk.frame[f"extra:{self.key}"]
        if keys.is_empty():  # all rows of the chunk are bad; Polars takes no mapping without entries
            return np.empty(0, np.int8)
        distinct = keys.unique()
        codes = pl.Series([self._code(key) for key in distinct], dtype=pl.Int8)
        return keys.replace_strict(distinct, codes, return_dtype=pl.Int8).to_numpy()

    def _code(self, key: str) -> int:
        train, validation, test = self._fractions
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        place = (int.from_bytes(digest, "big") >> 11) / 2**53  # in [0, 1), exact
        if place < train:
            return TRAIN
        return TEST if test and place >= train + validation else VALIDATION


def read_times(reader: RawReader, column: str, progress: Callable[[int], None] = lambda rows: None) -> pl.Series:
    """Return the time of every row, null for a bad row; reads all rows once, or twice where times have a fraction.

    Times are compared as numbers if the first row's is one, else as text, so that dates must be written year first.
    Numbers are held in 8 bytes a row.

    Args:
        reader: Must carry `column` as an extra column.
        column: The time column.
        progress: Called with the number of rows just read.

    Raises:
        DataError: the first row's time is a number and another's is not.
    """
    first = next((chunk.frame[f"extra:{column}"][0] for chunk in reader if chunk.frame.height), "")
    is_number = not _times(pl.Series([first]), pl.Float64()).has_nulls()
    reported = 0
    for kind in (pl.Int64(), pl.Float64()) if is_number else (pl.String(),):
        parts, seen = [], 0
        for chunk in reader:
            texts = chunk.frame[f"extra:{column}"]
            times = _times(texts, kind)
            if times.has_nulls():
                break
            everything = pl.repeat(None, chunk.read, dtype=kind, eager=True)
            parts.append(everything.scatter(chunk.rows - seen, times))
            seen += chunk.read
            progress(max(seen - reported, 0))
            reported = max(seen, reported)
        else:
            return pl.concat(parts)
    wrong = int(times.is_null().arg_max() or 0)
    place = reader.locate(int(chunk.rows[wrong]))
    raise DataError(f"{place}: `{column}` must be a number, as in the first row. Received: {texts[wrong]!r}.")


def _times(texts: pl.Series, kind: pl.DataType) -> pl.Series:
    """Return texts as times, null where they are none of that kind."""
    times = texts.str.strip_chars().cast(kind, strict=False)
    return times.fill_nan(None) if kind.is_float() else times


def _shares(split: Split, rows: int) -> list[int]:
    """Return how many rows train, validate and test; both cuts are at the nearest row."""
    train, validation, test = split.fractions
    first = math.floor(rows * train + 0.5)
    second = math.floor(rows * (train + validation) + 0.5) if test else rows
    return [first, second - first, rows - second]


def equal_parts(rows: int, parts: int) -> list[int]:
    """Return the lengths of consecutive parts; the remainder goes one row each to the first."""
    return [rows // parts + int(part < rows % parts) for part in range(parts)]
