"""Rows of a vocabulary that grows, against the rule written with dictionaries."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfdlrm.data.grown_rows import Grown, grown
from tfdlrm.data.key_counts import Counted, count_keys
from tfdlrm.data.vocabulary import Vocabulary, id_dtype
from tfdlrm.spec.coding import TableCoding
from tfdlrm.spec.growth import Growth

FIRST = 2


def counted(counts: dict[int, int]) -> Counted:
    """Return counts by key; keys are signed here and unsigned there."""
    keys = sorted(key % 2**64 for key in counts)
    signed = [key - 2**64 if key >= 2**63 else key for key in keys]
    kind = np.uint32 if all(key < 2**32 for key in keys) else np.uint64
    return Counted(np.array(keys, kind), np.array([counts[key] for key in signed], np.int64))


def vocabulary(rows_of: dict[int, int], rows: int) -> Vocabulary:
    keys = sorted(rows_of)
    return Vocabulary(np.array(keys, np.int64), np.array([rows_of[k] for k in keys], id_dtype(rows)), rows)


def grow(parent: dict[int, int], rows: int, seen: dict[int, int], day: dict[int, int], version: int, **rules: Any):
    coding = TableCoding(min_count=rules.pop("min_count", 1), max_values=rules.pop("max_values", None))
    own = vocabulary(parent, rows)
    last = np.array([seen[key] for key in own.keys.tolist()], np.int32)
    from_run = {"from_run": "x"}
    return grown(coding, own, last, counted(day), Growth.model_validate({**from_run, **rules}), version)


def as_dicts(made: Grown) -> tuple[dict[int, int], dict[int, int]]:
    keys = made.vocabulary.keys.tolist()
    return dict(zip(keys, made.vocabulary.ids.tolist(), strict=True)), dict(
        zip(keys, made.last_seen.tolist(), strict=True)
    )


def by_dictionaries(
    parent: dict[int, int],
    rows: int,
    seen: dict[int, int],
    day: dict[int, int],
    version: int,
    admit_count: int,
    max_new_rows: int | None,
    evict_after: int,
) -> tuple[dict[int, int], int, dict[int, int]]:
    seen = {key: version if key in day else last for key, last in seen.items()}
    if evict_after:
        seen = {key: last for key, last in seen.items() if version - last < evict_after}
    kept = {key: parent[key] for key in seen}
    new = sorted((k for k, n in day.items() if k not in parent and n >= admit_count), key=lambda k: (-day[k], k))
    for key in new[:max_new_rows]:
        row = FIRST
        while row in kept.values():
            row += 1
        kept[key] = row
        seen[key] = version
        rows = max(rows, row + 1)
    return kept, rows, seen


KEYS = st.one_of(st.integers(0, 12), st.sampled_from([-(2**63), -1, 2**63 - 1, 2**40]))
DAYS = st.lists(st.dictionaries(KEYS, st.integers(1, 5), max_size=12), min_size=2, max_size=5)


@given(days=DAYS, admit=st.integers(1, 3), most=st.none() | st.integers(0, 4), evict=st.integers(0, 3))
def test_days_in_a_row_follow_the_rule(days: list[dict[int, int]], admit: int, most: int | None, evict: int) -> None:
    rows_of: dict[int, int] = {key: FIRST + i for i, key in enumerate(days[0])}
    rows, seen = FIRST + len(rows_of), dict.fromkeys(rows_of, 1)
    for version, day in enumerate(days[1:], start=2):
        made = grow(rows_of, rows, seen, day, version, admit_count=admit, max_new_rows=most, evict_after=evict)
        before, rows_before = rows_of, rows
        rows_of, rows, seen = by_dictionaries(rows_of, rows, seen, day, version, admit, most, evict)
        assert as_dicts(made) == (rows_of, seen)
        assert made.vocabulary.rows == rows
        came = [row for key, row in rows_of.items() if key not in before]
        assert sorted(made.new_rows.tolist()) == sorted(came)
        assert made.reused == sum(row < rows_before for row in came)
        assert made.evicted == len(set(before) - set(rows_of))
        assert {key: before[key] for key in before if key in rows_of} == {
            key: row for key, row in rows_of.items() if key in before
        }


def test_min_count_admits_where_nothing_else_is_said() -> None:
    made = grow({10: 2}, 3, {10: 1}, {7: 4, 8: 5, 10: 1}, 2, min_count=5)
    assert as_dicts(made)[0] == {8: 3, 10: 2}
    assert as_dicts(grow({10: 2}, 3, {10: 1}, {7: 4, 8: 5}, 2, min_count=5, admit_count=4))[0] == {7: 4, 8: 3, 10: 2}


def test_max_values_of_the_coding_holds_for_all_that_have_rows() -> None:
    made = grow({1: 2, 2: 3}, 4, {1: 1, 2: 1}, {1: 1, 5: 9, 6: 8, 7: 7}, 2, max_values=4)
    assert as_dicts(made)[0] == {1: 2, 2: 3, 5: 4, 6: 5}
    full = grow({1: 2, 2: 3}, 4, {1: 1, 2: 1}, {5: 9}, 2, max_values=1)
    assert as_dicts(full)[0] == {1: 2, 2: 3}
    freed = grow({1: 2, 2: 3}, 4, {1: 1, 2: 1}, {1: 1, 5: 9, 6: 9}, 2, max_values=2, evict_after=1)
    assert as_dicts(freed)[0] == {1: 2, 5: 3} and freed.new_rows.tolist() == [3]


def test_rows_that_no_value_took_stay_free_for_later() -> None:
    first = grow({1: 2, 2: 3, 3: 4}, 5, {1: 1, 2: 1, 3: 1}, {3: 1}, 2, evict_after=1)
    assert as_dicts(first) == ({3: 4}, {3: 2}) and first.vocabulary.rows == 5 and first.evicted == 2
    second = grow({3: 4}, 5, {3: 2}, {3: 1, 8: 2, 9: 3, 7: 1}, 3, evict_after=1)
    assert as_dicts(second)[0] == {9: 2, 8: 3, 3: 4, 7: 5} and second.reused == 2


def test_a_large_vocabulary_keeps_every_row() -> None:
    rng = np.random.default_rng(0)
    keys = np.unique(rng.integers(-(2**63), 2**63, 50_000))
    ids = (FIRST + rng.permutation(len(keys))).astype(np.int32)
    own = Vocabulary(keys, ids, FIRST + len(keys))
    drawn = rng.integers(0, 2**64, 30_000, dtype=np.uint64)
    day = count_keys(np.concatenate([drawn, keys[::7].view(np.uint64)]))
    made = grown(TableCoding(), own, np.ones(len(keys), np.int32), day, Growth(), 2)
    places = np.searchsorted(made.vocabulary.keys, keys)
    np.testing.assert_array_equal(made.vocabulary.ids[places], ids)
    np.testing.assert_array_equal(made.last_seen[places] == 2, np.arange(len(keys)) % 7 == 0)
    assert sorted(made.vocabulary.ids.tolist()) == list(range(FIRST, made.vocabulary.rows))
    tally = Counter(day.keys.tolist())
    assert len(made.vocabulary.keys) == len(set(tally) | set(keys.view(np.uint64).tolist()))


def test_rules_without_a_run_are_refused() -> None:
    with pytest.raises(ValueError, match="`from_run` must be given where `evict_after` is"):
        Growth(evict_after=2)
