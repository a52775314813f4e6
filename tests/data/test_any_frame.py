"""Tables of pandas, Polars and Arrow as the same raw values; what is none of them is refused by name."""

from __future__ import annotations

import datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from tfdlrm.data.any_frame import polars_frame, raw_frame, text_values
from tfdlrm.spec.errors import DataError

ROWS: dict[str, list[Any]] = {
    "price": [1.5, None, 3.0],
    "user": [7, None, 2**40],
    "member": [True, False, None],
    "city": ["Bern", None, 'Łódź, the "old"'],
    "tags": [["a", "b"], None, []],
    "sizes": [[1, 2], [3], None],
}
COLUMNS = SimpleNamespace(numbers=("price",), strings=("user", "member", "city", "tags", "sizes"))
EXPECTED = [
    (1.5, "7", "true", "Bern", "a|b", "1|2"),
    (None, "", "false", "", "", "3"),
    (3.0, "1099511627776", "", 'Łódź, the "old"', "", ""),
]


def tables() -> dict[str, Any]:
    nullable = {"user": "Int64", "member": "boolean", "city": "string"}
    return {
        "polars": pl.DataFrame(ROWS),
        "lazy": pl.LazyFrame(ROWS),
        "arrow": pa.table(ROWS),
        "pandas": pd.DataFrame(ROWS),  # users and members with gaps are floats and objects there
        "pandas nullable": pd.DataFrame(ROWS).astype(nullable),
        "pandas arrays": pd.DataFrame({**ROWS, "tags": [np.array(["a", "b"]), None, ()]}),
        "pandas categories": pd.DataFrame(ROWS).astype({"city": "category", "user": "category"}),
        "polars categories": pl.DataFrame(ROWS).with_columns(pl.col("city").cast(pl.Categorical)),
        "arrow dictionary": pa.table({**ROWS, "city": pa.array(ROWS["city"]).dictionary_encode()}),
    }


@pytest.mark.parametrize("kind", tables())
def test_all_kinds_of_tables_are_the_same_raw_values(kind: str) -> None:
    raw = raw_frame(polars_frame(tables()[kind]), COLUMNS, {"tags": "|", "sizes": "|"})
    assert raw.with_columns(pl.col("price").fill_nan(None)).rows() == EXPECTED
    assert raw.schema["price"] == pl.Float64


def test_an_index_is_left_aside() -> None:
    frame = pd.DataFrame({"a": [1, 2]}, index=["x", "y"])
    assert polars_frame(frame).to_dict(as_series=False) == {"a": [1, 2]}


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_of_any_unit(unit: str) -> None:
    times = pd.Series(["2024-10-27 01:15", None], dtype=f"datetime64[{unit}]")
    frame = polars_frame(pd.DataFrame({"t": times, "d": times - times.min() + pd.Timedelta(1, "h").as_unit(unit)}))
    assert frame.rows() == [(datetime.datetime(2024, 10, 27, 1, 15), datetime.timedelta(hours=1)), (None, None)]


def test_times_with_a_zone_are_told_in_utc() -> None:
    hours = pd.to_datetime(["2024-10-27 00:30", "2024-10-27 01:15"]).tz_localize("UTC").tz_convert("Europe/Zurich")
    texts = text_values(polars_frame(pd.DataFrame({"t": hours}))["t"]).to_list()
    assert texts == ["2024-10-27 00:30:00.000000+00:00", "2024-10-27 01:15:00.000000+00:00"]


def test_lists_of_pandas() -> None:
    lists = {"gaps": [["a", np.nan], [pd.NA, pd.NaT]], "mixed": [[1], [2.5]], "arrays": [np.array([1.0, np.nan]), (2,)]}
    frame = polars_frame(pd.DataFrame(lists))
    assert frame.rows() == [(["a"], [1.0], [1.0]), ([], [2.5], [2.0])]


def test_numbers_as_text() -> None:
    values = pl.Series("x", [2.0, 2.5, -3.0, float("nan"), None, 1e300])
    assert text_values(values).to_list() == ["2", "2.5", "-3", "", "", "1e+300"]
    assert text_values(pl.Series("x", [[1.0, None, 0.5]]), ";").to_list() == ["1;0.5"]
    fixed = pl.Series("x", [[1, 2]], dtype=pl.Array(pl.Int64, 2))
    assert text_values(fixed, ";").to_list() == ["1;2"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([1, 2], "`df` must be a DataFrame of pandas or Polars, or an Arrow table. Received: builtins.list."),
        (pd.DataFrame([[1, 2]]), "column names of `df` must be text. Received: 0, of type int."),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "column names of `df` must be unique. Received twice: 'a'."),
        (pa.table([[1], [2]], names=["a", "a"]), "column names of `df` must be unique. Received twice: 'a'."),
        (pd.DataFrame({"a": ["x", 1]}), "column `a` must hold values of one kind. Received: int, str."),
        (
            pd.DataFrame({"a": [["x"], [1]]}),
            "column `a` must hold lists of one kind of values. Received: int, str.",
        ),
        (pd.DataFrame({"a": [["x"], "y"]}), "column `a` must hold values of one kind. Received: list, str."),
    ],
)
def test_what_is_no_table_is_refused(table: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        polars_frame(table)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"x": [1.0, float("inf")]}, "column `x` must hold finite numbers. Received: an infinite one."),
        ({"x": [1e39]}, "column `x` must hold finite numbers. Received: an infinite one."),  # in float32
        ({"x": ["a"]}, "column `x` must hold numbers. Received: String."),
        ({"ex": [1]}, "`df` must have the column `x`."),
    ],
)
def test_what_is_no_number_is_refused(values: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(DataError) as caught:
        raw_frame(pl.DataFrame(values), SimpleNamespace(numbers=("x",), strings=()), {})
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("values", "separator", "message"),
    [
        ([["a|b"]], "|", "column `x` must hold no '|' in its values: it joins those of a row."),
        ([["a"]], None, "column `x` must hold one value a row. Received: List(String)."),
        ([{"a": 1}], None, "column `x` must hold text, numbers, true and false, or lists of them. Received: Struct"),
    ],
)
def test_what_is_no_text_is_refused(values: list[Any], separator: str | None, message: str) -> None:
    with pytest.raises(DataError) as caught:
        text_values(pl.Series("x", values), separator)
    assert str(caught.value).startswith(message)
