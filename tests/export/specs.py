"""Feature specs of a table for each feature, named t0, t1, ... and f0, f1, ..."""

from __future__ import annotations

from typing import Any

from tfdlrm.spec.features import FeatureSpec


def spec_of(
    tables: list[dict[str, Any]], features: list[dict[str, Any]] | None = None, dense: tuple[str, ...] = ("x",)
) -> FeatureSpec:
    tables = [{"name": f"t{i}", **table} for i, table in enumerate(tables)]
    features = features or [{} for _ in tables]
    sparse = [{"name": f"f{i}", "table": f"t{i}", **feature} for i, feature in enumerate(features)]
    return FeatureSpec(dense=[{"name": name} for name in dense], sparse=sparse, tables=tables)


def mixed_features(count: int, weighted_every: int) -> list[dict[str, Any]]:
    """Return bags of every kind: one to three ids, sums and means, weighted by the rows and by learned weights."""
    return [
        {
            "hotness": 1 + i % 3,
            "learned_weights": i % 2 == 0,
            "weighted": i % weighted_every == 0,
            "combiner": ("sum", "mean")[i % 2],
        }
        for i in range(count)
    ]
