"""A model of published size with vocabularies, exported, and questions to ask it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.data.vocabulary import Vocabulary, id_dtype
from tfdlrm.export.saved_model import export_model
from tfdlrm.models.build import build
from tfdlrm.spec.config import RunConfig, TableForm
from tfdlrm.spec.derive import encoding_of
from tfdlrm.spec.features import FeatureSpec

Columns = dict[str, npt.NDArray[Any]]
CANDIDATE_SHARE = 4
"""Every fourth category is a candidate's; the others, and all numbers, are the user's and the page's."""


def candidate_columns(spec: FeatureSpec) -> tuple[str, ...]:
    """Return the raw columns that differ between the candidates of a question."""
    return tuple(feature.name for feature in spec.sparse[::CANDIDATE_SHARE])


def with_reserved_rows(spec: FeatureSpec, config: RunConfig) -> FeatureSpec:
    """Return the same features, every table with room for one value beside its reserved rows."""
    codings = encoding_of(config.data).tables
    tables = (
        table.model_copy(update={"vocabulary_size": max(table.vocabulary_size, codings[table.name].first_id + 1)})
        for table in spec.tables
    )
    return spec.model_copy(update={"tables": tuple(tables)})


def random_vocabularies(spec: FeatureSpec, config: RunConfig, rng: np.random.Generator) -> dict[str, Vocabulary]:
    """Return vocabularies that fill the tables: distinct random 32-bit keys, rows in random order."""
    found = {}
    for name, coding in encoding_of(config.data).tables.items():
        rows = spec.table(name).vocabulary_size
        values = max(rows - coding.first_id, 0)
        gaps = rng.integers(1, max(2 * (2**32 // max(values, 1)) - 1, 2), values)
        ids = coding.first_id + rng.permutation(values)
        found[name] = Vocabulary(np.cumsum(gaps, dtype=np.int64), ids.astype(id_dtype(rows)), rows)
    return found


def write_model(base: Path, spec: FeatureSpec, config: RunConfig, seed: int, tables: TableForm = "float32") -> Path:
    """Export an untrained model of Criteo's features, its vocabularies full, and return its version.

    Args:
        base: Folder of the versions.
        spec: Criteo's features.
        config: Its `[model]` is built.
        seed: Of weights and keys.
        tables: How tables are stored.
    """
    vocabularies = random_vocabularies(spec, config, np.random.default_rng(seed))
    encoder = FeatureEncoder(spec, encoding_of(config.data), vocabularies, {})
    model = build(config.model.name, spec, config.model, seed=seed)
    return export_model(
        model,
        encoder,
        base,
        rank_candidates=candidate_columns(spec),
        tables=tables,
        warmup=questions(encoder, 64, seed),
    )


def questions(encoder: FeatureEncoder, rows: int, seed: int) -> Columns:
    """Return raw columns, each `[rows]`: known values, and one in twenty missing or never seen."""
    rng = np.random.default_rng(seed)
    columns: Columns = {}
    for name in encoder.columns.numbers:
        numbers = np.floor(rng.lognormal(2.0, 1.5, rows)).astype(np.float32)
        columns[name] = np.where(rng.random(rows) < 0.05, np.float32(np.nan), numbers)
    for name in encoder.columns.strings:
        keys = encoder.vocabularies[name].keys
        texts = np.array([f"{key:08x}" for key in rng.choice(keys, rows)] if keys.size else [""] * rows, object)
        texts[rng.random(rows) < 0.025] = ""
        texts[rng.random(rows) < 0.025] = "ffffffffffffffff"
        columns[name] = texts
    return columns


def rank_question(columns: Columns, candidates: tuple[str, ...]) -> Columns:
    """Return one ranking question: the first row's columns, and all rows' candidate columns, `[1, N]`."""
    rows = len(next(iter(columns.values())))
    shared = {name: values[:1] for name, values in columns.items() if name not in candidates}
    wide = {name: columns[name][np.newaxis] for name in candidates}
    return {**shared, **wide, "mask": np.ones((1, rows), bool)}


def rest_body(columns: Mapping[str, npt.NDArray[Any]], signature: str) -> bytes:
    """Return a columnar predict request as JSON."""
    inputs = {name: values.tolist() for name, values in columns.items()}
    return json.dumps({"signature_name": signature, "inputs": inputs}).encode()


def grpc_body(columns: Mapping[str, npt.NDArray[Any]], model: str, signature: str) -> bytes:
    """Return a `PredictRequest`, serialized."""
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    for name, values in columns.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
    return bytes(request.SerializeToString())
