"""Labels and splits of the rows of a table in memory, by the rules that rows of files keep."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
import polars as pl

from tfdlrm.data.any_frame import number_values, text_values
from tfdlrm.data.reader import RawChunk
from tfdlrm.data.row_parser import bag_weights, hexadecimal, label_check, label_is_number, label_value
from tfdlrm.data.splits import Codes, SplitPlan
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.errors import DataError, did_you_mean
from tfdlrm.spec.raw import LabelRule

_ISO_TIME = (
    r"^\d{4}-\d{2}(?:-\d{2}(?:(?P<between>[T ])\d{2}:\d{2}(?::\d{2}(?:[.]\d+)?)?(?P<zone>Z|[+-]\d{2}:?\d{2})?)?)?$"
)


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
        DataError: the column that the split goes by is absent, some row has no time, or times are no numbers, dates or
            text of either.
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


def refuse_bad_values(
    raw: pl.DataFrame, hex_columns: Mapping[str, str | None], weights: Mapping[str, tuple[str, str]]
) -> None:
    """Raise where files would be told of a bad row: `raw_frame` has looked at numbers, this looks at texts.

    Args:
        raw: Raw columns, as `raw_frame` returns them.
        hex_columns: Those that hold hexadecimal keys, with the separator of a bag or `None`.
        weights: Those that hold the weights of a bag: column to the bag's column and its separator.

    Raises:
        DataError: a text is no key where it should be, or a bag has not one finite weight for each of its values.
    """
    texts = raw.select(pl.col(pl.String).name.prefix("text:"))
    for check in (
        *(hexadecimal(name, separator) for name, separator in hex_columns.items()),
        *(bag_weights(name, *bag) for name, bag in weights.items()),
    ):
        passes = texts.select(check.passes).to_series()
        if not passes.all():
            row = (~passes).arg_max() or 0
            hint = ' Other text is read with `value = "string"` in `[data.coding]`.' * (check.column in hex_columns)
            found = f"{raw[check.column][row]!r} in row {row}, counted from 0"
            raise DataError(f"`{check.column}` {check.rule}. Received: {found}.{hint}")


def file_columns(frame: pl.DataFrame, raw: pl.DataFrame, data: DataConfig) -> pl.DataFrame:
    """Return what a file must hold for its reader to find these raw values, labels and splits.

    Times with a zone are told in UTC: in the order of their texts, they would be wrong where clocks go back.

    Args:
        frame: The table.
        raw: Its raw columns, as `raw_frame` returns them; null and `""` are both read as missing.
        data: The recipe.
    """
    rule, time, key = data.format.label_rule, data.format.time, data.split.key
    columns = {}
    if time is not None and (data.split.by == "time" or time in set(frame.columns) - set(raw.columns)):
        columns[time] = text_values(_times(frame, time) if data.split.by == "time" else frame[time])
    label = frame[rule.column]
    columns[rule.column] = number_values(label) if label_is_number(rule) else text_values(label)
    if data.split.by == "hash" and key is not None:
        columns[key] = text_values(frame[key])  # which is what was hashed; a number is still read from it
    return raw.with_columns(columns.values()).with_columns(pl.selectors.float().fill_nan(None))


def _times(frame: pl.DataFrame, column: str) -> pl.Series:
    """Return times that can be ordered; text of numbers counts as numbers, as it does in files."""
    refuse_absent(frame, [column], "split")
    times = frame[column]
    if times.dtype in (pl.Categorical, pl.Enum):
        times = times.cast(pl.String)  # else it has an order of its own
    if times.dtype == pl.Duration:
        times = times.to_physical()  # which has a text
    missing = times.is_null() | times.is_nan() if times.dtype.is_float() else times.is_null()
    if times.dtype == pl.String:
        missing |= times == ""
    if missing.any():
        raise DataError(
            f"`{column}`, by which rows are split, must be there in every row. "
            f"Received: {int(missing.sum()):,} rows without, the first is row {missing.arg_max()}, counted from 0."
        )
    if times.dtype == pl.String:
        return _read_times(times)
    if not (times.dtype.is_numeric() or times.dtype.is_temporal()):
        raise DataError(
            f"`{column}`, by which rows are split, must hold numbers, dates or text of them. Received: {times.dtype}."
        )
    return times


def _read_times(times: pl.Series) -> pl.Series:
    """Return texts as numbers where all are, else as they are: dates whose order is that of their texts."""
    for kind in (pl.Int64(), pl.Float64()):
        numbers = times.str.strip_chars().cast(kind, strict=False)
        if not (numbers.has_nulls() or numbers.is_nan().any()):
            return numbers
    is_date = times.str.contains(_ISO_TIME)
    if not is_date.all():
        raise DataError(
            f"`{times.name}`, by which rows are split, must hold numbers or dates written year first, such as "
            f"2024-01-31 or 2024-01-31 12:00. Received: {times.filter(~is_date)[0]!r}."
        )
    # A text that ends early is the older one, as it should be. These are what makes texts lie in another order.
    parts = times.str.extract_groups(_ISO_TIME).struct.unnest().with_columns(length=times.str.len_bytes())
    parts = parts.drop_nulls("between").with_columns(pl.col("zone").fill_null(""))
    parts = parts.with_columns(pl.when(zone="Z").then("length").otherwise(0))  # of ".5Z" and "Z", the latter is last
    for part, what in {
        "between": "the same sign between date and time",
        "zone": "the same zone",
        "length": "as many characters",
    }.items():
        found = parts[part].unique().sort().to_list()
        if len(found) > 1:
            raise DataError(
                f"`{times.name}`, by which rows are split, must have {what} in every row, since text is compared. "
                f"Received: {', '.join(map(repr, found))}."
            )
    return times
