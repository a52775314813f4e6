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
        firsts: int64, the place where each key was first seen; `None` where nobody wants to know.
    """

    keys: npt.NDArray[Any]
    counts: npt.NDArray[np.int64]
    firsts: npt.NDArray[np.int64] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.keys.nbytes + self.counts.nbytes + (0 if self.firsts is None else self.firsts.nbytes)

    def slice(self, start: int, stop: int) -> Counted:
        """Return some of the keys, copied into memory where the arrays lie on disk."""
        parts = (None if a is None else np.array(a[start:stop]) for a in self)
        return Counted(*parts)  # type: ignore[arg-type]

    @classmethod
    def empty(cls, firsts: bool = False) -> Counted:
        """Return no keys."""
        none = np.empty(0, np.int64)
        return cls(np.empty(0, np.uint32), none, none if firsts else None)


def count_keys(keys: npt.NDArray[Any], places: npt.NDArray[np.int64] | None = None) -> Counted:
    """Count keys; those returned are strictly ascending.

    Args:
        keys: uint32 or uint64 `[n]`.
        places: Where each was seen, ascending, for `firsts`.
    """
    if places is not None:
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        starts = _first_of_each(keys)
        return Counted(keys[starts], np.diff(starts, append=len(keys)), places[order[starts]])
    keys = np.sort(keys)
    starts = _first_of_each(keys)
    return Counted(keys[starts], np.diff(starts, append=len(keys)))


def merge_counts(parts: list[Counted]) -> Counted:
    """Add up counts, strictly ascending by key; the keys are uint32 where those of all parts are."""
    keys = np.concatenate([part.keys for part in parts])
    counts = np.concatenate([part.counts for part in parts])
    if any(part.firsts is not None for part in parts):
        order = np.argsort(keys, kind="stable")
        keys, counts = keys[order], counts[order]
        firsts = np.concatenate([part.firsts for part in parts if part.firsts is not None])[order]
        starts = _first_of_each(keys)
        if not len(starts):
            return Counted(keys, counts, firsts)
        return Counted(keys[starts], np.add.reduceat(counts, starts), np.minimum.reduceat(firsts, starts))
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
    """Counts of a stream of keys; memory grows with the number of distinct keys.

    Args:
        firsts: Whether to keep where each key was first seen. Defaults to `False`.
    """

    def __init__(self, firsts: bool = False) -> None:
        self._firsts = firsts
        self._clear()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._merged.nbytes + sum(part.nbytes for part in self._waiting)

    def add(self, counted: Counted) -> None:
        """Add counts."""
        self._waiting.append(counted)
        self._waiting_keys += len(counted.keys)
        if self._waiting_keys >= max(_MERGE_ABOVE, len(self._merged.keys)):
            self._merge()

    def take(self) -> Counted:
        """Return the counts, strictly ascending by key, and start anew from none."""
        self._merge()
        counted = self._merged
        self._clear()
        return counted

    def _clear(self) -> None:
        self._merged = Counted.empty(self._firsts)
        self._waiting: list[Counted] = []
        self._waiting_keys = 0

    def _merge(self) -> None:
        self._merged = merge_counts([self._merged, *self._waiting])
        self._waiting, self._waiting_keys = [], 0


def _first_of_each(ascending: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return where each value of a sorted array is first."""
    if not len(ascending):
        return np.empty(0, np.int64)
    return np.concatenate([np.zeros(1, np.int64), np.flatnonzero(ascending[1:] != ascending[:-1]) + 1])
