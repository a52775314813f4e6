"""The signature `rank`: what is asked about is sent and encoded once, and each of its candidates beside it.

A row a candidate would repeat the user, the page and the hour 512 times for 512 candidates, and key and look up the
same strings as often. Here they are encoded once, and what is repeated is their ids.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.export.input_names import input_names
from tfdlrm.spec.coding import Encoding
from tfdlrm.spec.errors import SpecError, did_you_mean
from tfdlrm.spec.features import FeatureSpec

RANK = "rank"
MASK = "mask"


def refuse_no_columns(candidates: Sequence[str], columns: Collection[str], encoding: Encoding) -> None:
    """Raise unless these raw columns can be those of candidates.

    Args:
        candidates: Names of the raw columns that differ by candidate.
        columns: All raw columns of the model.
        encoding: Says which columns hold the weights of which bags.

    Raises:
        SpecError: there is no such column, one is named twice, a bag is named without its weights or they without it,
            or a raw column is called like the mask.
    """
    if len(set(candidates)) < len(candidates):
        raise SpecError(f"`rank_candidates` must name each raw column once. Received: {list(candidates)}.")
    for name in candidates:
        if name not in columns:
            near = did_you_mean(name, columns)
            raise SpecError(f"`rank_candidates` must name raw columns of the model. Received: `{name}`.{near}")
    for feature, coding in encoding.features.items():
        pair = [coding.source, coding.weights]
        named = [name for name in pair if name in candidates]
        if coding.weights is not None and len(named) == 1:
            raise SpecError(
                f"`rank_candidates` must name `{coding.source}` and its weights `{coding.weights}`, which feature "
                f"`{feature}` reads together, both or neither: there is a weight for each value. "
                f"Received: `{named[0]}`."
            )
    if candidates and MASK in columns:
        raise SpecError(f"raw columns must not be called `{MASK}`, an input of `{RANK}`, where there are candidates.")


def ranking_names(columns: Collection[str]) -> dict[str, str]:
    """Return the name to trace each input with, by raw column or `mask`; see `input_names`."""
    return input_names([*columns, MASK])


def ranking_signature(
    encoder: FeatureEncoder, candidates: Sequence[str], score: Callable[[Mapping[str, tf.Tensor]], tf.Tensor]
) -> Any:
    """Return the traced function that scores N candidates of each of Q questions, for any Q and N from 0 on.

    It takes raw columns as `serving_default` does, those of candidates `[Q, N]`, the others `[Q]`, and `mask`, bool
    `[Q, N]`: which candidates there are. It gives `scores`, float32 `[Q, N]`, the probabilities that `serving_default`
    answers on the same values row by row, 0 where there is no candidate; and `order`, int32 `[Q, N]`: the candidates'
    places from the best to the worst, equal ones as they came, and then the places without a candidate. What a column
    holds at such a place is never read.

    A feature that reads columns of candidates is encoded for each candidate, all others once for each question.

    Args:
        encoder: Maps raw columns to a batch.
        candidates: Raw columns that differ by candidate; at least one.
        score: Maps a batch to probabilities `[B, 1]`.

    Raises:
        SpecError: there is no such raw column, it can be no input, or a bag is named without its weights.
    """
    columns = encoder.raw_signature()
    refuse_no_columns(candidates, columns, encoder.encoding)
    names = ranking_names(columns)
    shared, own = _parts(encoder.spec, encoder.encoding, candidates)
    shared_columns = {} if shared is None else encoder.raw_signature(shared)
    own_columns = encoder.raw_signature(own)

    @tf.function(autograph=False)
    def rank(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.control_dependencies([_one_shape(inputs[names[MASK]], {c: inputs[names[c]] for c in columns})]):
            mask = tf.identity(inputs[names[MASK]])
            raw = {column: tf.identity(inputs[names[column]]) for column in columns}
        # What is no candidate counts as missing: anything may stand there, and some of it would be refused.
        of_candidates = {
            column: tf.reshape(_present(mask, raw[column], column in candidates), [-1]) for column in own_columns
        }
        parts = [_Part(own, encoder.encode_part(of_candidates, own))]
        if shared is not None:
            encoded = encoder.encode_part({column: raw[column] for column in shared_columns}, shared)
            each = tf.shape(mask)[1]
            parts.insert(0, _Part(shared, {name: tf.repeat(rows, each, axis=0) for name, rows in encoded.items()}))
        scores = tf.where(mask, tf.reshape(score(_joined(encoder.spec, parts)), tf.shape(mask)), 0.0)
        order = tf.argsort(tf.where(mask, scores, -1.0), direction="DESCENDING", stable=True)
        return {"scores": scores, "order": order}

    shapes = {column: [None, None] if column in candidates else [None] for column in columns}
    return rank.get_concrete_function(
        **{names[c]: tf.TensorSpec(shapes[c], spec.dtype, names[c]) for c, spec in columns.items()},
        **{names[MASK]: tf.TensorSpec([None, None], tf.bool, names[MASK])},
    )


class _Part(NamedTuple):
    """Some of the features.

    Attributes:
        spec: The features.
        batch: What they are encoded to, a row a candidate.
    """

    spec: FeatureSpec
    batch: Mapping[str, tf.Tensor]


def _parts(
    spec: FeatureSpec, encoding: Encoding, candidates: Collection[str]
) -> tuple[FeatureSpec | None, FeatureSpec]:
    """Return the features that read shared columns alone, `None` without any, and those that read a candidate's."""
    read = {name: {name} for name in spec.dense_names}
    read |= {name: {c.source, *([c.weights] if c.weights else [])} for name, c in encoding.features.items()}
    own = {name for name, sources in read.items() if not sources.isdisjoint(candidates)}
    shared = set(read) - own
    return (_only(spec, shared) if shared else None), _only(spec, own)


