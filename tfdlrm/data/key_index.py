"""Keys to table rows for many keys at once: a hash table in NumPy beside the graph's binary search."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# Odd, so that multiplying by it loses nothing; its bits look random, so that keys in a row are spread (Fibonacci).
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_AT_ONCE = 1 << 17  # bounds the memory of intermediate results
_EMPTY = -1
# Slots per key, at least; up to twice as many. The roomier a table, the sooner a key is found or found to be absent.
_ROOMY, _NARROW, _SMALL = 4, 2, 1 << 17


class KeyIndex:
    """Finds the rows of keys, as `TableLookup` does in a graph.

    Slots lie in the order of hashed keys, each key in the first free slot from its own on, so that a key is found in
    the run of filled slots that starts at its own. An entry of a large table takes 24 to 48 bytes, half as many where
    keys are below 2^32; one of a small table twice as many.

    Args:
        keys: int64, all different.
        rows: Row of each key, at least 0; int32 or int64.

    Example:
        >>> index = KeyIndex(np.array([10, 11, -1]), np.array([2, 3, 4], np.int32))
        >>> index.rows_of(np.array([11, 12, 2**64 - 1], np.uint64), unknown=1).tolist()
        [3, 1, 4]
    """

    def __init__(self, keys: npt.NDArray[np.int64], rows: npt.NDArray[Any]) -> None:
        patterns = np.ascontiguousarray(keys).view(np.uint64)
        roomy = _ROOMY if len(patterns) <= _SMALL else _NARROW
        bits = max(1, (roomy * len(patterns)).bit_length())
        self._is_empty = not len(patterns)
        self._shift = np.uint64(64 - bits)
        homes = self._home(patterns)
        order = np.argsort(homes, kind="stable")
        patterns, homes, rows = patterns[order], homes[order], rows[order]
        count = np.arange(len(homes))
        slots = np.maximum.accumulate(homes - count) + count  # the first free one after all before
        size = max(1 << bits, int(slots[-1]) + 1 if len(slots) else 0) + 1  # the last one is empty: every search ends
        short = not len(patterns) or int(patterns.max()) <= np.iinfo(np.uint32).max
        # An empty slot repeats some key: a search for that one starts at a filled slot and ends before an empty one.
        filler = patterns[0] if len(patterns) else 0
        self._keys = np.full(size, filler, np.uint32 if short else np.uint64)
        self._rows = np.full(size, _EMPTY, rows.dtype)
        self._keys[slots], self._rows[slots] = patterns, rows

    def rows_of(self, keys: npt.NDArray[Any], unknown: int) -> npt.NDArray[Any]:
        """Return the row of each key, `unknown` where there is none.

        Args:
            keys: uint32 or uint64 `[n]`; bit patterns of the int64 keys.
            unknown: Row of keys that are not there.
        """
        if self._is_empty:
            return np.full(len(keys), unknown, self._rows.dtype)
        found = np.empty(len(keys), self._rows.dtype)
        for start in range(0, len(keys), _AT_ONCE):
            patterns = keys[start : start + _AT_ONCE]
            slots = self._home(patterns)
            rows = self._rows.take(slots)
            astray = np.flatnonzero(self._keys.take(slots) != patterns)
            slots = slots.take(astray)
            while len(astray):
                goes_on = rows.take(astray) != _EMPTY
                rows[astray[~goes_on]] = unknown
                astray, slots = astray[goes_on], slots[goes_on] + 1
                rows[astray] = self._rows.take(slots)
                still = self._keys.take(slots) != patterns.take(astray)
                astray, slots = astray[still], slots[still]
            found[start : start + _AT_ONCE] = rows
        return found

    def _home(self, patterns: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        hashed = np.multiply(patterns, _FACTOR, dtype=np.uint64)
        hashed >>= self._shift
        homes: npt.NDArray[np.int64] = hashed.view(np.int64)
        return homes
