"""Raw rows that training never saw: what a served model is asked, and what it must answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import polars as pl

from tfdlrm.data.dropped_rows import kept_rows
from tfdlrm.data.reader import RawReader
from tfdlrm.data.splits import SplitPlan, in_split, read_times
from tfdlrm.pipelines.stages.context import Run

Row = dict[str, float | str]


def held_out_rows(run: Run, split: str, limit: int) -> pl.DataFrame:
    """Return the first raw rows of a split, in the order in which `prepare` packed them.

    Args:
        run: The run; its raw files are read until there are enough rows.
        split: `"train"`, `"validation"` or `"test"`.
        limit: Most rows to return.

    Returns:
        `label` and the raw columns of the encoder: numbers with null where missing, strings with `""`.
    """
    data, columns, manifest = run.config.data, run.encoder.columns, run.manifest
    by, key, time = data.split.by, data.split.key, data.format.time
    times = [time] if by == "time" and time else []
    coded = manifest.encoding.tables
    hexadecimal = {
        coding.source: coding.separator
        for feature in manifest.spec.sparse
        if coded[feature.table].value == "hex" and (coding := manifest.encoding.features[feature.name])
    }
    reader = RawReader(
        data.format,
        run.raw,
        dense=columns.numbers,
        strings=columns.strings,
        hex_columns=hexadecimal,
        extra=[*times, *([key] if by == "hash" and key else [])],
        required=times,
        max_bad_share=1.0,  # how many there may be was `prepare`'s to judge
    )
    rows_per_file = [file["rows"] for file in manifest.recipe["raw"]]
    plan = SplitPlan.make(data.split, rows_per_file, read_times(reader, times[0]) if times else None)
    parts: list[pl.DataFrame] = []
    found = 0
    for chunk in reader:
        kept = kept_rows(chunk.rows, chunk.frame["label"].to_numpy(), data.drop_negatives, data.drop_seed)
        chosen = chunk.frame.filter(pl.Series(in_split(plan.codes(chunk), split) & kept)).head(limit - found)
        parts.append(chosen.select("label", *columns.numbers, *columns.strings))
        found += chosen.height
        if found == limit:
            break
    return pl.concat(parts)


def as_columns(frame: pl.DataFrame, names: Sequence[str]) -> dict[str, list[float | str]]:
    """Return columns as a request holds them: nan for a missing number, `""` for a missing string."""
    return {
        name: frame[name].fill_null(math.nan).to_list() if frame[name].dtype.is_float() else frame[name].to_list()
        for name in names
    }


def as_rows(columns: dict[str, list[Any]]) -> list[Row]:
    """Return the same as one mapping a row."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