def _only(spec: FeatureSpec, names: Collection[str]) -> FeatureSpec:
    sparse = tuple(feature for feature in spec.sparse if feature.name in names)
    read = {feature.table for feature in sparse}
    return FeatureSpec(
        dense=tuple(feature for feature in spec.dense if feature.name in names),
        sparse=sparse,
        tables=tuple(table for table in spec.tables if table.name in read),
    )


def _one_shape(mask: tf.Tensor, raw: Mapping[str, tf.Tensor]) -> tf.Operation:
    shape = tf.shape(mask)
    agrees = [tf.reduce_all(tf.equal(tf.shape(values), shape[: values.shape.rank])) for values in raw.values()]
    message = "shared columns must have the shape [Q], those of candidates the shape [Q, N] of `mask`, which is"
    return tf.debugging.Assert(tf.reduce_all(agrees), [message, shape])


def _present(mask: tf.Tensor, values: tf.Tensor, by_candidate: bool) -> tf.Tensor:
    missing = tf.constant("" if values.dtype == tf.string else np.nan, values.dtype)
    return tf.where(mask, values if by_candidate else values[:, tf.newaxis], missing)


def _joined(spec: FeatureSpec, parts: Sequence[_Part]) -> dict[str, tf.Tensor]:
    """Return the batch of all features, columns in the order of `spec`."""
    dense = {name: place for place, name in enumerate(name for part in parts for name in part.spec.dense_names)}
    starts = np.cumsum([0, *(part.spec.n_ids for part in parts)])
    columns = {
        name: range(start + first, start + last)
        for part, start in zip(parts, starts, strict=False)
        for name, (first, last) in part.spec.id_columns.items()
    }
    id_order = [column for name in spec.sparse_names for column in columns[name]]
    batch = {
        "dense": _reordered([part.batch["dense"] for part in parts], [dense[name] for name in spec.dense_names]),
        "sparse": _reordered([part.batch["sparse"] for part in parts], id_order),
    }
    if spec.has_weights:
        ones = [tf.ones(tf.shape(part.batch["sparse"])) for part in parts]
        weights = [part.batch.get("weights", one) for part, one in zip(parts, ones, strict=True)]
        batch["weights"] = _reordered(weights, id_order)
    return batch


def _reordered(parts: Sequence[tf.Tensor], order: Sequence[int]) -> tf.Tensor:
    joined = tf.concat(parts, axis=1)
    return joined if list(order) == sorted(order) else tf.gather(joined, list(order), axis=1)
