"""Rows that can be told apart, packed into a folder, and what a reader must give back for them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from tfdlrm.data.manifest import Manifest
from tfdlrm.data.packed import PackedWriter
from tfdlrm.spec.coding import Encoding, FeatureCoding, TableCoding
from tfdlrm.spec.features import DenseFeature, FeatureSpec, SparseFeature, TableConfig


def make_spec(dense=2, hotness=(1, 3), table_rows=1000, weighted=False) -> FeatureSpec:
    return FeatureSpec(
        dense=[DenseFeature(name=f"n{i}") for i in range(dense)],
        sparse=[
            SparseFeature(name=f"c{i}", table=f"t{i}", hotness=h, weighted=weighted) for i, h in enumerate(hotness)
        ],
        tables=[TableConfig(name=f"t{i}", vocabulary_size=table_rows, embedding_dim=4) for i in range(len(hotness))],
    )


def make_encoding(spec: FeatureSpec) -> Encoding:
    return Encoding(
        features={name: FeatureCoding(source=name) for name in spec.sparse_names},
        tables={table.name: TableCoding() for table in spec.tables},
    )


@dataclasses.dataclass
class Sample:
    """A packed data set and its rows as arrays; column 0 of `dense` is the row number."""

    directory: Path
    manifest: Manifest
    arrays: dict[str, np.ndarray]

    def expected(self, rows) -> dict[str, np.ndarray]:
        return {name: array[rows] for name, array in self.arrays.items()}


def make_arrays(spec: FeatureSpec, rows: int, sample_weight: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    numbers = np.arange(rows, dtype=np.float32)
    largest = max((table.vocabulary_size for table in spec.tables), default=1)
    arrays = {
        "dense": rng.normal(size=[rows, spec.n_dense]).astype(np.float32),
        "sparse": rng.integers(-1, largest, size=[rows, spec.n_ids]).astype(np.int64 if largest >= 2**31 else np.int32),
        "label": (rng.random([rows, 1]) < 0.25).astype(np.float32),
    }
    if spec.n_dense:
        arrays["dense"][:, 0] = numbers
    if spec.has_weights:
        arrays["weights"] = rng.normal(size=[rows, spec.n_ids]).astype(np.float32)
    if sample_weight:
        arrays["sample_weight"] = rng.random([rows, 1]).astype(np.float32)
    return arrays


def make_sample(
    directory, rows=1000, block=64, shard=300, spec=None, sample_weight=False, **more_splits: int
) -> Sample:
    spec = make_spec() if spec is None else spec
    arrays = make_arrays(spec, rows, sample_weight)
    splits = {}
    for split, count in {"train": rows, **more_splits}.items():
        with PackedWriter(directory, split, spec, block, shard, sample_weight) as writer:
            for start in range(0, count, 97):
                writer.add(**{name: array[start : min(start + 97, count)] for name, array in arrays.items()})
        splits[split] = writer.close()
    manifest = Manifest(
        spec=spec, encoding=make_encoding(spec), splits=splits, has_sample_weight=sample_weight, recipe={"rows": rows}
    )
    manifest.save(directory)
    return Sample(Path(directory), manifest, arrays)


def as_arrays(batch: tuple[Any, ...]) -> dict[str, np.ndarray]:
    features, label, *rest = batch
    arrays = {**features, "label": label}
    if rest:
        (arrays["sample_weight"],) = rest
    return {name: np.asarray(value) for name, value in arrays.items()}
