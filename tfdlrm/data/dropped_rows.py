"""Numbers drawn for rows by their place, and which rows without a click are left out by them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_AT_ONCE = 4  # numbers that Philox makes for each step of its counter


def kept_rows(
    rows: npt.NDArray[np.int64], labels: npt.NDArray[np.float32], drop_negatives: float, seed: int
) -> npt.NDArray[np.bool_]:
    """Tell which rows stay: all with label 1, and those with label 0 whose number u in [0, 1) is not below a share.

    u is the number that NumPy's Philox, keyed by the seed, draws for the row's place over all files. It depends on
    nothing else, so the same rows stay however the files are cut into chunks, and in whatever order those are read.

    Args:
        rows: Numbers of rows over all files, ascending, `[n]`; the memory taken depends on how far they lie apart.
        labels: 0 or 1, `[n]`.
        drop_negatives: Share of rows with label 0 to leave out, in [0, 1).
        seed: Key of the generator.

    Example:
        >>> kept_rows(np.arange(6), np.array([0, 1, 0, 0, 1, 0], np.float32), 0.5, seed=0).tolist()
        [False, True, False, True, True, False]
    """
    if not drop_negatives or not len(rows):
        return np.ones(len(rows), np.bool_)
    kept: npt.NDArray[np.bool_] = (labels != 0) | (row_numbers(rows, seed) >= drop_negatives)
    return kept


def row_numbers(rows: npt.NDArray[np.int64], key: int) -> npt.NDArray[np.float64]:
    """Return a number in [0, 1) for each row, drawn by NumPy's Philox for its place; it depends on nothing else.

    Args:
        rows: Numbers of rows over all files, ascending, `[n]`, n at least 1.
        key: Key of the generator, below 2^128.
    """
    first = int(rows[0]) // _AT_ONCE
    generator = np.random.Generator(np.random.Philox(key=key).advance(first))
    start = first * _AT_ONCE
    return generator.random(int(rows[-1]) + 1 - start)[rows - start]
