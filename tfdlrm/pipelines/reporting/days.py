"""On which day each held-out row is from, where the raw rows have a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tfdlrm.data.reader import RawReader
from tfdlrm.data.splits import SplitPlan, in_split, read_times
from tfdlrm.pipelines.stages.context import Run

_DAY, _MONTH = 10, 7
"""Characters of a date that is written year first."""
_MOST_DAYS = 62
_SECONDS = (10**8, 10**11)
"""Times between are seconds since 1970: from 1973 on."""


def held_out_days(run: Run, split: str) -> npt.NDArray[Any] | None:
    """Return the day of each row of a split, as text `[rows]`, or its month where there are more than two months.

    `None` where it is not known: rows have no time, or a number that is not seconds since 1970, or which raw rows the
    prepared ones are depends on more than their place.
    """
    data, time = run.config.data, run.config.data.format.time
    if time is None or data.split.by == "hash" or data.drop_negatives:
        return None
    times = read_times(RawReader(data.format, run.raw, extra=[time], required=[time], max_bad_share=1.0), time)
    rows_per_file = [file["rows"] for file in run.manifest.recipe["raw"]]
    plan = SplitPlan.make(data.split, rows_per_file, times if data.split.by == "time" else None)
    chosen = pl.Series(in_split(plan.codes_of_rows(np.arange(len(times))), split)) & times.is_not_null()
    days = _days(times.filter(chosen))
    # Rows set aside as bad for another column are not in the prepared data.
    if days is None or len(days) != run.manifest.splits[split].rows:
        return None
    if days.n_unique() > _MOST_DAYS:
        days = days.str.slice(0, _MONTH)
    return days.to_numpy()


def _days(times: pl.Series) -> pl.Series | None:
    """Return times as days, written year first; `None` where they cannot be told."""
    if times.dtype == pl.String:
        days = times.str.slice(0, _DAY)
        return days if days.str.contains(r"^\d{4}-\d{2}-\d{2}$").all() else None
    if times.is_empty() or not times.is_between(*_SECONDS).all():
        return None
    return pl.from_epoch(times.cast(pl.Int64), time_unit="s").dt.date().cast(pl.String)
