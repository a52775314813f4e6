"""What prepared rows are like: click rates, and how much is missing, rare or unseen in each split."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tfdlrm.data.columns import is_keyed, key_column, number_column, string_column, transposed
from tfdlrm.data.raw_bags import PADDING
from tfdlrm.data.splits import SPLIT_NAMES
from tfdlrm.spec.coding import Encoding, TableCoding
from tfdlrm.spec.features import FeatureSpec


class RowStatistics:
    """Counts over the rows of one split.

    Args:
        spec: The features.
        encoding: Their coding.

    Attributes:
        rows: Rows added.
        clicks: Sum of their labels.
    """

    def __init__(self, spec: FeatureSpec, encoding: Encoding) -> None:
        self.rows = 0
        self.clicks = 0.0
        self._spec = spec
        self._codings = {f.name: encoding.tables[f.table] for f in spec.sparse}
        self._raw = encoding.features
        # Of an expanded bag only the first id says something about the row; the others were drawn.
        expanded = {name for name, coding in encoding.features.items() if coding.expand is not None}
        self._columns = {
            n: (start, start + 1 if n in expanded else stop) for n, (start, stop) in spec.id_columns.items()
        }
        self._missing = dict.fromkeys(spec.dense_names, 0)
        kinds = ("all", "missing", "rare", "rare_values", "unseen")
        self._ids = {name: dict.fromkeys(kinds, 0) for name in spec.sparse_names}

    def add(self, frame: pl.DataFrame, sparse: npt.NDArray[Any]) -> None:
        """Count rows.

        Args:
            frame: Raw rows: `label`, the dense columns, and those of features whose missing values share a row.
            sparse: Their ids, `[rows, n_ids]`.
        """
        self.rows += frame.height
        self.clicks += float(frame["label"].sum())
        for name in self._missing:
            self._missing[name] += int(np.count_nonzero(np.isnan(number_column(frame, name))))
        columns = transposed(sparse)
        for name, counts in self._ids.items():
            start, stop = self._columns[name]
            ids, coding = columns[start:stop], self._codings[name]
            of = {row: int(np.count_nonzero(ids == row)) for row in coding.reserved_rows | {coding.rare_row}}
            missing = self._missing_values(frame, name) if _shares_missing(coding) else of[coding.missing_row]
            counts["all"] += ids.size if stop == start + 1 else int(np.count_nonzero(ids != PADDING))
            counts["missing"] += missing
            counts["rare"] += of[coding.rare_row]
            for kind, row in (("rare_values", coding.rare_row), ("unseen", coding.oov_row)):
                if row is not None and row in coding.reserved_rows:
                    here = coding.missing_key is None and row == coding.missing_row
                    counts[kind] += of[row] - missing if here else of[row]

    def _missing_values(self, frame: pl.DataFrame, feature: str) -> int:
        """Return in how many raw rows a feature has no value."""
        raw, coding = self._raw[feature], self._codings[feature]
        if coding.value == "number":
            return int(np.count_nonzero(~np.isfinite(number_column(frame, raw.source))))
        if is_keyed(frame, raw.source):
            return int(np.count_nonzero(key_column(frame, raw.source).missing))
        values = string_column(frame, raw.source)
        if raw.separator is not None:
            values = values.str.replace_all(raw.separator, "", literal=True)
        return int((values == "").sum())

    def merge(self, other: RowStatistics) -> None:
        """Add what another one, of the same features, counted."""
        self.rows += other.rows
        self.clicks += other.clicks
        for name, missing in other._missing.items():
            self._missing[name] += missing
        for name, counts in other._ids.items():
            for kind, count in counts.items():
                self._ids[name][kind] += count

    @property
    def state(self) -> dict[str, Any]:
        """All that it knows, for JSON; setting it makes this one, of the same features, know just that."""
        return {"rows": self.rows, "clicks": self.clicks, "missing": self._missing, "ids": self._ids}

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        self.rows, self.clicks = state["rows"], state["clicks"]
        self._missing, self._ids = state["missing"], state["ids"]

    @property
    def rare_of_tables(self) -> dict[str, int]:
        """How many ids of each table are its `rare_row`."""
        totals = {table.name: 0 for table in self._spec.tables}
        for feature in self._spec.sparse:
            totals[feature.table] += self._ids[feature.name]["rare"]
        return totals

    def shares(self) -> dict[str, dict[str, float]]:
        """Return what share of each feature's values is missing, rare or unseen.

        Dense features have `missing` only. Where a coding puts rare and unseen values in one row they cannot be told
        apart and are counted together as `rare_or_unseen`.
        """
        shares = {name: {"missing": count / max(self.rows, 1)} for name, count in self._missing.items()}
        for name, counts in self._ids.items():
            coding, total = self._codings[name], max(counts["all"], 1)
            shares[name] = {"missing": counts["missing"] / total}
            if coding.kind == "vocabulary" and coding.rare_row == coding.oov_row:
                shares[name]["rare_or_unseen"] = counts["unseen"] / total
            elif coding.kind == "vocabulary":
                shares[name] |= {"rare": counts["rare_values"] / total, "unseen": counts["unseen"] / total}
        return shares


def _shares_missing(coding: TableCoding) -> bool:
    """Tell whether the row of missing values is that of others too, so that ids do not tell what was missing."""
    is_value = coding.missing_key is not None or coding.missing_row >= coding.first_id
    return is_value or coding.missing_row in (coding.oov_row, coding.rare_row if coding.has_rare else None)


def summarize(splits: dict[str, RowStatistics]) -> dict[str, Any]:
    """Return the statistics of all splits, ready for JSON."""
    train = splits[SPLIT_NAMES[0]]
    return {
        "rows": {name: split.rows for name, split in splits.items()},
        "click_rate": {name: split.clicks / split.rows if split.rows else None for name, split in splits.items()},
        "shares": {name: split.shares() for name, split in splits.items() if split.rows},
        "rare_in_training": train.rare_of_tables,
    }
