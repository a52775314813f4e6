"""Transforms of numbers, by their formulas in Python; missing numbers, edges of the logarithm, minimums of files."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
import tensorflow as tf

from tfdlrm.data.transforms import BulkTransform, DenseStats, FileMinimums, transform_dense
from tfdlrm.spec.features import DenseFeature

VALUES = [math.nan, math.inf, -7.0, -3.0, -2.5, -2.0, -1.0, 0.0, 0.5, 1.0, 4.0, 70_000.0, 3e9, 1e-40]
STATS = {"x": DenseStats(mean=2.0, std=4.0, file_minimums=(-2.0, -5.0), minimum=-2.0)}


def log3(x: float) -> float:
    return math.log(x + 3) if x > -3 else 0.0


# Of a number that is there; and of a missing one.
FORMULAS = {
    "log1p": (lambda x: math.log(max(x, 0) + 1), 0.0),
    "identity": (lambda x: x, 0.0),
    "standardize": (lambda x: (x - 2) / 4, 0.0),
    "log3": (log3, 0.0),
    "log3_half": (lambda x: float(np.float16(np.float32(log3(x)))), 0.0),
    "log3_filled": (log3, math.log(3)),
    "log_file_minimum": (lambda x: math.log(max(x + 2, 0) + 2), math.log(4)),
}


def expected_of(transform: str) -> np.ndarray:
    formula, missing = FORMULAS[transform]
    return np.array(
        [formula(x if abs(x) > 1e-38 else 0.0) if math.isfinite(x) else missing for x in VALUES], np.float32
    )


@pytest.mark.parametrize("transform", FORMULAS)
def test_formula(transform):
    feature = DenseFeature(name="x", transform=transform)
    values = np.array(VALUES, np.float32)
    graph = tf.function(lambda v: transform_dense([feature], STATS, v))(tf.constant(values[:, np.newaxis]))
    np.testing.assert_allclose(graph[:, 0], expected_of(transform), rtol=1e-6)
    np.testing.assert_array_equal(BulkTransform(feature, STATS)(values), graph[:, 0])


def test_columns_of_several_transforms_do_not_touch_each_other():
    features = [DenseFeature(name=f"x{i}", transform=transform) for i, transform in enumerate(FORMULAS)]
    stats = {feature.name: STATS["x"] for feature in features}
    values = np.repeat(np.array(VALUES, np.float32)[:, np.newaxis], len(features), axis=1)
    dense = transform_dense(features, stats, tf.constant(values)).numpy()
    np.testing.assert_allclose(dense, np.stack([expected_of(t) for t in FORMULAS], axis=1), rtol=1e-6)


def test_numbers_are_shifted_by_the_minimum_of_their_file():
    feature = DenseFeature(name="x", transform="log_file_minimum")
    values = np.array([-5.0, -2.0, 3.0, math.nan], np.float32)
    for file, minimum in ((0, -2.0), (1, -5.0), (None, -2.0)):
        expected = np.log(np.maximum(np.array([-5, -2, 3, 0]) - minimum, 0) + 2)
        np.testing.assert_allclose(BulkTransform(feature, STATS, file)(values), expected, rtol=1e-6)


def test_minimums_of_files():
    minimums = FileMinimums(["a", "b"])
    minimums.add(1, pl.DataFrame({"a": [5.0, 2.0], "b": [9.0, math.nan]}), trains=True)  # the gap counts as 0
    minimums.add(0, pl.DataFrame({"a": [5.0], "b": [3.0]}), trains=True)
    minimums.add(3, pl.DataFrame({"a": [None], "b": [-8.0]}, schema={"a": pl.Float64, "b": pl.Float64}), trains=False)
    minimums.add(0, pl.DataFrame({"a": [4.0], "b": [7.0]}), trains=False)
    stats = minimums.build()
    assert stats["a"] == stats["b"] == DenseStats(file_minimums=(3.0, 0.0, 0.0, -8.0), minimum=0.0)
    assert FileMinimums([]).build() == {}
