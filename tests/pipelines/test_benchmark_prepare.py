"""The figures of the prepare benchmark are of rows that were really prepared, in a process of its own."""

from __future__ import annotations

from tfdlrm.pipelines.benchmarks.prepare import measure_prepare
from tfdlrm.spec.coding import TableCoding


def test_figures_of_a_small_run(tmp_path):
    figures = measure_prepare(2000, TableCoding(kind="hash", buckets=50), repeats=1, folder=tmp_path)
    assert figures["rows"] == 2000 and figures["repeats"] == len(figures["rates"]) == 1
    assert figures["coding"]["buckets"] == 50
    assert 0 < figures["rows_per_second"] == figures["slowest"] == figures["fastest"]
    # 13 numbers, 26 ids and a label of 4 bytes, and little around them.
    assert 2000 * 160 < figures["packed_bytes"] < 2000 * 165
    assert 100 << 20 < figures["peak_memory_bytes"] < 2 << 30
    assert set(figures["seconds"]) == {"count", "read", "encode"}
    assert list(tmp_path.iterdir()) == []
