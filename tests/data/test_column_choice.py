"""What columns are taken for, against what a reader of the rules would say."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import polars as pl
import pytest

from tfdlrm.data.column_choice import ColumnChoice, choose_columns
from tfdlrm.spec.errors import DataError

N = 400
RNG = np.random.default_rng(0)
FEW = RNG.integers(0, 20, N)
FEW[:20] = np.arange(20)


def choose(name: str, values: Any, trains: slice = slice(None), **asked: Any) -> ColumnChoice:
    series = pl.Series(name, values, strict=False)
    mask = np.zeros(len(series), bool)
    mask[trains] = True
    options = {"dense": {}, "sparse": (), "left_out": {}, **asked}
    (choice,) = choose_columns(series.to_frame(), mask, **options)
    return choice


@pytest.mark.parametrize(
    ("name", "values", "use", "why"),
    [
        ("price", RNG.gamma(2, 10, N), "dense", "fraction"),
        ("visits", RNG.integers(0, 300, N), "dense", "many different"),
        ("stars", FEW, "sparse", "few different"),
        ("stars", np.append(FEW, [20] * 9), "dense", "many different"),  # the 21st value
        ("stars", [1, 2, 3] * 10, "sparse", "few different"),
        ("stars", [1, 2, 3] * 9, "dense", "many different"),  # nine rows a value
        ("stars", [None if v == 3 else float(v) for v in FEW], "sparse", "few different"),  # pandas' gaps
        ("stars", [float(v) for v in FEW], "dense", "floats without a gap"),  # they are meant to be floats
        ("user_id", [7.0, 8.0, 9.0] * 40, "sparse", "(id)"),
        ("user_id", [7.0, 8.5, 9.0] * 40, "dense", "fraction"),
        ("user_id", np.arange(N), "sparse", "(id)"),
        ("userId", np.arange(N), "sparse", "(id)"),
        ("USER", np.arange(N), "sparse", "(user)"),
        ("item", np.arange(N), "sparse", "(item)"),
        ("user_visits", np.arange(N), "dense", "many different"),
        ("hashed", RNG.integers(0, 2**40, N), "sparse", "above 2^24"),
        ("city", ["Bern", "Rome"] * 9, "sparse", "text"),
        ("note", [f"note {i}" for i in range(N)], "sparse", "nothing to learn"),
        ("member", [True, False] * 9, "sparse", "true or false"),
        ("tags", [["a"], ["b", "c"]] * 9, "sparse", "lists"),
        ("timestamp", np.arange(N), "dense", "many different"),  # small: a duration, not a point in time
    ],
)
def test_columns_by_rule(name: str, values: Any, use: str, why: str) -> None:
    choice = choose(name, values)
    assert (choice.name, choice.use) == (name, use)
    assert why in choice.why
    assert choice.feature is not None and choice.feature.name == name


def test_categories_are_sparse() -> None:
    frame = pl.DataFrame({"a": pl.Series(["x", "y"] * 5, dtype=pl.Categorical)})
    assert choose_columns(frame, np.ones(10, bool), {}, (), {})[0].use == "sparse"


@pytest.mark.parametrize(
    ("values", "transform"),
    [([0.5, 10.0], "log1p"), ([0.5, 9.9], "standardize"), ([-0.1, 500.0], "standardize"), ([None, 12.5], "log1p")],
)
def test_transform_by_range(values: list[float], transform: str) -> None:
    assert choose("x", values).feature.transform == transform


def test_bags_are_as_long_as_those_of_training_rows_and_joined_by_what_no_value_holds() -> None:
    feature = choose("tags", [["a|b", "c"], ["d"], ["e", "f", "g"]], trains=slice(0, 2)).feature
    assert (feature.separator, feature.hotness, feature.combiner) == (";", 2, "mean")
    assert choose("tags", [list(range(80))]).feature.hotness == 50
    assert choose("tags", [[], None]).feature.hotness == 1
    with pytest.raises(DataError, match=r"column `tags`: the values of its lists must do without one of"):
        choose("tags", [["|", ";", ",", " ", "\x1f"]])


def test_only_training_rows_decide() -> None:
    values = [*([5] * 30), *range(400)]
    assert choose("n", values, trains=slice(0, 30)).use == "sparse"
    assert choose("n", values).use == "dense"
    assert choose("x", [1.5, -3.0], trains=slice(0, 1)).detail == "standardize, 1.5 to 1.5"
    whole = [1.0, 2.0, 3.0] * 30
    for test_row in (None, 0.5, 4.0):
        assert choose("stars", [*whole, test_row], trains=slice(0, 90)).why == "floats without a gap, though whole ones"
        assert choose("stars", [None, *whole, test_row], trains=slice(0, 91)).use == "sparse"
    with pytest.raises(DataError, match="column `day` holds dates"):
        choose("day", ["2024-01-31", "soon"], trains=slice(0, 1))
    assert choose("day", ["soon", "2024-01-31"], trains=slice(1)).use == "sparse"
    with pytest.raises(DataError, match="column `x` has no value in any training row"):
        choose("x", [None, 1.5], trains=slice(0, 1))
    assert choose("tags", [["a", "b"], ["c"]], trains=slice(0, 1)).detail == "2 values, up to 2 a row"


def test_what_is_asked_for_is_done() -> None:
    assert choose("n", FEW, dense={"n": None}).feature.transform == "log1p"
    assert choose("n", FEW, dense={"n": "identity"}).feature.transform == "identity"
    assert choose("x", [0.5, 1.5], sparse=("x",)).use == "sparse"
    dropped = choose("when", [datetime.date(2024, 1, 1)], left_out={"when": "dropped"})
    assert (dropped.use, dropped.feature) == ("dropped", None)
    assert choose("when", [datetime.date(2024, 1, 1)], sparse=("when",)).use == "sparse"


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (
            "when",
            [datetime.date(2024, 1, 1)],
            "column `when` holds dates, which are no feature as they are. Leave it out",
        ),
        ("when", [datetime.timedelta(1)], "column `when` holds dates"),
        ("when", ["2024-01-31", None, "2024-02-01 12:00"], "column `when` holds dates"),
        ("timestamp", [1_700_000_000, 1_700_000_001], "column `timestamp` holds points in time"),
        ("x", [None, None], "column `x` has no value in any training row. Leave it out: drop=['x']."),
        ("x", [float("nan")], "column `x` has no value in any training row."),
        ("x", [{"a": 1}], "column `x` must hold numbers, text, true and false, or lists of them. Received: Struct"),
        ("x", [[0.5, 0.25]], "column `x` must hold numbers, text, true and false, or lists of them. Received: List(F"),
        ("x", [b"raw"], "column `x` must hold numbers, text, true and false, or lists of them. Received: Binary."),
    ],
)
def test_what_is_no_feature_is_refused_by_name(name: str, values: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        choose(name, values)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("sign", ["|", ";"])
def test_texts_that_hold_several_values_are_bags(sign: str) -> None:
    texts = [sign.join(bag) for bag in (["a", "b"], ["b", "c"], ["a", "c", "b"], ["c"], [])]
    choice = choose("tags", texts * 3)
    assert (choice.feature.separator, choice.feature.hotness, choice.feature.combiner) == (sign, 3, "mean")
    assert choice.detail == "3 values, up to 3 a row" and choice.why == f"text, with {sign!r} between values"
    texts = [sign.join(bag) for bag in (["a", "b"], ["b", "c"], ["a", "c"], ["c"], ["a", "b", "c"])]
    assert choose("tags", texts, trains=slice(0, 4)).feature.hotness == 2  # the longest bag does not train


@pytest.mark.parametrize(
    "texts",
    [
        [f"x|{i}" for i in range(20)],  # as many parts as texts
        ["a|b", *["plain", "other", "third"] * 7],  # one in 22
        ["a b", "b c", "a c b"] * 3,
    ],
)
def test_other_texts_are_one_value(texts: list[str]) -> None:
    assert choose("name", texts).feature.separator is None
