"""Labels and splits of the rows of a table in memory, by the rules that rows of files keep."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import polars as pl

from tfdlrm.data.any_frame import number_values, text_values
from tfdlrm.data.reader import RawChunk
from tfdlrm.data.row_parser import label_check, label_is_number, label_value
from tfdlrm.data.splits import Codes, SplitPlan
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.errors import DataError, did_you_mean
from tfdlrm.spec.raw import LabelRule


def refuse_absent(frame: pl.DataFrame, names: Collection[str], what: str) -> None:
    """Raise `DataError` unless the table has all these columns."""
    for name in names:
        if name not in frame.columns:
            raise DataError(
                f"`{what}` must name a column of `df`. Received: `{name}`.{did_you_mean(name, frame.columns)}"
            )


def frame_labels(frame: pl.DataFrame, rule: LabelRule) -> npt.NDArray[np.float32]:
    """Return the labels of all rows, float32 `[rows]` of 0 and 1.

    Raises:
        DataError: the column is absent, some row has no label, or labels are not 0 and 1; the message suggests a rule.
    """
    refuse_absent(frame, [rule.column], "label")
    series = frame[rule.column]
    missing = series.is_null() | series.is_nan() if series.dtype.is_float() else series.is_null()
    if missing.any():
        raise DataError(
            f"label `{rule.column}` must be there in every row. Received: {int(missing.sum()):,} rows without, the "
            f"first is row {missing.arg_max()}, counted from 0. Leave them out first."
        )
    is_number = series.dtype.is_numeric() or series.dtype == pl.Boolean
    if label_is_number(rule) and not is_number:
        raise DataError(
            f"label `{rule.column}` must hold 0 and 1. Received: {series.dtype}, such as {series[0]!r}. "
            f'Say which value is 1: label="{rule.column} == {series[0]}".'
        )
    if not label_is_number(rule):
        texts = text_values(series).alias(f"text:{rule.column}")
        if (texts == "").any():
            raise DataError(
                f'label `{rule.column}` must be there in every row. Received: "" in row {(texts == "").arg_max()}.'
            )
        return _by_rule(texts, rule)
    numbers = number_values(series).alias(f"number:{rule.column}")
    if not numbers.to_frame().select(label_check(rule).passes.all()).item():
        low, high = np.min(numbers.to_numpy()), np.max(numbers.to_numpy())
        raise DataError(
            f"label `{rule.column}` must hold 0 and 1. Received: numbers from {low:g} to {high:g}. "
            f'Say which of them are 1, by a rule such as label="{rule.column} >= {(low + high) / 2:.4g}".'
        )
    return _by_rule(numbers, rule)


def _by_rule(column: pl.Series, rule: LabelRule) -> npt.NDArray[np.float32]:
    return column.to_frame().select(label_value(rule)).to_series().to_numpy()


def frame_splits(frame: pl.DataFrame, data: DataConfig) -> Codes:
    """Return the split of each row, int8 `[rows]`; see `SplitPlan`.

    Raises:
        DataError: the column that the split goes by is absent, or some row has no time.
        ConfigError: no row would train.
    """
    rows, times = frame.height, None
    if data.split.by == "time":
        times = _times(frame, data.format.time or "")
    plan = SplitPlan.make(data.split, [rows], times)
    chunk = pl.DataFrame()
    if plan.key is not None:
        refuse_absent(frame, [plan.key], "split")
        chunk = text_values(frame[plan.key]).alias(f"extra:{plan.key}").to_frame()
    return plan.codes(RawChunk(chunk, np.arange(rows), rows))


def _times(frame: pl.DataFrame, column: str) -> pl.Series:
    """Return times that can be ordered; text of numbers counts as numbers, as it does in files."""
    refuse_absent(frame, [column], "split")
    times = frame[column]
    if times.dtype == pl.String:
        for kind in (pl.Int64(), pl.Float64()):
            numbers = times.str.strip_chars().cast(kind, strict=False)
            if not numbers.has_nulls():
                times = numbers
                break
    missing = times.is_null() | times.is_nan() if times.dtype.is_float() else times.is_null()
    if missing.any():
        raise DataError(
            f"`{column}`, by which rows are split, must be there in every row. "
            f"Received: {int(missing.sum()):,} rows without, the first is row {missing.arg_max()}, counted from 0."
        )
    return times
