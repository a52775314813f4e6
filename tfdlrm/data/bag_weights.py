"""Weights of the ids in a bag: numbers joined by the separator of the bag, in a raw column beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import tensorflow as tf

from tfdlrm.data.columns import string_column, string_tensor, transposed
from tfdlrm.data.row_parser import WEIGHT
from tfdlrm.spec.coding import Encoding, FeatureCoding
from tfdlrm.spec.errors import DataError
from tfdlrm.spec.features import FeatureSpec


def batch_weights(spec: FeatureSpec, encoding: Encoding, columns: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Return the weights of a batch, eagerly or in a graph.

    Empty parts are skipped in both columns. A missing bag, whose one id is that of a missing value, has the weight 1;
    what pads a bag has 0; weights beyond the hotness are dropped as the values are.

    Args:
        spec: The features.
        encoding: Their coding.
        columns: The raw columns, `[1, B]`.

    Returns:
        float32 `[B, n_ids]`; 1 for features without weights.

    Raises:
        tf.errors.InvalidArgumentError: a bag has not one finite number for each of its values.
    """
    rows = []
    for feature in spec.sparse:
        coding = encoding.features[feature.name]
        bags = columns[coding.source][0]
        if coding.weights is None:
            rows.append(tf.ones([feature.hotness, tf.size(bags)]))
            continue
        weights = columns[coding.weights][0]
        found, good = _read(coding, feature.hotness, bags, weights)
        bad = tf.argmin(tf.cast(tf.concat([good, [False]], 0), tf.int32))  # where all are good, the one past them
        message = tf.strings.join([_rule(coding), " ", tf.gather(tf.concat([weights, [""]], 0), bad)])
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(good), [message])]):
            rows.append(tf.identity(found))
    return tf.transpose(tf.concat(rows, axis=0))


def frame_weights(spec: FeatureSpec, encoding: Encoding, frame: pl.DataFrame) -> npt.NDArray[np.float32]:
    """Return the weights of the rows of a frame, as `batch_weights` gives them.

    Raises:
        DataError: a column is absent, or a bag has not one finite number for each of its values.
    """
    rows = np.ones((spec.n_ids, frame.height), np.float32)
    for feature in spec.sparse:
        coding = encoding.features[feature.name]
        if coding.weights is None:
            continue
        bags, weights = (string_column(frame, name) for name in (coding.source, coding.weights))
        found, good = _read(coding, feature.hotness, string_tensor(bags), string_tensor(weights))
        if not bool(tf.reduce_all(good)):
            row = int(np.argmin(good.numpy()))
            raise DataError(f"{_rule(coding)} {weights[row]!r} for {bags[row]!r}.")
        start, stop = spec.id_columns[feature.name]
        rows[start:stop] = found.numpy()
    return transposed(rows)


def _rule(coding: FeatureCoding) -> str:
    return f"column `{coding.weights}` must hold a finite number for each value of `{coding.source}`. Received:"


def _read(coding: FeatureCoding, hotness: int, bags: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return weights `[hotness, n]`, and for which rows they are what they must be."""
    values, texts = _parts(bags, coding.separator), _parts(weights, coding.separator)
    is_number = tf.strings.regex_full_match(texts.values, WEIGHT)
    numbers = tf.strings.to_number(tf.where(is_number, texts.values, "nan"), tf.float32)
    all_finite = tf.reduce_all(texts.with_values(tf.math.is_finite(numbers)), axis=1)
    count = values.row_lengths()
    good = tf.logical_and(all_finite, tf.equal(texts.row_lengths(), count))
    padded = tf.transpose(texts.with_values(numbers).to_tensor(0.0, shape=[None, hotness]))
    of_missing = tf.logical_and(tf.equal(count, 0), tf.range(hotness)[:, tf.newaxis] == 0)
    return tf.where(of_missing, 1.0, padded), good


def _parts(strings: tf.Tensor, separator: str | None) -> Any:
    parts = tf.strings.split(strings, separator)
    return tf.ragged.boolean_mask(parts, tf.not_equal(parts, ""))
