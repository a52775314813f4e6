"""Readers of raw files as a recipe describes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tfdlrm.data.columns import raw_columns
from tfdlrm.data.raw_blocks import RawPath
from tfdlrm.data.reader import RawReader
from tfdlrm.data.side_tables import SideFile
from tfdlrm.spec.coding import Encoding
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.derive import encoding_of


def feature_reader(data: DataConfig, raw: Sequence[str | RawPath], chunk_bytes: int, keys: Sequence[str]) -> RawReader:
    """Return a reader of all that features, label, weight and split need.

    Args:
        data: The recipe.
        raw: The files.
        chunk_bytes: Bytes of text per chunk.
        keys: What `key_columns` returned.
    """
    encoding = encoding_of(data)
    columns = raw_columns(encoding, _table_of(data), [c.name for c in data.dense])
    return recipe_reader(
        data,
        raw,
        chunk_bytes,
        dense=columns.numbers,
        strings=[name for name in columns.strings if name not in keys],
        hex_columns={name: sep for name, sep in hex_columns(data).items() if name not in keys},
        keys=keys,
        weights=weight_columns(encoding),
        extra=[data.split.key] if data.split.by == "hash" and data.split.key else [],
    )


def recipe_reader(
    data: DataConfig, raw: Sequence[str | RawPath], chunk_bytes: int, extra: Sequence[str] = (), **options: Any
) -> RawReader:
    """Return a reader of raw files; whatever it is for, a row without a time is bad where time splits.

    Args:
        data: The recipe.
        raw: The files.
        chunk_bytes: Bytes of text per chunk.
        extra: Raw columns to carry along as text.
        options: Others of `RawReader`.
    """
    times = [data.format.time] if data.split.by == "time" and data.format.time is not None else []
    return RawReader(
        data.format,
        raw,
        extra=list(dict.fromkeys([*extra, *times])),
        required=times,
        max_bad_share=data.max_bad_share,
        chunk_bytes=chunk_bytes,
        **options,
    )


def key_columns(data: DataConfig) -> list[str]:
    """Return the raw columns that all features read as one hexadecimal key a row."""
    encoding, table_of = encoding_of(data), _table_of(data)
    readers: dict[str, list[bool]] = {}
    for name, coding in encoding.features.items():
        is_key = encoding.tables[table_of[name]].value == "hex" and coding.separator is None
        readers.setdefault(coding.source, []).append(is_key)
    # Those of side tables are joined as text.
    joined = {name for table in data.format.side_tables for name in SideFile(table).provides}
    return [name for name, are_keys in readers.items() if all(are_keys) and name not in joined]


def hex_columns(data: DataConfig) -> dict[str, str | None]:
    """Return the raw columns that must hold hexadecimal keys, with the separator of their bags."""
    encoding, table_of = encoding_of(data), _table_of(data)
    hexadecimal = [c for name, c in encoding.features.items() if encoding.tables[table_of[name]].value == "hex"]
    # Where features read one column both as a bag and as a single value, the stricter reading counts.
    return {c.source: c.separator for c in sorted(hexadecimal, key=lambda c: c.separator is None)}


def weight_columns(encoding: Encoding) -> dict[str, tuple[str, str]]:
    """Return the raw columns that hold weights, with the bag's column and its separator."""
    return {c.weights: (c.source, c.separator) for c in encoding.features.values() if c.weights and c.separator}


def _table_of(data: DataConfig) -> dict[str, str]:
    return {c.name: c.table or c.name for c in data.sparse}
