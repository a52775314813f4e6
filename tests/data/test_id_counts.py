"""Counts of table rows against collections.Counter, exact and sketched."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tfdlrm.data.id_counts import ExactCounts, SketchCounts, count_tables


def draws(rows: int = 20_000) -> np.ndarray:
    ids = np.random.default_rng(2).zipf(1.3, rows)
    return (ids % 5000).astype(np.int32)


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return draws()


def filled(counts, ids):
    for part in np.split(ids, [0, 10, 3000, 15_000]):
        counts.add(part)
    return counts


def test_exact_counts(ids):
    counts, truth = filled(ExactCounts(5000), ids), Counter(ids.tolist())
    assert (counts.total, counts.used(), counts.error) == (len(ids), len(truth), 0)
    expected = sorted(truth.items(), key=lambda item: (-item[1], item[0]))
    assert [tuple(row) for row in counts.top(300)] == expected[:300]
    assert [tuple(row) for row in counts.top(100_000)] == expected
    sums = np.cumsum([count for _, count in expected])
    np.testing.assert_allclose(counts.coverage([1, 100, 10**7]), [sums[0] / 20_000, sums[99] / 20_000, 1])


def test_a_sketch_keeps_its_promise(ids):
    counts, truth = filled(SketchCounts(5000, entries=200), ids), Counter(ids.tolist())
    assert (counts.total, counts.used()) == (len(ids), len(truth))
    assert 0 < counts.error <= len(ids) / 200
    top = counts.top(200)
    assert all(truth[row] - counts.error <= count <= truth[row] for row, count in top)
    found = {row for row, _ in top}
    assert {row for row, count in truth.items() if count > counts.error} <= found
    assert counts.coverage([1])[0] <= max(truth.values()) / len(ids)


def test_a_sketch_with_room_for_all_is_exact(ids):
    sketch, exact = filled(SketchCounts(5000, entries=5000), ids), filled(ExactCounts(5000), ids)
    assert sketch.error == 0
    assert sketch.top(50) == exact.top(50)


def test_the_largest_tables_are_sketched():
    counts = count_tables({"a": 60, "b": 10, "c": 30}, counted_rows=45)
    assert {name: table.is_exact for name, table in counts.items()} == {"a": False, "b": True, "c": True}
    assert list(counts) == ["a", "b", "c"]


def test_a_table_without_values():
    for counts in (ExactCounts(3), SketchCounts(3)):
        assert (counts.used(), counts.top(2), counts.coverage([1])) == (0, [], [0.0])
