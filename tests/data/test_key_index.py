"""Bulk look-ups and counts against dicts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tfdlrm.data import key_counts, key_index
from tfdlrm.data.key_counts import Counted, KeyCounter, count_keys, merge_counts
from tfdlrm.data.key_index import KeyIndex

# Multiples of the inverse of the hash's factor have neighbouring hashes: they all want the same slots.
INVERSE = pow(0x9E3779B97F4A7C15, -1, 2**64)
crowded = st.integers(0, 40).map(lambda n: n * INVERSE % 2**64)
crowded_at_the_end = st.integers(1, 40).map(lambda n: -n * INVERSE % 2**64)
any_key = st.one_of(
    st.integers(0, 30), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), crowded, crowded_at_the_end
)


def index_of(keys: list[int], dtype=np.int32) -> KeyIndex:
    return KeyIndex(np.array(keys, np.uint64).view(np.int64), np.arange(5, 5 + len(keys), dtype=dtype))


@settings(deadline=None, max_examples=200)
@given(st.lists(any_key, unique=True, max_size=60), st.lists(any_key, max_size=60), st.integers(0, 3))
@example([], [0, 1], 0)
@example([0], [0, 1, 2**64 - 1], 0)
@example([n * INVERSE % 2**64 for n in range(40)], [n * INVERSE % 2**64 for n in range(60)], 0)
@example([-n * INVERSE % 2**64 for n in range(1, 40)], [-n * INVERSE % 2**64 for n in range(60)], 2)
def test_rows_equal_those_of_a_dict(known, asked, unknown):
    rows = {key: 5 + place for place, key in enumerate(known)}
    asked = asked + known
    expected = [rows.get(key, unknown) for key in asked]
    assert index_of(known).rows_of(np.array(asked, np.uint64), unknown).tolist() == expected
    short = [key for key in asked if key < 2**32]
    found = index_of(known, np.int64).rows_of(np.array(short, np.uint32), unknown)
    assert found.dtype == np.int64 and found.tolist() == [rows.get(key, unknown) for key in short]


def test_many_keys(monkeypatch):
    monkeypatch.setattr(key_index, "_AT_ONCE", 1000)
    rng = np.random.default_rng(0)
    keys = np.unique(rng.integers(-(2**63), 2**63, 20_000))
    rows = rng.permutation(len(keys)).astype(np.int32)
    asked = np.concatenate([keys, keys + 1, rng.permutation(keys)])
    index = dict(zip(keys.tolist(), rows.tolist(), strict=True))
    found = KeyIndex(keys, rows).rows_of(asked.view(np.uint64), -7)
    assert found.tolist() == [index.get(key, -7) for key in asked.tolist()]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(any_key, max_size=20), max_size=5), st.booleans())
def test_counts_equal_those_of_a_counter(parts, short):
    if short:
        parts = [[key % 2**32 for key in part] for part in parts]
    arrays = [np.array(part, np.uint32 if max(part, default=0) < 2**32 else np.uint64) for part in parts]
    counter = KeyCounter()
    for array in arrays:
        counter.add(count_keys(array))
    keys, counts, _ = counter.take()
    assert (keys[1:] > keys[:-1]).all()
    expected = Counter(key for part in parts for key in part)
    assert dict(zip(keys.tolist(), counts.tolist(), strict=True)) == expected
    assert len(counter.take().keys) == 0


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_counts_beyond_32_bits_add_up(dtype):
    parts = [
        Counted(np.array([3, 9], dtype), np.array([2**32 + 1, 1])),
        Counted(np.array([9, 3], dtype), np.array([5, 7])),
    ]
    merged = merge_counts(parts)
    assert merged.keys.tolist() == [3, 9] and merged.counts.tolist() == [2**32 + 8, 6]


def test_counts_survive_merging_on_the_way(monkeypatch):
    monkeypatch.setattr(key_counts, "_MERGE_ABOVE", 8)
    values = np.random.default_rng(0).integers(0, 50, 1000).astype(np.uint32)
    counter = KeyCounter()
    for start in range(0, 1000, 7):
        counter.add(count_keys(values[start : start + 7]))
    keys, counts, _ = counter.take()
    assert dict(zip(keys.tolist(), counts.tolist(), strict=True)) == Counter(values.tolist())


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(any_key, max_size=20), max_size=5))
def test_first_places_are_kept(parts):
    counter = KeyCounter(firsts=True)
    seen: dict[int, list[int]] = {}
    place = 0
    for part in parts:
        places = np.arange(place, place + 3 * len(part), 3)
        for key, where in zip(part, places.tolist(), strict=True):
            seen.setdefault(key, []).append(where)
        counter.add(count_keys(np.array(part, np.uint64), places))
        place += 3 * len(part)
    keys, counts, firsts = counter.take()
    got = dict(zip(keys.tolist(), zip(counts.tolist(), firsts.tolist(), strict=True), strict=True))
    assert got == {key: (len(places), places[0]) for key, places in seen.items()}
