"""Which row each counted key gets: counts in, vocabulary out, in passes over blocks that may lie on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdlrm.data.key_counts import Counted
from tfdlrm.data.vocabulary import Vocabulary, id_dtype, table_rows
from tfdlrm.spec.coding import TableCoding

_NEVER = np.iinfo(np.int64).max
_RANGES = 1 << 16
DIGITS_BYTES = 60
"""Memory that each key of a table takes while keys are ordered by their digits: all of the table are held at once."""
NewArray = Callable[[str, int, npt.DTypeLike], npt.NDArray[Any]]
"""Returns an array of a name, length and type, in memory or on disk."""


def in_memory(name: str, length: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return a new array in memory."""
    return np.empty(length, dtype)


def numbered(coding: TableCoding, counted: Counted, at_once: int, new: NewArray = in_memory) -> Vocabulary:
    """Give each key its row.

    Args:
        coding: The rules: `min_count`, `max_values`, `id_order` and the reserved rows.
        counted: Keys, strictly ascending as unsigned numbers, their counts, and where each was first seen if
            `id_order` asks for it. The arrays may be mapped from disk.
        at_once: How many keys are held in memory at a time, but where `id_order` is `"count_digits"`: all of them.
        new: Makes the arrays of the vocabulary.

    Returns:
        The vocabulary; its keys are ascending as int64, so that those from 2^63 on come first.
    """
    table = _Ranked(coding, counted, at_once)
    rows = table_rows(coding, table.kept)
    modulus = coding.id_modulus or rows
    rows = min(rows, modulus)
    drops = coding.rare_row == coding.oov_row  # rare values then need no entry: unknown ones get the same row
    entries = table.kept if drops else len(counted.keys)
    keys = new("keys", entries, np.int64)
    ids = new("ids", entries, id_dtype(rows))
    firsts = new("firsts", entries, np.int64) if coding.id_order == "first_seen" else None
    low = table.kept_below_sign() if coding.id_order == "key" else 0
    written = seen = 0
    for start, stop, ranks in table.blocks():
        kept = ranks < table.kept
        if start == 0:
            seen = 0  # of keys below 2^63, which are the first as unsigned numbers
        places = ranks
        if coding.id_order == "key":
            places = seen + np.cumsum(kept) - 1 + (low if start >= table.high else 0)
            seen += int(kept.sum())
        chosen = kept if drops else np.ones(len(kept), bool)
        end = written + int(chosen.sum())
        keys[written:end] = counted.keys[start:stop][chosen].astype(np.uint64).view(np.int64)
        ids[written:end] = np.where(kept, (coding.first_id + places) % modulus, coding.rare_row)[chosen]
        if firsts is not None and counted.firsts is not None:
            firsts[written:end] = np.where(kept, counted.firsts[start:stop], _NEVER)[chosen]
        written = end
    if firsts is not None:
        for part, ranks in _ranks(firsts, at_once):
            ids[part] = np.where(ranks < table.kept, (coding.first_id + ranks) % modulus, coding.rare_row)
    return Vocabulary(keys, ids, rows)


class _Ranked:
    """Keys in blocks with their ranks by count; equally frequent ones by key, as a signed number, or by its digits.

    The order by digits needs all keys in memory, `DIGITS_BYTES` each.

    Attributes:
        kept: How many keys get a row of their own: those of the lowest ranks.
        high: Place of the first key from 2^63 on, which is negative as int64.
    """

    def __init__(self, coding: TableCoding, counted: Counted, at_once: int) -> None:
        self._counted = counted
        self._by_digits = coding.id_order == "count_digits"
        keys = counted.keys
        self.high = int(np.searchsorted(keys, np.uint64(2**63))) if keys.dtype == np.uint64 else len(keys)
        ends = [(self.high, len(keys)), (0, self.high)]
        self._bounds = [(a, min(a + at_once, end)) for begin, end in ends for a in range(begin, end, at_once)]
        tally: Counter[int] = Counter()
        for start, stop in self._bounds:
            values, numbers = np.unique(counted.counts[start:stop], return_counts=True)
            tally.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
        frequent = sorted((count for count in tally if count >= coding.min_count), reverse=True)
        ends_of_counts = np.cumsum([tally[count] for count in frequent], dtype=np.int64).tolist()
        self._first_rank = dict(zip(frequent, [0, *ends_of_counts], strict=False))
        total = ends_of_counts[-1] if ends_of_counts else 0
        self.kept = total if coding.max_values is None else min(total, coding.max_values)

    def blocks(self) -> Iterator[tuple[int, int, npt.NDArray[np.int64]]]:
        """Yield start, stop and ranks of each block, ascending by key as a signed number."""
        if self._by_digits:
            yield from self._blocks_by_digits()
            return
        next_rank = dict(self._first_rank)
        for start, stop in self._bounds:
            counts, groups, sizes = np.unique(self._counted.counts[start:stop], return_inverse=True, return_counts=True)
            begin = np.array([next_rank.get(count, _NEVER // 2) for count in counts.tolist()], np.int64)
            order = np.argsort(groups, kind="stable")
            within = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            ranks = np.empty(len(groups), np.int64)
            ranks[order] = begin[groups[order]] + within
            for count, size in zip(counts.tolist(), sizes.tolist(), strict=True):
                if count in next_rank:
                    next_rank[count] += size
            yield start, stop, ranks

    def _blocks_by_digits(self) -> Iterator[tuple[int, int, npt.NDArray[np.int64]]]:
        by_text = np.argsort(self._counted.keys.astype("S20"), kind="stable")[::-1]
        order = by_text[np.argsort(-self._counted.counts[by_text], kind="stable")]
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.arange(len(order))
        for start, stop in self._bounds:
            yield start, stop, ranks[start:stop]

    def kept_below_sign(self) -> int:
        """Return how many of the kept keys are below 2^63."""
        return sum(int((ranks < self.kept).sum()) for start, _, ranks in self.blocks() if start < self.high)


def _ranks(values: npt.NDArray[np.int64], at_once: int) -> Iterator[tuple[Any, npt.NDArray[np.int64]]]:
    """Yield indices into `values` (all different, but for `_NEVER`) with the ranks of what is there."""
    if len(values) <= at_once:
        ranks = np.empty(len(values), np.int64)
        ranks[np.argsort(values, kind="stable")] = np.arange(len(values))
        yield slice(None), ranks
        return
    blocks = [slice(start, start + at_once) for start in range(0, len(values), at_once)]
    largest = max(int(block[block != _NEVER].max(initial=0)) for block in (values[b] for b in blocks))
    width = largest // _RANGES + 1
    sizes = np.zeros(_RANGES + 1, np.int64)  # the last range is that of `_NEVER`
    for block in blocks:
        sizes += np.bincount(np.minimum(values[block] // width, _RANGES), minlength=_RANGES + 1)
    done = first = 0
    while first < len(sizes):
        last = first + 1
        while last < len(sizes) and sizes[first : last + 1].sum() <= at_once:
            last += 1
        low, high = first * width, last * width if last < len(sizes) else _NEVER
        found = [b.start + np.flatnonzero((values[b] >= low) & (values[b] < high)) for b in blocks]
        indices = np.concatenate(found)
        ranks = np.empty(len(indices), np.int64)
        ranks[np.argsort(values[indices], kind="stable")] = done + np.arange(len(indices))
        yield indices, ranks
        done += len(indices)
        first = last
