"""Tables of any kind as Polars frames, and their columns as the raw values that an encoder reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from tfdlrm.spec.errors import DataError, did_you_mean

if TYPE_CHECKING:  # it loads TensorFlow, which this does without
    from tfdlrm.data.columns import RawColumns

_NUMBERS = "biuf"
_NUMERIC = frozenset(("int", "float", "bool"))


def polars_frame(table: Any) -> pl.DataFrame:
    """Return a table as a Polars frame.

    Args:
        table: A pandas or Polars DataFrame, a Polars LazyFrame, which is collected, or anything that hands itself over
            as Arrow, such as a `pyarrow.Table`. An index of pandas is left aside. Neither pandas nor pyarrow is
            imported for it.

    Raises:
        DataError: it is none of these, a name is no text or is there twice, or a pandas column, or its lists, hold
            several kinds of values.

    Example:
        >>> polars_frame(pl.LazyFrame({"a": [1, 2]})).shape
        (2, 1)
    """
    if isinstance(table, pl.LazyFrame):
        return table.collect()
    if isinstance(table, pl.DataFrame):
        return table
    if type(table).__module__.partition(".")[0] == "pandas" and type(table).__name__ == "DataFrame":
        names = list(table.columns)
        _refuse_names(names)
        return pl.DataFrame([_pandas_series(name, table[name]) for name in names])
    if hasattr(table, "__arrow_c_stream__"):
        _refuse_names(list(getattr(table, "column_names", ())))
        return pl.DataFrame(table)
    raise DataError(
        "`df` must be a DataFrame of pandas or Polars, or an Arrow table. "
        f"Received: {type(table).__module__}.{type(table).__qualname__}."
    )


def _refuse_names(names: list[Any]) -> None:
    for name in names:
        if not isinstance(name, str):
            raise DataError(f"column names of `df` must be text. Received: {name!r}, of type {type(name).__name__}.")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"column names of `df` must be unique. Received twice: {', '.join(map(repr, twice))}.")


def _pandas_series(name: str, column: Any) -> pl.Series:
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in _NUMBERS + "mM":
        array = column.to_numpy()
        if array.dtype.kind in "mM" and np.datetime_data(array.dtype)[0] == "s":  # which Polars does not read
            array = array.astype(f"{array.dtype.kind}8[us]")
        return pl.Series(name, array)
    values = column.astype(object).where(column.notna(), None).tolist()
    values = [_listed(value) for value in values]
    lists = [value for value in values if isinstance(value, list)]
    kinds = _kinds(values)
    # Polars makes of all lists what the first one holds: a fraction after whole numbers would lose its digits.
    inner = sorted({kind for value in lists for kind in _kinds(value)})
    if kinds == ["list"] and len(inner) > 1:
        if not set(inner) <= _NUMERIC:
            raise DataError(f"column `{name}` must hold lists of one kind of values. Received: {', '.join(inner)}.")
        values = [None if v is None else [None if part is None else float(part) for part in v] for v in values]
    try:
        return pl.Series(name, values, strict=True)
    except (TypeError, pl.exceptions.PolarsError):
        pass
    if set(kinds) <= _NUMERIC:
        return pl.Series(name, [None if value is None else float(value) for value in values])
    raise DataError(f"column `{name}` must hold values of one kind. Received: {', '.join(kinds)}.")


def _listed(value: Any) -> Any:
    """Return a collection as a list without what pandas writes for missing values; others as they are."""
    if not isinstance(value, (np.ndarray, list, tuple, set, frozenset)):
        return value
    parts = [part.item() if isinstance(part, np.generic) and part.dtype.kind not in "mM" else part for part in value]
    return [part for part in parts if not _is_gap(part)]


def _is_gap(part: Any) -> bool:
    return type(part).__name__ in ("NAType", "NaTType") or (isinstance(part, float) and part != part)


def _kinds(values: list[Any]) -> list[str]:
    return sorted({type(value).__name__ for value in values if value is not None})


def raw_frame(frame: pl.DataFrame, columns: RawColumns, separators: Mapping[str, str | None]) -> pl.DataFrame:
    """Return the raw columns that an encoder reads, as it reads them.

    Args:
        frame: The table; other columns are left aside.
        columns: Which columns are read as numbers and which as text.
        separators: What joins the values of a bag, by column; `None` or no entry for columns of one value a row.

    Returns:
        Float64 numbers, NaN where missing; then strings, `""` where missing. Whole numbers become text without a point,
        in a column of floats too; bags of a list column are joined.

    Raises:
        DataError: a column is absent, of another kind, has an infinite number, or a value of a bag holds what joins it.

    Example:
        >>> from tfdlrm.data.columns import RawColumns
        >>> table = pl.DataFrame({"age": [31, None], "user": [7.0, None], "tags": [["a", "b"], []]})
        >>> raw_frame(table, RawColumns(("age",), ("user", "tags")), {"tags": "|"}).rows()
        [(31.0, '7', 'a|b'), (nan, '', '')]
    """
    for name in (*columns.numbers, *columns.strings):
        if name not in frame.columns:
            raise DataError(f"`df` must have the column `{name}`.{did_you_mean(name, frame.columns)}")
    numbers = [number_values(frame[name]) for name in columns.numbers]
    texts = [text_values(frame[name], separators.get(name)) for name in columns.strings]
    return pl.DataFrame([*numbers, *texts])


def number_values(series: pl.Series) -> pl.Series:
    """Return numbers as Float64, NaN where missing.

    Raises:
        DataError: the column holds something else, or an infinite number.
    """
    kind = series.dtype
    if not (kind.is_numeric() or kind in (pl.Boolean, pl.Null)):
        raise DataError(f"column `{series.name}` must hold numbers. Received: {kind}.")
    numbers = series.cast(pl.Float64).fill_null(float("nan"))
    if numbers.cast(pl.Float32).is_infinite().any():
        raise DataError(f"column `{series.name}` must hold finite numbers. Received: an infinite one.")
    return numbers


def text_values(series: pl.Series, separator: str | None = None) -> pl.Series:
    """Return values as text, `""` where missing, bags joined by a separator, times with a zone in UTC.

    Raises:
        DataError: the column cannot be told as text, is one of lists without a separator, or a value holds it.
    """
    name = series.name
    frame = as_lists(series).to_frame()
    kind = frame.schema[name]
    if not isinstance(kind, pl.List):
        return frame.select(_as_text(pl.first(), kind, name).fill_null(""))[name]
    if separator is None:
        raise DataError(f"column `{name}` must hold one value a row. Received: {kind}.")
    bags = frame.select(pl.first().list.eval(_as_text(pl.element(), kind.inner, name)))
    if bags.select(pl.first().list.eval(pl.element().str.contains(separator, literal=True)).list.any().any()).item():
        raise DataError(f"column `{name}` must hold no {separator!r} in its values: it joins those of a row.")
    return bags.select(pl.first().list.join(separator, ignore_nulls=True).fill_null(""))[name]


def as_lists(series: pl.Series) -> pl.Series:
    """Return a column of arrays as one of lists; others as they are."""
    return series.arr.to_list() if isinstance(series.dtype, pl.Array) else series


def _as_text(values: pl.Expr, kind: Any, name: str) -> pl.Expr:
    if kind.is_float():
        whole = values.is_finite() & (values == values.floor()) & (values.abs() < 2**53)
        return (
            pl.when(whole)
            .then(values.cast(pl.Int64, strict=False).cast(pl.String))
            .when(values.is_not_nan())
            .then(values.cast(pl.String))
        )
    if isinstance(kind, pl.Datetime) and kind.time_zone is not None:
        # Local times come twice when clocks go back.
        return values.dt.convert_time_zone("UTC").cast(pl.String)
    texts = kind in (pl.String, pl.Boolean, pl.Categorical, pl.Enum, pl.Null)
    if texts or kind.is_integer() or kind.is_temporal():
        return values.cast(pl.String)
    raise DataError(f"column `{name}` must hold text, numbers, true and false, or lists of them. Received: {kind}.")
