"""How stack distances are distributed, and the three-line text file of the paper's code that holds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdlrm.data.files import write_atomic
from tfdlrm.spec.errors import DataError, why_unreadable

_SEPARATOR = ", "
_TABLE = "j"
_ROUNDING = 0.01  # files with two digits after the point are about


@dataclasses.dataclass(frozen=True, eq=False)
class StackDistances:
    """The distribution of the stack distances of a trace, and its ids.

    Attributes:
        ids: The different ids in the order in which they were first seen, int64 `[n]`, each once, at least 0.
        values: The distances that occur, int64 `[m]`, ascending from 0, the distance of a new id; at most n.
        cumulative: Share of draws with a distance up to each of them, float64 `[m]`; ends at 1, but for rounding.

    Raises:
        DataError: the arrays break these rules.
    """

    ids: npt.NDArray[np.int64]
    values: npt.NDArray[np.int64]
    cumulative: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        ids, values, cumulative = self.ids, self.values, self.cumulative
        if not len(ids) or ids.min() < 0 or len(np.unique(ids)) != len(ids):
            raise DataError("`ids` must be different whole numbers of at least 0, one or more.")
        if not len(values) or values[0] != 0 or (np.diff(values) <= 0).any():
            raise DataError("`values` must be distances that ascend from 0.")
        if values[-1] > len(ids):
            raise DataError(f"`values` must be at most the {len(ids)} ids. Received: {values[-1]}.")
        if len(cumulative) != len(values):
            raise DataError(f"`cumulative` must have {len(values)} shares, as `values`. Received: {len(cumulative)}.")
        if not np.isfinite(cumulative).all() or cumulative[0] <= 0 or (np.diff(cumulative) < 0).any():
            raise DataError("`cumulative` must be shares above 0 that do not fall.")
        if abs(cumulative[-1] - 1) > _ROUNDING:
            raise DataError(f"`cumulative` must end at 1. Received: {cumulative[-1]}.")

    @classmethod
    def from_counts(
        cls, ids: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], padding: bool = False
    ) -> StackDistances:
        """Return the distribution of counted distances.

        Args:
            ids: The different ids, the first seen first.
            counts: int64; entry d tells how often distance d came.
            padding: Whether to count n / c more zeros, rounded up, for n distances up to c.
        """
        counts = counts.astype(np.int64)
        largest = int(np.flatnonzero(counts)[-1]) if counts.any() else 0
        if padding and largest:
            counts[0] += -(-int(counts.sum()) // largest)
        values = np.flatnonzero(counts)
        sums = np.cumsum(counts[values])
        return cls(ids, values, sums / sums[-1] if len(sums) else np.zeros(0))

    @classmethod
    def read(cls, path: Path | str) -> StackDistances:
        """Read the three lines `write` writes: ids, distances, cumulative shares.

        Raises:
            DataError: the file cannot be read or does not hold them; the message names file and line.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read: {why_unreadable(error)}.") from None
        if len(lines) != 3:
            raise DataError(f"{path}: must have three lines: ids, distances, shares. Received: {len(lines)}.")
        columns: list[npt.NDArray[Any]] = []
        for number, (line, kind) in enumerate(zip(lines, (int, int, float), strict=True), 1):
            try:
                columns.append(np.array([kind(x) for x in line.split(",")], np.float64 if kind is float else np.int64))
            except (ValueError, OverflowError):
                what = "numbers" if kind is float else "whole numbers"
                raise DataError(f'{path}:{number}: must hold {what} with ", " between them.') from None
        try:
            return cls(*columns)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def write(self, path: Path | str) -> None:
        """Write ids, distances and cumulative shares as one line each, ", " between numbers."""
        columns: Sequence[list[int] | list[float]] = (self.ids.tolist(), self.values.tolist(), self.cumulative.tolist())
        write_atomic(path, "".join(_SEPARATOR.join(map(repr, column)) + "\n" for column in columns))

    def after_warm_up(self, padding: bool = False) -> npt.NDArray[np.float64]:
        """Return the shares that draws have once all distances are in reach, float64 `[m]`, ending at 1.

        Args:
            padding: Whether new ids are drawn only before that.
        """
        shares = self.cumulative / self.cumulative[-1]
        if padding and len(shares) > 1:
            shares = (shares - shares[0]) / (1 - shares[0])
        return np.asarray(shares)


def table_file(path: Path | str, table: int) -> Path:
    """Return the file of a table: every letter "j" in the name of `path`, not in its folders, becomes the number.

    >>> table_file("jobs/dist_emb_j.log", 3).as_posix()
    'jobs/dist_emb_3.log'
    """
    path = Path(path)
    return path.with_name(path.name.replace(_TABLE, str(table)))


def is_per_table(path: Path | str) -> bool:
    """Tell whether `path` names a file for each table."""
    return _TABLE in Path(path).name
