"""A recipe for a CSV that nobody has described: its columns are taken for what they look like."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from tfdlrm.data.column_choice import ColumnChoice
from tfdlrm.data.raw_blocks import expand_path
from tfdlrm.pipelines.dataframe import choose_recipe
from tfdlrm.spec.config import RunConfig
from tfdlrm.spec.errors import ConfigError, DataError

SAMPLE_ROWS = 200_000
"""Columns are decided on by so many rows from the beginning of the first file."""
_DELIMITERS = (",", "\t", ";", "|")


def infer_recipe(
    raw: Sequence[str], label: str, split: str = "random", drop: Sequence[str] = ()
) -> tuple[RunConfig, list[ColumnChoice]]:
    """Return a recipe for files with a header, and what was decided about each column and why.

    Args:
        raw: CSV or TSV files, plain or `.gz`, with the same header.
        label: Column of 0 and 1, or a rule such as `"stars >= 4"`.
        split: `"random"`, `"order"`, `"time:COLUMN"` or `"key:COLUMN"`.
        drop: Columns that are no features.

    Raises:
        ConfigError: the split is none of these, or a name is that of no column.
        DataError: the file is no table, or has a column that cannot be a feature.
    """
    path = expand_path(raw[0])
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        delimiter = _delimiter(path)
        # Its kind is read off the first rows; a column that changes its mind later is text.
        frame = pl.read_csv(path, separator=delimiter, n_rows=SAMPLE_ROWS, infer_schema_length=SAMPLE_ROWS)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: cannot be read as a table: {error}") from None
    if not frame.height:
        raise DataError(f"{path}: must have a header and rows. Received: none.")
    return choose_recipe(frame, raw, label, _split(split), drop, delimiter, _name(path))


def _delimiter(path: Path) -> str:
    """Return what the header has most of."""
    header = pl.read_csv(path, has_header=False, n_rows=1, separator="\x01", quote_char=None)
    text = str(header.item()) if header.height else ""
    return max(_DELIMITERS, key=text.count)


def _split(text: str) -> Any:
    kind, colon, column = text.partition(":")
    if (text in ("random", "order")) or (kind in ("time", "key") and column):
        return {kind: column} if colon else text
    raise ConfigError(f"`--split` must be random, order, time:COLUMN or key:COLUMN. Received: {text!r}.")


def _name(path: Path) -> str:
    stem = path.name.removesuffix(".gz").rpartition(".")[0] or path.name
    return re.sub(r"[^A-Za-z0-9_.-]", "_", stem).lstrip("_.-") or "table"
