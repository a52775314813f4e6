"""Rows of rare, unseen and missing values that training left as they were drawn."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from tfdlrm.data.manifest import Manifest
from tfdlrm.spec.coding import Encoding
from tfdlrm.spec.features import FeatureSpec


def untouched_rows(manifest: Manifest) -> dict[str, list[int]]:
    """Return rows below `first_id` that no training sample read, by table; tables without any are left out.

    Training rows of the runs that this one goes on from count, too.

    Args:
        manifest: The prepared data.
    """
    return untouched_rows_of(manifest.spec, manifest.encoding, manifest.statistics, manifest.growth.read_before)


def untouched_rows_of(
    spec: FeatureSpec, encoding: Encoding, statistics: Mapping[str, Any], read: Mapping[str, Collection[int]]
) -> dict[str, list[int]]:
    """Return what `untouched_rows` does, of encoded rows without a manifest.

    Args:
        spec: Their features.
        encoding: Their coding.
        statistics: What `summarize` says of them.
        read: Rows, by table, that training read before.
    """
    coded = encoding.tables
    rows: dict[str, set[int]] = {table.name: set() for table in spec.tables}
    for table in spec.tables:
        features = [f.name for f in spec.sparse if f.table == table.name]
        was_missing = any(statistics["shares"]["train"][name]["missing"] for name in features)
        if coded[table.name].missing_key is None and not was_missing:
            rows[table.name].add(coded[table.name].missing_row)
    for name, count in statistics["rare_in_training"].items():
        coding = coded[name]
        if count:
            rows[name].discard(coding.rare_row)
        elif coding.rare_row in coding.reserved_rows:
            rows[name].add(coding.rare_row)
        if coding.kind == "vocabulary" and coding.oov_row not in (coding.rare_row, coding.missing_row, None):
            rows[name].add(coding.oov_row)  # no training row is unseen
    # A row shared with a value is that value's.
    own = {
        name: sorted(row for row in numbers - set(read.get(name, ())) if 0 <= row < coded[name].first_id)
        for name, numbers in rows.items()
    }
    return {name: numbers for name, numbers in own.items() if numbers}
