"""Stack distances of a trace of ids: how many different ids ago each one was last seen.

The distance of an id is its place in the list of all ids seen so far, the most recent first (an immediate repeat has
1), or 0 where it is new. It decides what a cache of any size would hold, and names nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tfdlrm.data.generators.stack_distances import StackDistances

Ids = npt.NDArray[np.int64]


class StackProfiler:
    """Takes a trace in pieces of any size and counts its stack distances.

    A piece of n ids takes O((n + s) log(n + s)) time for the s different ids before it, all of it in NumPy, so pieces
    should not be much shorter than s.

    Example:
        >>> profiler = StackProfiler()
        >>> profiler.add([1, 2, 3, 4, 5, 3]).tolist(), profiler.add([4, 1, 1, 6, 3]).tolist()
        ([0, 0, 0, 0, 0, 3], [3, 5, 1, 0, 4])
        >>> profiler.distribution().values.tolist()
        [0, 1, 3, 4, 5]
    """

    def __init__(self) -> None:
        self._stack: Ids = np.zeros(0, np.int64)  # the least recently seen first
        self._first_seen: list[Ids] = []
        self._counts: Ids = np.zeros(1, np.int64)

    def __len__(self) -> int:
        """Return the number of different ids so far."""
        return len(self._stack)

    def add(self, ids: npt.ArrayLike) -> Ids:
        """Take the next ids of the trace and return their stack distances.

        Args:
            ids: Integers `[n]`.

        Returns:
            int64 `[n]`, 0 for an id that was not seen before.
        """
        piece = np.asarray(ids, np.int64)
        # A trace that begins with each id of the stack, in its order, leaves the stack just as it is.
        distances, stack = _profile(np.concatenate([self._stack, piece]))
        own = distances[len(self._stack) :]
        self._stack = stack
        self._first_seen.append(piece[own == 0])
        self._counts = add_counts(self._counts, own)
        return own

    @property
    def first_seen(self) -> Ids:
        """The different ids, int64, in the order in which they were first seen."""
        return np.concatenate([np.zeros(0, np.int64), *self._first_seen])

    def distribution(self, padding: bool = False, keep_ids: bool = True) -> StackDistances:
        """Return how the distances so far are distributed.

        Args:
            padding: Whether to add n / c zeros, rounded up, for n distances up to c: more new ids.
            keep_ids: `False` numbers the ids 0, 1, ... as they were first seen, which hides what they were.

        Raises:
            DataError: no id was given so far.
        """
        first_seen = self.first_seen
        ids = first_seen if keep_ids else np.arange(len(first_seen))
        return StackDistances.from_counts(ids, self._counts, padding)


def stack_distances(ids: npt.ArrayLike) -> Ids:
    """Return the stack distance of every id of a trace, int64 `[n]`, 0 for a new one; O(n log n).

    Example:
        >>> stack_distances([7, 8, 7, 7]).tolist()
        [0, 0, 2, 1]
    """
    return StackProfiler().add(ids)


def add_counts(counts: Ids, distances: Ids) -> Ids:
    """Return how often each distance came, `counts` before and `distances` now; index d counts distance d."""
    more = np.bincount(distances, minlength=len(counts))
    more[: len(counts)] += counts
    return more


def _profile(ids: Ids) -> tuple[Ids, Ids]:
    """Return the stack distances of a whole trace, and the stack after it."""
    n = len(ids)
    order = np.argsort(ids, kind="stable")
    again = ids[order[1:]] == ids[order[:-1]]
    previous = np.full(n, -1, np.int64)  # where each id was last seen
    following = np.full(n, n, np.int64)  # where each is seen next
    previous[order[1:][again]] = order[:-1][again]
    following[order[:-1][again]] = order[1:][again]
    repeated = following[following < n]
    # Of the places before i, those last seen before `previous[i]` are all up to `previous[i]`, and each first sight
    # since then of another id: a distance but for a difference that is known.
    smaller = _smaller_before(np.concatenate([np.flatnonzero(previous < 0), repeated]))
    distances = np.zeros(n, np.int64)
    distances[repeated] = smaller[repeated] - previous[repeated]
    return distances, ids[following == n]


def _smaller_before(places: Ids) -> Ids:
    """Count for each number of a permutation of 0 to n - 1 how many smaller ones stand before it; indexed by number.

    Numbers are sorted by one bit after the other, the highest first. Two of them part at the highest bit in which they
    differ: there the larger one counts those of its group that lack this bit and stand before it.
    """
    n = len(places)
    numbers: npt.NDArray[np.signedinteger[Any]] = places.astype(np.int32 if n < 2**31 else np.int64)
    index = np.arange(n, dtype=numbers.dtype)
    counts = np.zeros(n, np.int64)
    for bit in reversed(range(max(n - 1, 0).bit_length())):
        low = (numbers >> bit) & 1 == 0
        lows_before = np.zeros(n + 1, numbers.dtype)
        np.cumsum(low, out=lows_before[1:])
        # All numbers that agree above this bit lie together, so a group starts where its least one belongs.
        start = (numbers >> (bit + 1)) << (bit + 1)
        before = lows_before[:-1] - lows_before[start]
        high = ~low
        counts[numbers[high]] += before[high]
        place = np.where(low, start + before, index - before + (1 << bit))
        sorted_by_bit = np.empty_like(numbers)
        sorted_by_bit[place] = numbers
        numbers = sorted_by_bit
    return counts
