"""How often each 64-bit key was seen, by sorting: the quickest way of counting numbers in NumPy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

_MERGE_ABOVE = 1 << 18  # counts are merged when at least this many wait
_SHORT = np.iinfo(np.uint32).max


class Counted(NamedTuple):
    """Keys and how often each was seen; a key may be there several times, and then they add up.

    Attributes:
        keys: uint32 or uint64.
        counts: int64.
    """

    keys: npt.NDArray[Any]
    counts: npt.NDArray[np.int64]


def count_keys(keys: npt.NDArray[Any]) -> Counted:
    """Count keys, uint32 or uint64 `[n]`; those returned are strictly ascending."""
    keys = np.sort(keys)
    starts = _first_of_each(keys)
    return Counted(keys[starts], np.diff(starts, append=len(keys)))


def merge_counts(parts: list[Counted]) -> Counted:
    """Add up counts, strictly ascending by key; the keys are uint32 where those of all parts are."""
    keys = np.concatenate([part.keys for part in parts])
    counts = np.concatenate([part.counts for part in parts])
    if keys.dtype == np.uint32 and (not len(counts) or int(counts.max()) <= _SHORT):
        # Key and count side by side in one word: sorting words is many times faster than finding an order.
        words = np.sort(keys.astype(np.uint64) << np.uint64(32) | counts.view(np.uint64))
        keys, counts = (words >> np.uint64(32)).astype(np.uint32), (words & np.uint64(_SHORT)).view(np.int64)
    else:
        order = np.argsort(keys, kind="stable")  # quick on the ascending runs that the parts are
        keys, counts = keys[order], counts[order]
    starts = _first_of_each(keys)
    return Counted(keys[starts], np.add.reduceat(counts, starts) if len(starts) else counts)


class KeyCounter:
    """Counts of a stream of keys; memory grows with the number of distinct keys."""

    def __init__(self) -> None:
        self._merged = Counted(np.empty(0, np.uint32), np.empty(0, np.int64))
        self._waiting: list[Counted] = []
        self._waiting_keys = 0

    def add(self, counted: Counted) -> None:
        """Add counts."""
        self._waiting.append(counted)
        self._waiting_keys += len(counted.keys)
        if self._waiting_keys >= max(_MERGE_ABOVE, len(self._merged.keys)):
            self._merge()

    def total(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the keys seen as int64, ascending, and how often each was."""
        self._merge()
        keys = self._merged.keys.astype(np.uint64).view(np.int64)
        order = np.argsort(keys, kind="stable")  # keys of sixteen digits are negative now
        return keys[order], self._merged.counts[order]

    def _merge(self) -> None:
        self._merged = merge_counts([self._merged, *self._waiting])
        self._waiting, self._waiting_keys = [], 0


def _first_of_each(ascending: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return where each value of a sorted array is first."""
    if not len(ascending):
        return np.empty(0, np.int64)
    return np.concatenate([np.zeros(1, np.int64), np.flatnonzero(ascending[1:] != ascending[:-1]) + 1])
