"""How often each row of an embedding table is used: exactly, or for very large tables the most frequent rows only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

COUNTED_ROWS = 1 << 26
"""Table rows that are counted one by one, 4 bytes each, 256 MiB in all. Beyond that the largest tables are sketched."""
SKETCH_ENTRIES = 1 << 14
_BLOCK = 1 << 20
_MOST = np.iinfo(np.uint32).max
Ids = npt.NDArray[Any]


class TopRow(NamedTuple):
    """A frequent row: its id, and how often it was used (at least, where the table is sketched)."""

    row: int
    uses: int


class ExactCounts:
    """A count for each row.

    Args:
        rows: Rows of the table.
    """

    is_exact = True
    error = 0

    def __init__(self, rows: int) -> None:
        self._counts = np.zeros(rows, np.uint32)
        self.total = 0

    def add(self, ids: Ids) -> None:
        """Count ids, `[n]`, all of them rows of the table."""
        self.total += ids.size
        if self.total > _MOST and self._counts.dtype == np.uint32:
            self._counts = self._counts.astype(np.uint64)
        np.add.at(self._counts, ids.astype(np.intp, copy=False), self._counts.dtype.type(1))

    def used(self) -> int:
        """Return how many rows were used at all."""
        return int(np.count_nonzero(self._counts))

    def top(self, most: int) -> list[TopRow]:
        """Return the most used rows, the lower id first where two are used alike."""
        least = np.partition(self._counts, -most)[-most] if most < len(self._counts) else 0
        chosen = np.flatnonzero(self._counts > least)
        if least:
            chosen = np.concatenate([chosen, self._first_rows_used(int(least), most - len(chosen))])
        order = chosen[np.lexsort([chosen, -self._counts[chosen].astype(np.int64)])]
        return [TopRow(int(row), int(self._counts[row])) for row in order]

    def coverage(self, numbers: Sequence[int]) -> list[float]:
        """Return what share of all values the `n` most used rows have, for each n of `numbers`."""
        return _coverage(self._counts, self.total, numbers)

    def _first_rows_used(self, uses: int, number: int) -> Ids:
        """Return the lowest rows used so often; block by block, as there may be very many."""
        found: list[Ids] = []
        for start in range(0, len(self._counts), _BLOCK):
            rows = start + np.flatnonzero(self._counts[start : start + _BLOCK] == uses)[:number]
            found.append(rows)
            number -= len(rows)
            if not number:
                break
        return np.concatenate(found)


class SketchCounts:
    """Which rows were used, one byte a row, and about how often the most frequent ones were.

    Counts are a mergeable summary of `entries` rows (Agarwal et al., 2012): none is too high, and none is too low by
    more than `error`, which is at most total / entries.

    Args:
        rows: Rows of the table.
        entries: Rows whose counts are kept.
    """

    is_exact = False

    def __init__(self, rows: int, entries: int = SKETCH_ENTRIES) -> None:
        self._used = np.zeros(rows, np.bool_)
        self._entries = entries
        self._ids = np.empty(0, np.int64)
        self._counts = np.empty(0, np.int64)
        self.error = 0
        self.total = 0

    def add(self, ids: Ids) -> None:
        """Count ids, `[n]`, all of them rows of the table."""
        self.total += ids.size
        self._used[ids] = True
        new, counts = np.unique(ids, return_counts=True)
        both, place = np.unique(np.concatenate([self._ids, new]), return_inverse=True)
        sums = np.zeros(len(both), np.int64)
        np.add.at(sums, place, np.concatenate([self._counts, counts]))
        if len(both) > self._entries:
            cut = int(np.partition(sums, -self._entries - 1)[-self._entries - 1])
            self.error += cut
            both, sums = both[sums > cut], sums[sums > cut] - cut
        self._ids, self._counts = both, sums

    def used(self) -> int:
        """Return how many rows were used at all."""
        return int(np.count_nonzero(self._used))

    def top(self, most: int) -> list[TopRow]:
        """Return the most used rows, the lower id first where two are used alike."""
        order = np.lexsort([self._ids, -self._counts])[:most]
        return [TopRow(int(self._ids[i]), int(self._counts[i])) for i in order]

    def coverage(self, numbers: Sequence[int]) -> list[float]:
        """Return what share of all values the `n` most used rows have, at least, for each n of `numbers`."""
        return _coverage(self._counts, self.total, numbers)


def count_tables(
    table_rows: Mapping[str, int], counted_rows: int = COUNTED_ROWS
) -> dict[str, ExactCounts | SketchCounts]:
    """Return counts for each table: exact ones for the smallest tables, as long as their rows add up to the limit."""
    counts: dict[str, ExactCounts | SketchCounts] = {}
    for name, rows in sorted(table_rows.items(), key=lambda item: item[1]):
        counted_rows -= rows
        counts[name] = ExactCounts(rows) if counted_rows >= 0 else SketchCounts(rows)
    return {name: counts[name] for name in table_rows}


def _coverage(counts: npt.NDArray[Any], total: int, numbers: Sequence[int]) -> list[float]:
    counts = np.sort(counts)[::-1]
    ends = [min(n, len(counts)) for n in numbers]
    sums, running = {0: 0}, 0
    for start, stop in pairwise(sorted({0, *ends})):
        running += int(counts[start:stop].sum(dtype=np.int64))
        sums[stop] = running
    return [sums[end] / total if total else 0.0 for end in ends]
