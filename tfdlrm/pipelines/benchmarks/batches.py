"""Random samples for benchmarks: in memory, or packed on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from tfdlrm.data.examples import ExampleWriter
from tfdlrm.data.manifest import Manifest
from tfdlrm.data.packed import PackedWriter
from tfdlrm.spec.coding import Encoding, FeatureCoding, TableCoding
from tfdlrm.spec.errors import ConfigError
from tfdlrm.spec.features import FeatureSpec

Format = Literal["packed", "example"]
WRITE_ROWS = 65_536


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
    generator = np.random.default_rng(seed)
    shape = (batches, batch_size)
    sparse = np.empty((*shape, spec.n_ids), spec.id_dtype)
    for feature in spec.sparse:
        rows = spec.table_of(feature).vocabulary_size
        start, stop = spec.id_columns[feature.name]
        u = generator.random((*shape, stop - start))
        if ids == "powerlaw":
            sparse[:, :, start:stop] = np.minimum(_powerlaw(u, rows, exponent), rows - 1)
        else:
            sparse[:, :, start:stop] = u * rows
    samples = {
        "dense": generator.random((*shape, spec.n_dense), np.float32),
        "sparse": sparse,
        "label": generator.integers(0, 2, (*shape, 1)).astype(np.float32),
    }
    if spec.has_weights:
        samples["weights"] = generator.random((*shape, spec.n_ids), np.float32)
    return samples


def _powerlaw(u: np.ndarray, rows: int, exponent: float) -> np.ndarray:
    """Map uniform numbers to ids: the inverse of the distribution function of x^-exponent on [1, rows + 1)."""
    if abs(exponent - 1.0) < 1e-6:
        x: np.ndarray = (rows + 1.0) ** u
    else:
        power = 1.0 - exponent
        x = (((rows + 1.0) ** power - 1.0) * u + 1.0) ** (1.0 / power)
    return x - 1.0


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
    writer: PackedWriter | ExampleWriter
    writer = PackedWriter(directory, "train", spec) if form == "packed" else ExampleWriter(directory, "train", spec)
    with writer:
        for number, start in enumerate(range(0, rows, WRITE_ROWS)):
            count = min(WRITE_ROWS, rows - start)
            samples = random_batches(spec, 1, count, "uniform", seed=seed + number)
            writer.add(**{name: array[0] for name, array in samples.items()})
    encoding = Encoding(
        features={name: FeatureCoding(source=name) for name in spec.sparse_names},
        tables={table.name: TableCoding() for table in spec.tables},
    )
    manifest = Manifest(format=form, spec=spec, encoding=encoding, splits={"train": writer.close()})
    manifest.save(directory)
    return manifest
