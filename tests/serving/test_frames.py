"""Frames in, frames out, and the columns of a ranking question."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import polars as pl
import pytest

from tfdlrm.serving import PredictClient
from tfdlrm.serving.frames import frame_columns, frame_like, is_frame, rank_columns

AGES = [31.0, None, 5.0]
CITIES = ["Paris", "", None]
FRAMES = [
    pl.DataFrame({"age": AGES, "city": CITIES, "n": [1, 2, 3]}),
    pd.DataFrame({"age": AGES, "city": CITIES, "n": [1, 2, 3]}, index=[7, 8, 9]),
    pd.DataFrame({"age": pd.array(AGES, "Float32"), "city": pd.array(CITIES, "string"), "n": pd.array([1, 2, 3])}),
    pd.DataFrame({"age": AGES, "city": pd.Categorical(CITIES), "n": [1, 2, 3]}),
]


@pytest.mark.parametrize("frame", FRAMES, ids=["polars", "pandas", "pandas extension types", "categories"])
def test_what_is_missing_is_sent_as_nan_or_empty(frame):
    assert is_frame(frame)
    columns = frame_columns(frame)
    assert columns["age"][0::2] == [31.0, 5.0] and math.isnan(columns["age"][1])
    assert columns["city"] == ["Paris", "", ""]
    assert columns["n"] == [1, 2, 3]


@pytest.mark.parametrize("frame", FRAMES[:2], ids=["polars", "pandas"])
def test_answers_come_as_the_same_kind(frame):
    found = frame_like(frame, {"p": np.float32([[0.1], [0.2], [0.3]]), "two": np.arange(6).reshape(3, 2)})
    assert type(found) is type(frame)
    np.testing.assert_array_equal(found["p"], np.float32([0.1, 0.2, 0.3]))
    assert [list(pair) for pair in found["two"]] == [[0, 1], [2, 3], [4, 5]]
    if isinstance(frame, pd.DataFrame):
        assert found.index.tolist() == [7, 8, 9]


def test_other_things_are_no_frames():
    for value in (None, [1.0], {"a": [1.0]}, np.zeros(3), pl.Series([1.0])):
        assert not is_frame(value)


@pytest.mark.parametrize("library", [pl, pd], ids=["polars", "pandas"])
def test_a_server_is_asked_with_a_frame(server, library):
    frame = library.DataFrame({"x": [1.0, None, 4.0]})
    with PredictClient(server.url, "m") as client:
        found = client.predict_frame(frame, signature_name="two")
        assert type(found) is type(frame) and list(found.columns) == ["twice", "whole"]
        np.testing.assert_array_equal(found["twice"], [2.0, math.nan, 8.0])
        np.testing.assert_array_equal(client.predict(columns=frame), [2.5, math.nan, 4.0])
        assert list(client.predict_frame(frame).columns) == ["probability"]


def test_one_question_and_several():
    columns, alone = rank_columns({"user": "u1", "age": 3.5}, {"item": ["a", "b", "c"]}, None)
    assert alone
    assert {name: array.tolist() for name, array in columns.items()} == {
        "user": ["u1"],
        "age": [3.5],
        "item": [["a", "b", "c"]],
        "mask": [[True, True, True]],
    }
    mask = [[True, True], [True, False]]
    columns, alone = rank_columns({"user": ["u1", "u2"]}, {"item": [["a", "b"], ["c", ""]], "x": np.eye(2)}, mask)
    assert not alone
    assert columns["user"].tolist() == ["u1", "u2"] and columns["mask"].tolist() == mask


@pytest.mark.parametrize(
    ("candidates", "mask", "message"),
    [
        ({}, None, "`candidates` must be columns of one form"),
        ({"a": 1.0}, None, "`candidates` must be columns of one form"),
        ({"a": [1.0], "b": [1.0, 2.0]}, None, "`candidates` must be columns of one form"),
        ({"a": np.zeros((1, 2, 3))}, None, "`candidates` must be columns of one form"),
        ({"a": [1.0]}, [True, False], "`mask` must have the form of a candidate column"),
    ],
)
def test_candidates_that_do_not_fit_together(candidates, mask, message):
    with pytest.raises(ValueError, match=message):
        rank_columns({"user": "u1"}, candidates, mask)
