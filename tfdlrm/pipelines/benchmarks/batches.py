"""Random samples for benchmarks: in memory, or packed on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tfdlrm.data.generators.laws import IdLaw
from tfdlrm.data.generators.random_rows import RandomRows
from tfdlrm.data.generators.write import Format, write_prepared
from tfdlrm.data.manifest import Manifest
from tfdlrm.spec.errors import ConfigError
from tfdlrm.spec.features import FeatureSpec


def random_batches(
    spec: FeatureSpec, batches: int, batch_size: int, ids: str, seed: int, exponent: float = 1.2
) -> dict[str, np.ndarray]:
    """Return random samples: `dense` `[S, B, n_dense]`, `sparse` `[S, B, n_ids]`, `label` `[S, B, 1]`.

    Args:
        spec: The features; where some are weighted, `weights` `[S, B, n_ids]` come too.
        batches: S.
        batch_size: B.
        ids: `"uniform"`, or `"powerlaw"` with density falling as (id + 1)^-exponent.
        seed: Seed of the draw.
        exponent: Of the power law, above 0. Defaults to 1.2.
    """
    rows = RandomRows(spec, IdLaw(kind=ids, alpha=exponent), seed=seed)
    first = rows.batch(0, batch_size)
    samples = {name: np.empty((batches, *array.shape), array.dtype) for name, array in first.items()}
    for number in range(batches):
        for name, array in (rows.batch(number, batch_size) if number else first).items():
            samples[name][number] = array
    return samples


def scaled(spec: FeatureSpec, table_rows: int) -> FeatureSpec:
    """Return the same features over tables that have `table_rows` rows together, each its share and at least one.

    Raises:
        ConfigError: there are more tables than rows.
    """
    if table_rows < len(spec.tables):
        raise ConfigError(f"`--table-rows` must be at least {len(spec.tables)}, the tables. Received: {table_rows}.")
    spare = table_rows - len(spec.tables)
    sizes = [1 + t.vocabulary_size * spare // spec.table_rows for t in spec.tables]
    sizes[int(np.argmax(sizes))] += table_rows - sum(sizes)  # what rounding down left over
    tables = (t.model_copy(update={"vocabulary_size": size}) for t, size in zip(spec.tables, sizes, strict=True))
    return spec.model_copy(update={"tables": tuple(tables)})


def write_random(directory: Path, spec: FeatureSpec, rows: int, form: Format = "packed", seed: int = 0) -> Manifest:
    """Write random rows as the split `train` of a prepared data set, ids uniform, and return its manifest."""
    splits = {"train": RandomRows(spec, seed=seed).batches(rows)}
    return write_prepared(directory, spec, splits, {"generator": "random", "seed": seed}, form)
