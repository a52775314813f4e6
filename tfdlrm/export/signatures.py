"""The signatures of a served model: raw columns, serialized examples, questions with candidates, encoded ids.

AutoGraph is off in all of them: it has nothing to convert, and looking for it takes most of the time of an export.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.export.examples_signatures import examples_signatures
from tfdlrm.export.input_names import input_names
from tfdlrm.export.ranking import RANK, ranking_signature
from tfdlrm.models.probability import probability_function
from tfdlrm.spec.coding import NO_ROW
from tfdlrm.spec.errors import SpecError
from tfdlrm.spec.features import FeatureSpec

RAW = "serving_default"
IDS = "serve_ids"
OUTPUT = "probability"

Batch = Mapping[str, tf.Tensor]
Score = Callable[[Batch], tf.Tensor]


def signatures(
    model: keras.Model,
    encoder: FeatureEncoder | None,
    oov_rows: Mapping[str, int],
    logit_shift: float = 0.0,
    rank_candidates: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the traced functions by signature name, for any number of rows from 0 on.

    `serving_default` and `serve_ids` give `probability`, float32 `[B, 1]`; the others are those of
    `examples_signatures` and, where there are candidates, of `ranking_signature`.
    `serving_default` takes one `[B]` input for each raw column: float32 numbers with NaN where missing, strings with
    `""` where missing. Its inputs are named by `input_names`, for `rename_inputs` to rename once written.
    `serve_ids` takes `dense`, float32 `[B, n_dense]`, unless the model has none, `sparse`, int64 `[B, n_ids]`, and
    `weights`, float32 `[B, n_ids]`, where the spec has weighted features. -1 pads a bag; any other id outside
    its table is read as the table's out-of-vocabulary row.

    Args:
        model: Maps a batch to probabilities `[B, 1]`.
        encoder: Maps raw columns to a batch; without one there is `serve_ids` only.
        oov_rows: Row of each table that stands for ids outside it.
        logit_shift: Added to the model's log-odds. Defaults to 0.
        rank_candidates: Raw columns that differ by candidate. Without any there is no `rank`.

    Raises:
        SpecError: there is no such raw column, or it can be no input.
    """
    score = _score_function(model, logit_shift)
    functions = {IDS: _on_ids(model.spec, score, oov_rows)}
    if encoder is not None:
        columns = encoder.raw_signature()

        # Traced once: all signatures on rows of raw values call it.
        @tf.function(input_signature=[columns], autograph=False)
        def score_raw(raw: Batch) -> tf.Tensor:
            return score(encoder.encode(raw))

        functions |= {RAW: _on_columns(columns, score_raw), **examples_signatures(columns, score_raw)}
        if rank_candidates:
            functions[RANK] = ranking_signature(encoder, rank_candidates, score)
    return functions


def out_of_vocabulary_rows(spec: FeatureSpec, rows: Mapping[str, int]) -> dict[str, int]:
    """Return the row of each table, in spec order.

    Raises:
        SpecError: `rows` does not hold exactly the tables of the spec, or a row is outside its table.
    """
    names = [table.name for table in spec.tables]
    if set(rows) != set(names):
        raise SpecError(f"`oov_rows` must hold the tables {names}. Received: {sorted(rows)}.")
    for table in spec.tables:
        if not (rows[table.name] == NO_ROW or 0 <= rows[table.name] < table.vocabulary_size):
            raise SpecError(
                f"`oov_rows` of table `{table.name}` must lie in [0, {table.vocabulary_size}), or be -1 for zeros. "
                f"Received: {rows[table.name]}."
            )
    return {name: rows[name] for name in names}


def batch_signature(spec: FeatureSpec, id_type: tf.DType) -> dict[str, tf.TensorSpec]:
    """Return the inputs of a model, by name."""
    columns = {"sparse": tf.TensorSpec([None, spec.n_ids], id_type, "sparse")}
    if spec.n_dense:
        columns["dense"] = tf.TensorSpec([None, spec.n_dense], tf.float32, "dense")
    if spec.has_weights:
        columns["weights"] = tf.TensorSpec([None, spec.n_ids], tf.float32, "weights")
    return columns


def _score_function(model: keras.Model, logit_shift: float) -> Score:
    """Return the model as one traced function, so that its constants are in the SavedModel once."""
    columns = batch_signature(model.spec, tf.as_dtype(model.spec.id_dtype))
    probability = probability_function(model, logit_shift)

    @tf.function(input_signature=[columns], autograph=False)
    def score(batch: Batch) -> tf.Tensor:
        return tf.ensure_shape(probability(batch), [None, 1])

    return lambda batch: score({name: batch[name] for name in columns})


def _on_ids(spec: FeatureSpec, score: Score, oov_rows: Mapping[str, int]) -> Any:
    tables = [(table, feature.hotness) for feature in spec.sparse for table in [spec.table_of(feature)]]
    rows = [table.vocabulary_size for table, hotness in tables for _ in range(hotness)]
    unseen = [oov_rows[table.name] for table, hotness in tables for _ in range(hotness)]

    @tf.function(autograph=False)
    def serve_ids(**batch: tf.Tensor) -> dict[str, tf.Tensor]:
        # Compared as int64, so that no id wraps around into the table.
        ids = batch["sparse"]
        known = tf.logical_and(ids >= -1, ids < tf.constant(rows, tf.int64))
        ids = tf.cast(tf.where(known, ids, tf.constant(unseen, tf.int64)), tf.as_dtype(spec.id_dtype))
        return {OUTPUT: score({**batch, "sparse": ids})}

    return serve_ids.get_concrete_function(**batch_signature(spec, tf.int64))


def _on_columns(columns: Mapping[str, tf.TensorSpec], score_raw: Score) -> Any:
    names = input_names(columns)

    @tf.function(autograph=False)
    def serve_columns(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {OUTPUT: score_raw({column: inputs[name] for column, name in names.items()})}

    return serve_columns.get_concrete_function(
        **{names[column]: tf.TensorSpec(spec.shape, spec.dtype, names[column]) for column, spec in columns.items()}
    )
