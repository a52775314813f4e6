"""What a table can teach a model, and how much of it is left where it is stored in less: an estimate, no measurement.

The estimate, for a table whose row i gets the share p_i of the reads, N reads in all:

- The vector of an id is a sum of d independent directions. The j-th explains a share s_j of what the table has to say,
  s_j proportional to 1 / j^2: the first columns matter most.
- A direction is learnt as far as the reads of its row tell it from noise: r / (r + 30), r = N p_i s_j. So a row that
  is hardly ever read has little to lose, and least in its last columns.
- What all rows and columns together can learn is the sum of p_i s_j r / (r + 30): a row counts as often as it is read.
- Hashed ids that share a row with others, which are read u times per read of the table, keep p_i / (p_i + u).
- With quotient and remainder, c ids share each quotient row, and the remainder row gives half of what is lost back:
  1 - (c - 1) / (2 c) is kept.
- Half precision keeps 99.9%.

Constants are round numbers: 30 is about the reads it takes until one feature of a click log, which explains a sixth of
a unit of the logit's variance, stands out from the noise of clicks, 5 units a read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tfdlrm.spec.compression import BYTES, Compression, QuotientRemainder, TableDtype
from tfdlrm.spec.errors import SpecError

Doubles = npt.NDArray[np.float64]


class BinnedCounts(NamedTuple):
    """How often rows were read, summed over runs of neighbours: a few hundred numbers, however large the table.

    Attributes:
        edges: First row of each run, and the end of the last one, ascending from 0; as `row_steps(0, rows)` has them.
        reads: Reads of each run, one fewer.
    """

    edges: npt.NDArray[np.int64]
    reads: npt.NDArray[np.int64]


Counts = Sequence[int] | npt.NDArray[Any] | BinnedCounts

ZIPF = 1.05
"""Where counts are not known, the id of rank i = 1, 2, ... is assumed to be read in proportion to i^-1.05."""
_NOISE = 30.0
_KEPT_IN = {"float32": 1.0, "bfloat16": 0.999, "float16": 0.999}
_STEP = 1.06  # between one number of rows that is tried and the next
_EXACT_SHARES = (0.0, 0.25, 0.5, 0.75, 0.875, 0.9375)


class Layouts(NamedTuple):
    """Ways to store a table, before width and type: arrays `[n]`, and `kept`, `[n, bins]`.

    Attributes:
        hash_rows: Rows that ids share; 0 where they do not.
        exact_rows: First ids with rows of their own among those.
        collisions: Ids that share a quotient row; 0 without one.
        stored_rows: Rows of all arrays.
        seen_rows: Rows that ids are mapped to: what a single weight is needed for.
        kept: What is left of each row's signal.
    """

    hash_rows: npt.NDArray[np.int64]
    exact_rows: npt.NDArray[np.int64]
    collisions: npt.NDArray[np.int64]
    stored_rows: npt.NDArray[np.int64]
    seen_rows: npt.NDArray[np.int64]
    kept: Doubles


class TableSignal:
    """The signal of one table, its rows in bins of neighbours that count as equally frequent.

    Args:
        rows: Rows of the table.
        width: Columns.
        reads: Reads of the table in training, N.
        counts: How often each row is read, in the order of rows, one by one (rows beyond its end never) or in the bins
            of `row_steps(0, rows)`. `None` where rows are in no order of count. Defaults to Zipf's law.

    Attributes:
        share: Share of the reads in each bin, `[bins]`.
    """

    def __init__(self, rows: int, width: int, reads: float, counts: Counts | str | None = "zipf") -> None:
        self.rows, self.width = rows, width
        self._edges = row_steps(0, rows)
        self._size = np.diff(self._edges).astype(np.float64)
        self.share = self._shares(counts)
        self._each = self.share / self._size
        strength = 1 / np.arange(1, width + 1) ** 2
        strength = strength / strength.sum()
        seen = reads * self._each[:, None] * strength
        # [bins, width]: what the first 1, 2, ... columns hold.
        self._value = self.share[:, None] * np.cumsum(strength * seen / (seen + _NOISE), axis=1)

    @property
    def whole(self) -> float:
        """Signal of the whole table, at most 1."""
        return float(self._value[:, -1].sum())

    def shared_reads(self, exact_rows: int) -> float:
        """Return the share of the reads that ids from `exact_rows` on have."""
        return float(self.share[np.searchsorted(self._edges, exact_rows) :].sum())

    def layouts(self, methods: Sequence[str], least_rows: int) -> Layouts:
        """Return the ways to store the table that may be used.

        Args:
            methods: Of `"hash"` and `"quotient_remainder"`; others say nothing here.
            least_rows: Fewest rows that ids are hashed to.
        """
        found = [(0, 0, 0, self.rows, self.rows)]
        kept = [np.ones_like(self.share)]
        if "hash" in methods:
            for hashed in row_steps(max(least_rows, 2), self.rows)[:-1].tolist():
                for exact in sorted({self._edge_below(hashed * share) for share in _EXACT_SHARES}):
                    first = int(np.searchsorted(self._edges, exact))
                    others = self.share[first:].sum() / (hashed - exact)
                    own = self._each[first:]
                    together = own + others
                    left = np.ones_like(self.share)
                    left[first:] = np.divide(own, together, out=np.zeros_like(own), where=together > 0)
                    found.append((hashed, exact, 0, hashed, hashed))
                    kept.append(left)
        if "quotient_remainder" in methods:
            collisions = 2
            while collisions * collisions <= self.rows:
                stored = -(-self.rows // collisions) + collisions
                if stored >= least_rows:
                    found.append((0, 0, collisions, stored, self.rows))
                    kept.append(np.full_like(self.share, 1 - (collisions - 1) / (2 * collisions)))
                collisions *= 2
        hash_rows, exact_rows, collisions, stored_rows, seen_rows = np.array(found, np.int64).T
        return Layouts(hash_rows, exact_rows, collisions, stored_rows, seen_rows, np.array(kept))

    def of(self, layouts: Layouts, widths: Sequence[int]) -> Doubles:
        """Return the signal of each layout in each width, float32, `[n, widths]`."""
        signal: Doubles = layouts.kept @ self._value[:, np.asarray(widths) - 1]
        return signal

    def _edge_below(self, row: float) -> int:
        return int(self._edges[np.searchsorted(self._edges, row, side="right") - 1])

    def _shares(self, counts: Counts | str | None) -> Doubles:
        if isinstance(counts, str):
            ranks = (self._edges + 0.5) ** (1 - ZIPF)
            reads = ranks[:-1] - ranks[1:]
        elif counts is None:
            reads = self._size
        elif isinstance(counts, BinnedCounts):
            if not np.array_equal(counts.edges, self._edges):
                raise SpecError(
                    f"`counts` must be in the bins of a table of {self.rows} rows. Received: {len(counts.edges) - 1} "
                    f"bins up to row {counts.edges[-1]}."
                )
            reads = counts.reads.astype(np.float64)
        else:
            known = np.asarray(counts)[: self.rows]
            sums = np.concatenate([[0.0], np.cumsum(known, dtype=np.float64)])
            reads = np.diff(sums[np.minimum(self._edges, known.size)])
        total = reads.sum()
        return np.asarray(reads / total if total else self._size / self.rows, np.float64)


class Options(NamedTuple):
    """Ways to store a table, none of them worse than another that takes no more bytes; from small to large.

    Attributes:
        bytes: Of all arrays, ascending.
        signal: What is left, ascending.
        compressions: The settings; `None` for the whole table, which comes last.
    """

    bytes: npt.NDArray[np.int64]
    signal: Doubles
    compressions: list[Compression | None]


def options(signal: TableSignal, methods: Sequence[str], least_rows: int, weights: int) -> Options:
    """Return the ways to store a table.

    Args:
        signal: The table.
        methods: Of `"hash"`, `"quotient_remainder"`, `"dim"` and `"bfloat16"`; none leaves only the whole table.
        least_rows: Fewest rows that a compressed table has.
        weights: Single float32 weights beside each row.
    """
    widths = [w for w in _widths(signal.width) if "dim" in methods or w == signal.width]
    dtypes: list[TableDtype] = ["float32", "bfloat16"] if "bfloat16" in methods else ["float32"]
    layouts = signal.layouts(methods, least_rows)
    width = np.array(widths)
    values = signal.of(layouts, widths)
    projection = np.where(width < signal.width, width * signal.width * BYTES["float32"], 0)
    beside = layouts.seen_rows[:, None] * weights * BYTES["float32"]
    sizes = np.stack([layouts.stored_rows[:, None] * width * BYTES[d] + projection + beside for d in dtypes])
    left = np.stack([values * _KEPT_IN[d] for d in dtypes])
    whole = int(sizes[0, 0, -1])
    places = np.flatnonzero(sizes.ravel() < whole)
    order = places[np.lexsort([-left.ravel()[places], sizes.ravel()[places]])]
    best = left.ravel()[order]
    better = np.append(True, best[1:] > np.maximum.accumulate(best)[:-1]) if order.size else np.empty(0, bool)
    better &= best < signal.whole
    order = order[better]
    chosen = [
        _compression(layouts, widths, dtypes, signal.width, place)
        for place in zip(*np.unravel_index(order, sizes.shape), strict=True)
    ]
    return Options(
        np.append(sizes.ravel()[order], whole), np.append(left.ravel()[order], signal.whole), [*chosen, None]
    )


def _compression(
    layouts: Layouts, widths: Sequence[int], dtypes: Sequence[TableDtype], full: int, place: Sequence[Any]
) -> Compression:
    dtype, layout, width = (int(number) for number in place)
    collisions = int(layouts.collisions[layout])
    return Compression(
        hash_rows=int(layouts.hash_rows[layout]) or None,
        exact_rows=int(layouts.exact_rows[layout]),
        quotient_remainder=QuotientRemainder(collisions=collisions) if collisions else None,
        dim=widths[width] if widths[width] < full else None,
        dtype=dtypes[dtype],
    )


def row_steps(first: int, last: int) -> npt.NDArray[np.int64]:
    """Return whole numbers from `first` to `last`, each a few hundredths above the one before, or one more."""
    steps = [min(first, last)]
    while steps[-1] < last:
        steps.append(min(last, max(steps[-1] + 1, int(steps[-1] * _STEP))))
    return np.array(steps, np.int64)


def _widths(full: int) -> list[int]:
    """Return powers of two and the numbers halfway between them, below the full width, and that."""
    powers = [1 << n for n in range(full.bit_length())]
    return sorted({w for p in powers for w in (p, p + p // 2) if w < full} | {full})
