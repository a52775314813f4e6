"""Splits against small examples worked out by hand."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tfdlrm.data.dropped_rows import kept_rows
from tfdlrm.data.reader import RawChunk, RawReader
from tfdlrm.data.splits import SplitPlan, read_times
from tfdlrm.spec.errors import ConfigError, DataError
from tfdlrm.spec.raw import RawFormat, Split

FORMAT = RawFormat(columns=("label", "time", "key"), time="time")


def codes(split: Split, rows_per_file: list[int], times: pl.Series | None = None) -> list[int]:
    return SplitPlan.make(split, rows_per_file, times).codes_of_rows(np.arange(sum(rows_per_file))).tolist()


@pytest.mark.parametrize(
    ("fractions", "rows", "expected"),
    [
        ((0.8, 0.1, 0.1), [10], [0] * 8 + [1, 2]),
        ((0.8, 0.1, 0.1), [6, 4], [0] * 8 + [1, 2]),  # over all files
        ((0.8, 0.1, 0.1), [7], [0] * 6 + [2]),  # cuts at 5.6 and 6.3
        ((0.5, 0.5, 0.0), [5], [0, 0, 0, 1, 1]),
        ((0.9, 0.0, 0.1), [10], [0] * 9 + [2]),
        ((1.0, 0.0, 0.0), [3], [0, 0, 0]),
    ],
)
def test_order(fractions, rows, expected):
    assert codes(Split(by="order", fractions=fractions), rows) == expected


@pytest.mark.parametrize(
    ("days", "rows", "expected"),
    [
        (3, [9], [0] * 6 + [2, 2, 1]),  # the first half of the last day, rounded up, tests
        (3, [8], [0, 0, 0, 0, 0, 0, 2, 1]),  # parts of 3, 3, 2
        (2, [3, 2], [0, 0, 0, 2, 1]),  # files do not matter
        (0, [4, 1, 3], [0, 0, 0, 0, 0, 2, 2, 1]),  # one day a file
        (2, [2], [0, 2]),
    ],
)
def test_days(days, rows, expected):
    assert codes(Split(by="days", days=days), rows) == expected


def test_seven_days_of_the_kaggle_set():
    """45,840,617 rows are four days of 6,548,660 and three of 6,548,659; of the last, 3,274,330 rows test."""
    plan = SplitPlan.make(Split(by="days", days=7), [45_840_617])
    last = 45_840_617 - 6_548_659
    probes = {0: 0, last - 1: 0, last: 2, last + 3_274_329: 2, last + 3_274_330: 1, 45_840_616: 1}
    assert plan.codes_of_rows(np.array(list(probes))).tolist() == list(probes.values())


def test_folds():
    assert codes(Split(by="fold", folds=3, fold=0), [7]) == [2, 2, 2, 0, 0, 0, 0]
    assert codes(Split(by="fold", folds=3, fold=1), [7]) == [0, 0, 0, 2, 2, 0, 0]
    assert codes(Split(by="fold", folds=3, fold=2), [4, 3]) == [0, 0, 0, 0, 0, 2, 2]


def test_time_ranks_rows_and_keeps_the_order_of_ties():
    times = pl.Series([30, 10, 20, 10, 40, 20, 10, None, 10, 50, 20])
    split = Split(by="time", fractions=(0.3, 0.3, 0.4))
    # By time: rows 1 3 6 | 8 2 5 | 10 0 4 9; row 7 has none.
    assert codes(split, [11], times) == [2, 0, 1, 0, 2, 1, 0, -1, 1, 2, 2]


@pytest.mark.parametrize(
    "split",
    [Split(by="days", days=1), Split(by="days", days=0), Split(by="order", fractions=(0.1, 0.1, 0.8))],
    ids=lambda s: s.by,
)
def test_nothing_to_train_on_is_refused(split):
    with pytest.raises(ConfigError, match=r'split.by = "\w+" must leave rows to train on. Received: 4 rows.'):
        SplitPlan.make(split, [4])


def chunk_of(keys: list[str]) -> RawChunk:
    return RawChunk(pl.DataFrame({"extra:key": keys}), np.arange(len(keys)), len(keys))


def test_hash_depends_on_the_key_alone():
    keys = [str(i % 5000) for i in range(20_000)]
    plan = SplitPlan.make(Split(by="hash", key="key", fractions=(0.8, 0.1, 0.1)), [20_000])
    assert plan.key == "key"
    got = plan.codes(chunk_of(keys))

    def oracle(key: str) -> int:
        place = int(hashlib.blake2b(key.encode(), digest_size=8).hexdigest(), 16) / 2**64
        return 0 if place < 0.8 else 1 if place < 0.9 else 2

    assert got.tolist() == [oracle(key) for key in keys]
    shares = np.bincount(got, minlength=3) / len(keys)
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=0.02)
    # Pinned: another machine, process or version must give the same.
    assert plan.codes(chunk_of(["alice", "bob", "", "x1", "x2", "x3", "é"])).tolist() == [0, 0, 1, 0, 1, 2, 0]
    with pytest.raises(ConfigError, match="must be asked of its chunk"):
        plan.codes_of_rows(np.arange(3))


def test_hash_with_a_share_of_zero():
    keys = [str(i) for i in range(500)]
    for fractions, expected in (((0.5, 0.5, 0.0), {0, 1}), ((0.5, 0.0, 0.5), {0, 2}), ((1.0, 0.0, 0.0), {0})):
        plan = SplitPlan.make(Split(by="hash", key="key", fractions=fractions), [500])
        assert set(plan.codes(chunk_of(keys)).tolist()) == expected


def test_random_depends_on_the_seed_and_the_place_alone():
    plan = SplitPlan.make(Split(by="random", seed=5), [30_000])
    got = plan.codes_of_rows(np.arange(30_000))
    assert plan.stretches() is None
    np.testing.assert_allclose(np.bincount(got, minlength=3) / len(got), [0.8, 0.1, 0.1], atol=0.01)
    some = np.array([3, 17, 18, 29_999])
    assert plan.codes_of_rows(some).tolist() == got[some].tolist()  # however the rows are cut into chunks
    # Pinned: another machine or version must give the same.
    assert plan.codes_of_rows(np.arange(16)).tolist() == [0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    other = SplitPlan.make(Split(by="random", seed=6), [30_000]).codes_of_rows(np.arange(30_000))
    assert 0.6 < (other == got).mean() < 0.72  # independent draws agree on 0.8^2 + 0.1^2 + 0.1^2 of the rows
    # Rows that are left out are left out of every split alike.
    dropped = ~kept_rows(np.arange(30_000), np.zeros(30_000, np.float32), 0.5, seed=5)
    assert abs((got[dropped] == 0).mean() - 0.8) < 0.02


def test_random_with_a_share_of_zero():
    for fractions, expected in (((0.5, 0.5, 0.0), {0, 1}), ((0.5, 0.0, 0.5), {0, 2}), ((1.0, 0.0, 0.0), {0})):
        plan = SplitPlan.make(Split(by="random", fractions=fractions), [500])
        assert set(plan.codes_of_rows(np.arange(500)).tolist()) == expected
    assert plan.codes_of_rows(np.arange(0)).shape == (0,)


def test_hash_of_a_chunk_without_good_rows():
    empty = RawChunk(pl.DataFrame({"extra:key": pl.Series([], dtype=pl.String)}), np.arange(0), 1)
    got = SplitPlan.make(Split(by="hash", key="key"), [1]).codes(empty)
    assert (got.dtype, got.shape) == (np.int8, (0,))


def times_of(path: Path, lines: list[str], **options) -> list:
    path.write_text("".join(f"1\t{time}\tk\n" for time in lines))
    reader = RawReader(FORMAT, [path], extra=["time"], required=["time"], chunk_bytes=20, **options)
    return read_times(reader, "time").to_list()


def test_times_are_integers_numbers_or_text(tmp_path):
    path = tmp_path / "rows.tsv"
    exact = 2**53 + 1  # no float64
    assert times_of(path, ["5", "-3", str(exact)]) == [5, -3, exact]
    assert times_of(path, ["5", "7", " 2.5", "1e3"] * 3) == [5.0, 7.0, 2.5, 1000.0] * 3
    assert times_of(path, ["2024-01-02", "7"]) == ["2024-01-02", "7"]
    assert times_of(path, ["5", "", "9"], max_bad_share=0.4) == [5, None, 9]
    with pytest.raises(DataError) as caught:
        times_of(path, ["5", "", "9"])
    assert str(caught.value) == f"{path}:2: `time` must not be empty. Received: ''."


def test_a_time_that_is_no_number_among_numbers_is_refused(tmp_path):
    path = tmp_path / "rows.tsv"
    for text in ("soon", "nan"):
        with pytest.raises(DataError) as caught:
            times_of(path, ["5", "6", "7", text, "9"])
        assert str(caught.value) == f"{path}:4: `time` must be a number, as in the first row. Received: {text!r}."


@pytest.mark.parametrize(
    ("split", "rows", "expected"),
    [
        (Split(by="days", days=2, odd_row="second"), [3, 3], [0, 0, 0, 2, 1, 1]),
        (Split(by="days", days=2, last_day="validation_first"), [3, 3], [0, 0, 0, 1, 1, 2]),
        (Split(by="days", days=0, last_day="test"), [2, 3], [0, 0, 2, 2, 2]),
        (Split(by="whole_and_half"), [5], [0, 0, 0, 3, 3]),  # the odd row trains only
        (Split(by="whole_and_half"), [3, 1], [0, 0, 3, 3]),
    ],
)
def test_last_days_of_published_results(split, rows, expected):
    assert codes(split, rows) == expected
