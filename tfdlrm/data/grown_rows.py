"""Which row each value gets when a vocabulary grows: known values keep theirs, new ones get free rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tfdlrm.data.key_counts import Counted
from tfdlrm.data.vocabulary import Vocabulary, id_dtype
from tfdlrm.data.vocabulary_rows import NewArray, in_memory
from tfdlrm.spec.coding import TableCoding
from tfdlrm.spec.growth import Growth


class Grown(NamedTuple):
    """A vocabulary that grew.

    Attributes:
        vocabulary: Its keys and rows.
        last_seen: Version whose training rows had each key last, int32, in the order of the keys.
        new_rows: Rows of the values that got one, ascending: rows of values that lost theirs are among them.
        evicted: Values that lost their row.
        reused: How many of `new_rows` belonged to a value before.
    """

    vocabulary: Vocabulary
    last_seen: npt.NDArray[np.int32]
    new_rows: npt.NDArray[Any]
    evicted: int
    reused: int


def grown(
    coding: TableCoding,
    parent: Vocabulary,
    last_seen: npt.NDArray[np.int32],
    counted: Counted,
    rules: Growth,
    version: int,
    new: NewArray = in_memory,
) -> Grown:
    """Give the values of new training rows their rows.

    Values that `parent` knows keep theirs, unless they have not been seen for too long. The others, the most frequent
    first and equally frequent ones by key, get the free rows in ascending order, then rows beyond the last.

    Args:
        coding: The table's rules; rare and unseen values share a row below `first_id`.
        parent: What is known.
        last_seen: Version whose training rows had each of its keys last, int32.
        counted: Keys of the new training rows, strictly ascending as unsigned numbers, and their counts.
        rules: Which values get a row, and which lose theirs.
        version: Number of the vocabulary that is made.
        new: Makes the arrays of the vocabulary.

    Example:
        >>> parent = Vocabulary(np.array([10, 20]), np.array([2, 3], np.int32), rows=4)
        >>> counted = Counted(np.array([20, 30], np.uint32), np.array([5, 7]))
        >>> made = grown(TableCoding(), parent, np.array([1, 1], np.int32), counted, Growth(), 2)
        >>> made.vocabulary.keys.tolist(), made.vocabulary.ids.tolist(), made.last_seen.tolist()
        ([10, 20, 30], [2, 3, 4], [1, 2, 2])
    """
    keys, counts = _ascending(counted)
    places = np.searchsorted(parent.keys, keys)
    known = places < len(parent.keys)
    known[known] = parent.keys[places[known]] == keys[known]
    last_seen = last_seen.copy()
    last_seen[places[known]] = version
    kept_keys, kept_ids, kept_seen = parent.keys, parent.ids, last_seen
    if rules.evict_after:
        stays = version - last_seen < rules.evict_after
        kept_keys, kept_ids, kept_seen = parent.keys[stays], parent.ids[stays], last_seen[stays]
    admitted = _admitted(coding, rules, keys[~known], counts[~known], len(kept_keys))
    free = _free_rows(kept_ids, coding.first_id, parent.rows)[: len(admitted)]
    rows = parent.rows + len(admitted) - len(free)
    ids = np.concatenate([free, np.arange(parent.rows, rows)]).astype(id_dtype(rows))
    order = np.argsort(admitted)
    entries = len(kept_keys) + len(admitted)
    is_new = np.zeros(entries, np.bool_)
    is_new[np.searchsorted(kept_keys, admitted[order]) + np.arange(len(admitted))] = True
    made = Vocabulary(
        _merged(new("keys", entries, np.int64), is_new, admitted[order], kept_keys),
        _merged(new("ids", entries, id_dtype(rows)), is_new, ids[order], kept_ids),
        rows,
    )
    seen = _merged(np.empty(entries, np.int32), is_new, np.full(len(admitted), version, np.int32), kept_seen)
    return Grown(made, seen, ids, len(parent.keys) - len(kept_keys), len(free))


def _ascending(counted: Counted) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return keys and counts, ascending by key as a signed number: those from 2^63 on come first."""
    high = len(counted.keys)
    if counted.keys.dtype == np.uint64:
        high = int(np.searchsorted(counted.keys, np.uint64(2**63)))
    keys = np.array(counted.keys, np.uint64).view(np.int64)
    return np.roll(keys, -high), np.roll(counted.counts, -high)


def _admitted(
    coding: TableCoding, rules: Growth, keys: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], kept: int
) -> npt.NDArray[np.int64]:
    """Return the unknown keys that get a row, in the order in which they do."""
    frequent = counts >= (rules.admit_count or coding.min_count)
    keys, counts = keys[frequent], counts[frequent]
    most = len(keys) if rules.max_new_rows is None else rules.max_new_rows
    if coding.max_values is not None:
        most = min(most, max(0, coding.max_values - kept))
    chosen: npt.NDArray[np.int64] = keys[np.lexsort([keys, -counts])[:most]]
    return chosen


def _free_rows(used: npt.NDArray[Any], first: int, rows: int) -> npt.NDArray[np.int64]:
    """Return the rows from `first` on that no value has."""
    is_free = np.ones(max(0, rows - first), np.bool_)
    is_free[used - first] = False
    return first + np.flatnonzero(is_free)


def _merged(out: npt.NDArray[Any], is_new: npt.NDArray[np.bool_], new: Any, kept: Any) -> npt.NDArray[Any]:
    """Fill an array with new entries where they belong and old ones elsewhere."""
    out[is_new] = new
    out[~is_new] = kept
    return out
