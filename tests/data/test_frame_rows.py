"""Labels and splits of tables in memory, and the checks of their texts, against rules said in words."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import polars as pl
import pytest

from tfdlrm.data.frame_rows import frame_splits, refuse_bad_values
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.errors import DataError
from tfdlrm.spec.raw import RawFormat, Split


def by_time(values: Any) -> list[int]:
    """Return the split of four rows of which the first half trains and the second tests, once ordered."""
    split = Split(by="time", fractions=(0.5, 0.0, 0.5))
    data = DataConfig(raw=("a.csv",), format=RawFormat(header=True, time="t"), split=split)
    return frame_splits(pl.DataFrame({"t": values}), data).tolist()


@pytest.mark.parametrize(
    "later_first",
    [
        ["10", "9", "8", "11"],
        ["1e3", "9.5", "8", "1e4"],
        ["2024-02-01", "2024-01-31", "2023-12-31", "2024-03-01"],
        ["2024-02-01 12:00", "2024-01-31", "2023-12-31 23:59", "2024-02-01 12:00:01"],
        ["2024-02-01T12:00:00.5Z", "2024-01-31T12:00:00.0Z", "2023-02-01T12:00:00.0Z", "2024-02-01T12:00:00.6Z"],
        [datetime.timedelta(days=d) for d in (100, 9, 8, 101)],
        pl.Series(["b", "a", "a", "b"]).replace({"a": "9", "b": "10"}).cast(pl.Categorical),
    ],
)
def test_times_are_put_in_order(later_first: Any) -> None:
    assert by_time(later_first) == [2, 0, 0, 2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            ["12/31/2023", "01/02/2024"] * 2,
            "`t`, by which rows are split, must hold numbers or dates written year first, such as 2024-01-31 or "
            "2024-01-31 12:00. Received: '12/31/2023'.",
        ),
        (["2024-01-31", "3"] * 2, "`t`, by which rows are split, must hold numbers or dates written year first"),
        (["nan", "3"] * 2, "`t`, by which rows are split, must hold numbers or dates written year first"),
        (["2024-01-31", ""] * 2, "`t`, by which rows are split, must be there in every row. Received: 2 rows without"),
        (
            ["2024-01-31 10:00", "2024-01-31T09:00"] * 2,
            "`t`, by which rows are split, must have the same sign between date and time in every row, since text is "
            "compared. Received: ' ', 'T'.",
        ),
        (
            ["2024-10-27 02:30+02:00", "2024-10-27 02:15+01:00"] * 2,
            "`t`, by which rows are split, must have the same zone in every row",
        ),
        (
            ["2024-01-31T10:00:00Z", "2024-01-31T10:00:00.5Z"] * 2,
            "`t`, by which rows are split, must have as many characters in every row",
        ),
        ([[1], [2]] * 2, "`t`, by which rows are split, must hold numbers, dates or text of them. Received: List(Int"),
    ],
)
def test_times_without_an_order_are_refused(values: list[Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        by_time(values)
    assert str(caught.value).startswith(message)


def test_texts_that_files_would_refuse() -> None:
    raw = pl.DataFrame({"n": [1.0, np.nan], "c": ["0a", ""], "bag": ["a|0b", ""], "w": ["1|.5", ""]})
    refuse_bad_values(raw, {"c": None, "bag": "|"}, {"w": ("bag", "|")})
    for column, values, message in (
        ("c", ["0a", "Bern"], "`c` must be up to 16 hexadecimal digits. Received: 'Bern' in row 1, counted from 0. Ot"),
        ("bag", ["a|what", ""], "`bag` must be up to 16 hexadecimal digits. Received: 'a|what' in row 0, counted from"),
        ("w", ["1", ""], "`w` must hold a finite number for each value of `bag`. Received: '1' in row 0, counted from"),
        ("w", ["1|inf", ""], "`w` must hold a finite number for each value of `bag`. Received: '1|inf' in row 0, coun"),
    ):
        with pytest.raises(DataError) as caught:
            refuse_bad_values(raw.with_columns(pl.Series(column, values)), {"c": None, "bag": "|"}, {"w": ("bag", "|")})
        assert str(caught.value).startswith(message)
