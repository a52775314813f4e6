"""Which raw columns an encoding reads, as what type, and how they are taken from a frame."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import tensorflow as tf

from tfdlrm.spec.coding import Encoding
from tfdlrm.spec.errors import DataError, SpecError, did_you_mean

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class RawColumns:
    """Raw columns by type, each named once, in the order in which features first read them.

    Attributes:
        numbers: Columns read as float32, NaN where missing: dense features, then number-coded categories.
        strings: Columns read as strings, `""` where missing.
    """

    numbers: tuple[str, ...]
    strings: tuple[str, ...]


class KeyColumn(NamedTuple):
    """A raw column of keys.

    Attributes:
        keys: uint32 or uint64 `[rows]`, of no meaning where missing.
        missing: bool `[rows]`.
    """

    keys: npt.NDArray[Any]
    missing: npt.NDArray[np.bool_]


def raw_columns(encoding: Encoding, table_of: Mapping[str, str], dense: Iterable[str]) -> RawColumns:
    """Return the raw columns that features read.

    Args:
        encoding: The coding rules.
        table_of: Table of each sparse feature, by feature name.
        dense: Names of the dense features, which are their raw columns.

    Raises:
        SpecError: a feature has no table, one column is asked for both as a number and as a string, or numbers are
            to be split by a separator.
    """
    numbers = dict.fromkeys(dense, "a dense feature")
    strings: dict[str, str] = {}
    for feature, coding in encoding.features.items():
        table = table_of.get(feature)
        if table not in encoding.tables:
            raise SpecError(f"`table_of` must name a coded table for feature `{feature}`. Received: {table!r}.")
        is_number = encoding.tables[table].value == "number"
        if is_number and coding.separator is not None:
            raise SpecError(
                f"`separator` of feature `{feature}` must be absent: its table `{table}` codes numbers, one a row. "
                f"Received: {coding.separator!r}."
            )
        wanted, other = (numbers, strings) if is_number else (strings, numbers)
        if coding.source in other:
            raise SpecError(
                f"raw column `{coding.source}` must be either a number or a string. Received: "
                f"{'number' if is_number else 'string'} for feature `{feature}`, the other for {other[coding.source]}."
            )
        wanted.setdefault(coding.source, f"feature `{feature}`")
        if coding.weights is not None:
            strings.setdefault(coding.weights, f"the weights of feature `{feature}`")
    both = sorted(numbers.keys() & strings.keys())
    if both:
        raise SpecError(
            f"raw column `{both[0]}` must be either a number or a string. Received: a number for {numbers[both[0]]}, "
            f"a string for {strings[both[0]]}."
        )
    return RawColumns(numbers=tuple(numbers), strings=tuple(strings))


def number_column(frame: pl.DataFrame, name: str) -> npt.NDArray[np.float32]:
    """Return a column as float32 `[rows]`, NaN where it is null.

    Raises:
        DataError: the column is absent or does not hold numbers.
    """
    series = _column(frame, name)
    if not (series.dtype.is_numeric() or series.dtype == pl.Boolean or series.dtype == pl.Null):
        raise DataError(f"column `{name}` must hold numbers. Received: {series.dtype}.")
    series = series.cast(pl.Float32)
    return (series.fill_null(float("nan")) if series.null_count() else series).to_numpy()


def string_column(frame: pl.DataFrame, name: str) -> pl.Series:
    """Return a column of strings with `""` for null.

    Raises:
        DataError: the column is absent or does not hold strings.
    """
    series = _column(frame, name)
    if series.dtype not in (pl.String, pl.Null):
        raise DataError(f"column `{name}` must hold strings. Received: {series.dtype}.")
    return series.cast(pl.String).fill_null("") if series.null_count() else series


def is_keyed(frame: pl.DataFrame, name: str) -> bool:
    """Tell whether a column holds hexadecimal keys as numbers, as `key_column` takes them, rather than as text."""
    return _column(frame, name).dtype in (pl.UInt32, pl.UInt64)


def key_column(frame: pl.DataFrame, name: str) -> KeyColumn:
    """Return a column of keys, which has its `missing:<name>` beside it."""
    # No nulls: Polars takes longer to put them in and out than all the rest takes.
    return KeyColumn(_column(frame, name).to_numpy(), _column(frame, f"missing:{name}").to_numpy())


def transposed(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return `[b, a]` of `[a, b]` as an array of its own, part by part, each of which fits into a cache."""
    turned = np.empty(matrix.shape[::-1], matrix.dtype)
    if matrix.shape[0] < matrix.shape[1]:
        for start in range(0, matrix.shape[1], _ROWS_AT_ONCE):
            turned[start : start + _ROWS_AT_ONCE] = matrix[:, start : start + _ROWS_AT_ONCE].T
    else:
        for start in range(0, matrix.shape[0], _ROWS_AT_ONCE):
            turned[:, start : start + _ROWS_AT_ONCE] = matrix[start : start + _ROWS_AT_ONCE].T
    return turned


def string_tensor(series: pl.Series) -> tf.Tensor:
    """Return strings without nulls as a string tensor `[rows]`."""
    # A list of bytes is the shortest way into TensorFlow: a NumPy array of objects takes twice as long.
    return tf.constant(series.cast(pl.Binary).to_list(), tf.string)


def _column(frame: pl.DataFrame, name: str) -> pl.Series:
    if name not in frame.columns:
        raise DataError(f"`frame` must have the column `{name}`.{did_you_mean(name, frame.columns)}")
    return frame[name]
