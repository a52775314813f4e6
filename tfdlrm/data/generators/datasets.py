"""Generated rows as `tf.data.Dataset`s of the batch contract, for `model.fit` and for timing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from tfdlrm.data.dataset import PREFETCH_BATCHES
from tfdlrm.data.generators.laws import IdLaw, RowLaw, Rows
from tfdlrm.data.generators.random_rows import RandomRows
from tfdlrm.data.generators.stack_distances import StackDistances
from tfdlrm.data.generators.trace import Mode
from tfdlrm.data.generators.trace_rows import TraceRows
from tfdlrm.data.input_options import input_options
from tfdlrm.data.packed import packed_columns
from tfdlrm.spec.errors import ConfigError
from tfdlrm.spec.features import FeatureSpec

_PARALLEL_BATCHES = 2


def random_dataset(
    spec: FeatureSpec,
    batch_size: int,
    *,
    steps: int | None = None,
    ids: IdLaw | None = None,
    law: RowLaw | None = None,
    seed: int = 0,
    split: str = "train",
) -> tf.data.Dataset:
    """Return random batches; every pass over the dataset yields the same ones.

    Args:
        spec: The features.
        batch_size: Rows a batch, at least 1.
        steps: Batches; `None` never ends. Defaults to `None`.
        ids: Law of the ids. Defaults to uniform.
        law: Law of bags, dense numbers and labels.
        seed: Seed, at least 0.
        split: Rows of another split are other rows.

    Returns:
        A dataset of `({"dense": float32 [B, n_dense], "sparse": int32|int64 [B, n_ids]}, label float32 [B, 1])`, with
        `"weights"` float32 `[B, n_ids]` where a feature is weighted. B is static, the cardinality known.

    Raises:
        ConfigError: a number is out of its range.

    Example:
        ```python
        model.fit(random_dataset(spec, 2048, steps=100, ids=IdLaw(kind="powerlaw")))
        ```
    """
    _check_sizes(batch_size, steps)
    rows = RandomRows(spec, ids, law, seed, split)
    types = _types(spec, batch_size)

    def make(number: tf.Tensor) -> tuple[Any, ...]:
        def draw(number: Any) -> list[Any]:
            drawn = rows.batch(int(number), batch_size)
            return [drawn[name] for name in types]

        columns = tf.numpy_function(draw, [number], [own.dtype for own in types.values()], stateful=False)
        return _as_batch({name: tf.ensure_shape(x, types[name].shape) for name, x in zip(types, columns, strict=True)})

    numbers = tf.data.Dataset.range(tf.int64.max if steps is None else steps)
    batches = numbers.map(make, num_parallel_calls=_PARALLEL_BATCHES, deterministic=True)
    return _finished(batches, steps).prefetch(PREFETCH_BATCHES)


def trace_dataset(
    spec: FeatureSpec,
    batch_size: int,
    distances: Mapping[str, StackDistances],
    *,
    steps: int | None = None,
    mode: Mode = "lru",
    law: RowLaw | None = None,
    seed: int = 0,
    split: str = "train",
    padding: bool = False,
    warm_start: bool = False,
) -> tf.data.Dataset:
    """Return batches whose ids follow traces, one for each sparse feature.

    The traces live on: a further pass over the dataset yields the batches after those of the last, as an epoch of real
    rows follows another. A dataset made anew starts anew. Nothing is drawn before it is asked for.

    Args:
        spec: The features.
        batch_size: Rows a batch, at least 1.
        distances: Distribution and ids of each sparse feature, by its name.
        steps: Batches of a pass; `None` never ends. Defaults to `None`.
        mode: `"lru"`, `"rand"` or `"paper"`; see `TraceGenerator`.
        law: Law of bags, dense numbers and labels.
        seed: Seed, at least 0.
        split: Rows of another split are other rows.
        padding: Whether new ids are drawn only during warm-up.
        warm_start: Whether traces begin where their warm-up would end.

    Returns:
        A dataset as `random_dataset` returns it.

    Raises:
        ConfigError: a number is out of its range, or `distances` does not have exactly the sparse features.
        DataError: an id is beyond its table.
    """
    _check_sizes(batch_size, steps)
    rows = TraceRows(spec, distances, mode, law, seed, split, padding, warm_start)
    types = _types(spec, batch_size)

    def draw() -> Iterator[tuple[Any, ...]]:
        number = 0
        while steps is None or number < steps:
            yield _as_batch(rows.batch(batch_size))
            number += 1

    return _finished(tf.data.Dataset.from_generator(draw, output_signature=_as_batch(types)), steps)


def _check_sizes(batch_size: int, steps: int | None) -> None:
    if batch_size < 1:
        raise ConfigError(f"`batch_size` must be at least 1. Received: {batch_size}.")
    if steps is not None and steps < 0:
        raise ConfigError(f"`steps` must be at least 0. Received: {steps}.")


def _types(spec: FeatureSpec, batch_size: int) -> dict[str, tf.TensorSpec]:
    columns = packed_columns(spec, sample_weight=False)
    return {c.name: tf.TensorSpec([batch_size, c.width], tf.as_dtype(c.dtype)) for c in columns}


def _as_batch(columns: Mapping[str, Any] | Rows) -> tuple[Any, ...]:
    features = {name: columns[name] for name in ("dense", "sparse", "weights") if name in columns}
    return features, columns["label"]


def _finished(batches: tf.data.Dataset, steps: int | None) -> tf.data.Dataset:
    total = tf.data.INFINITE_CARDINALITY if steps is None else steps
    return batches.apply(tf.data.experimental.assert_cardinality(total)).with_options(input_options())
