"""Held-out rows that an exported version is asked about, in every form in which it is asked, with the right answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras as keras

from tfdlrm.data.dataset import packed_dataset
from tfdlrm.export.quantized import quantized_tables
from tfdlrm.export.serving_rows import serving_rows
from tfdlrm.models.probability import probability_function
from tfdlrm.pipelines.held_out import as_columns, held_out_rows
from tfdlrm.pipelines.stages.context import Run
from tfdlrm.spec.errors import DataError

BATCH = 2048
"""Rows per question, and per step of the prediction they are compared with: bfloat16 depends on it."""


@dataclass(frozen=True)
class ServedRows:
    """The rows.

    Attributes:
        split: Where they are from.
        columns: Raw columns as a request holds them.
        arrays: The same as arrays, strings as objects.
        ids: The same encoded: inputs of `serve_ids`.
        labels: 0 or 1, `[n]`.
        weight: Sample weights, `[n]`; `None` where rows have none.
        expected: What the model says of them, float32 `[n]`.
    """

    split: str
    columns: dict[str, list[Any]]
    arrays: dict[str, npt.NDArray[Any]]
    ids: dict[str, npt.NDArray[Any]]
    labels: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32] | None
    expected: npt.NDArray[np.float32]


def served_rows(run: Run, model: keras.Model) -> ServedRows:
    """Return the first `export.verify_rows` held-out rows; training rows where there are no others.

    Raises:
        DataError: raw rows are not what was prepared.
    """
    split = run.held_out() or "train"
    frame = held_out_rows(run, split, run.config.export.verify_rows)
    columns = as_columns(frame, [*run.encoder.columns.numbers, *run.encoder.columns.strings])
    arrays = {n: np.array(v, object if isinstance(v[0], str) else np.float32) for n, v in columns.items()}
    encoded = {name: values.numpy() for name, values in run.encoder.encode(_tensors(arrays)).items()}
    weight = _refuse_skew(run, split, encoded)
    labels = frame["label"].to_numpy().astype(np.float32)
    return ServedRows(split, columns, arrays, _used(run, encoded), labels, weight, _predicted(run, model, encoded))


def _tensors(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, tf.Tensor]:
    return {
        name: tf.constant(values.tolist(), tf.string) if values.dtype == object else tf.constant(values)
        for name, values in arrays.items()
    }


def _refuse_skew(run: Run, split: str, encoded: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[Any] | None:
    """Return the rows' weights; raise unless raw rows, encoded as a server will, are the packed rows, bit for bit.

    Numbers shifted by the minimum of their file are left out: a server knows no file.
    """
    rows = len(encoded["sparse"])
    packed, _, *weight = next(packed_dataset(run.work_dir.data, split, rows, manifest=run.manifest).as_numpy_iterator())
    same = [feature.transform != "log_file_minimum" for feature in run.spec.dense]
    for name, values in encoded.items():
        compared = same if name == "dense" else slice(None)
        if not np.array_equal(values[:, compared], packed[name][:, compared]):
            raise DataError(
                f"{run.work_dir.data}: `{name}` of the first {rows} {split} rows must be what the raw rows encode to. "
                "Received: other values; the raw files have changed, so run the stage `prepare` again."
            )
    return weight[0][:, 0] if weight else None


def _predicted(run: Run, model: keras.Model, encoded: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    score = tf.function(probability_function(model, run.config.logit_shift), reduce_retracing=True, autograph=False)
    # Tables in fewer bytes answer otherwise than the model does, by as much as `export` measured; a version must answer
    # what the model does that reads such tables.
    with serving_rows(model, run.untouched_rows), quantized_tables(model, run.config.export.tables):
        parts = [
            score({name: tf.constant(values[start : start + BATCH]) for name, values in encoded.items()})
            for start in range(0, len(encoded["sparse"]), BATCH)
        ]
    return np.concatenate(parts)[:, 0]


def _used(run: Run, encoded: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Return the inputs of `serve_ids`."""
    unused = () if run.spec.n_dense else ("dense",)
    return {name: array for name, array in encoded.items() if name not in unused} | {
        "sparse": encoded["sparse"].astype(np.int64)
    }
