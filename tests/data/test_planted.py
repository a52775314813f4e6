"""Tests of tfdlrm.data.planted: the rows, and that their stated probabilities are the true ones."""

from __future__ import annotations

import csv
import gzip
import re
import time

import numpy as np
import polars as pl
import pytest
from scipy import stats
from sklearn import metrics

from tfdlrm.data import planted
from tfdlrm.data.planted import CARDINALITIES, PAIRS, bayes_path, planted_chunks, read_bayes, write_planted
from tfdlrm.spec.criteo import COLUMNS, DENSE_COLUMNS, SPARSE_COLUMNS
from tfdlrm.spec.errors import DataError

ROWS = 100_000
GOLDEN_ROW = (
    "0\t10\t0\t3\t\t\t33\t\t15\t85\t2\t3\t\t5\t"
    "effacce3\tdff499c6\taee12f0f\tbfe8338c\t6ddaf848\tdfeb2596\tc899953f\t4283847e\tcceb21bd\tf8396714\t"
    "1287591a\t4e81d810\t89e58ac9\t6023826b\t69971d8b\te43cf8d1\tb5e09448\t60847f6a\tb8cd8ee0\t4ca74736\tf32096f3\t\tfdf22bc1\t21efee8e\tf2beacc4\t328d1f1e\n"
)
GOLDEN_PROBABILITY = 0.086214


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Write a file once; return its path and summary."""
    path = tmp_path_factory.mktemp("planted") / "train.txt"
    return path, write_planted(path, ROWS, seed=7)


@pytest.fixture(scope="module")
def rows(written):
    """Return the file as the csv module reads it."""
    with open(written[0], newline="", encoding="ascii") as file:
        return list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_rows_have_criteos_format(written, rows):
    assert len(rows) == ROWS
    assert {len(row) for row in rows} == {1 + 13 + 26}
    assert {row[0] for row in rows} == {"0", "1"}
    assert all(re.fullmatch(r"-?\d*", field) for field in {field for row in rows for field in row[1:14]})
    assert all(re.fullmatch(r"([0-9a-f]{8})?", field) for field in {field for row in rows for field in row[14:]})
    text = written[0].read_bytes()
    assert text.endswith(b"\n") and b"\r" not in text and b"\0" not in text


def test_counts_are_mostly_small_some_missing_some_negative(rows):
    columns = {c: [row[1 + i] for row in rows] for i, c in enumerate(DENSE_COLUMNS)}
    missing = {c: values.count("") / ROWS for c, values in columns.items()}
    assert missing["I12"] == pytest.approx(0.7, abs=0.01)
    assert missing["I2"] == missing["I8"] == 0
    assert sum(share > 0.01 for share in missing.values()) >= 8
    lowest = {c: min(int(v) for v in values if v) for c, values in columns.items()}
    assert lowest["I2"] == -2 and lowest["I11"] == -1
    assert all(low >= 0 for c, low in lowest.items() if c not in ("I2", "I11"))


def test_categories_are_zipf_distributed_over_the_stated_cardinalities(rows):
    assert len(CARDINALITIES) == 26 and min(CARDINALITIES) == 3 and max(CARDINALITIES) == 100_000
    everywhere = []
    for i, (c, n) in enumerate(zip(SPARSE_COLUMNS, CARDINALITIES, strict=True)):
        values = pl.Series([row[14 + i] for row in rows])
        seen = values.filter(values != "").value_counts(sort=True)["count"].to_numpy()
        assert seen.size <= n and (seen.size == n or n > 300), c
        everywhere += values.unique().to_list()
        # Shares of the first five ranks, from the integral of (x + 1.5) ** (-5 / 3).
        edges = np.array([(x + 1.5) ** (-2 / 3) for x in (*range(6), n)])
        share = (edges[:-2] - edges[1:-1]) / (edges[0] - edges[-1])
        k = min(5, n)
        assert seen[:k] / seen.sum() == pytest.approx(share[:k], abs=0.006), c
    real = [v for v in everywhere if v]
    assert len(real) == len(set(real)), "a value must not occur in two columns"
    assert 8 <= everywhere.count("") < 26
    assert "00000000" not in real, "some readers take 0 for missing"


def test_summary_is_what_the_rows_say(written, rows):
    _, summary = written
    p = read_bayes(written[0]).astype(np.float64)
    y = np.array([row[0] == "1" for row in rows])
    assert summary.rows == p.size == ROWS
    assert summary.click_rate == pytest.approx(y.mean(), abs=1e-12)
    # In expectation every row is a click with weight p and none with weight 1 - p.
    twice = metrics.roc_auc_score(np.r_[np.ones(ROWS), np.zeros(ROWS)], np.r_[p, p], sample_weight=np.r_[p, 1 - p])
    assert summary.bayes_auc == pytest.approx(twice, abs=1e-5)
    assert summary.bayes_log_loss == pytest.approx(np.mean(stats.entropy([p, 1 - p])), abs=1e-9)


def test_click_rate_and_bayes_auc_are_those_promised(written):
    assert written[1].click_rate == pytest.approx(0.25, abs=0.005)
    assert written[1].bayes_auc == pytest.approx(0.80, abs=0.01)


def test_labels_are_bernoulli_draws_of_the_probabilities(written, rows):
    p = read_bayes(written[0]).astype(np.float64)
    y = np.array([row[0] == "1" for row in rows], float)
    assert p.min() > 0 and p.max() < 1
    order = np.argsort(p)
    for part in np.array_split(order, 20):
        z = (y[part].sum() - p[part].sum()) / np.sqrt(np.sum(p[part] * (1 - p[part])))
        assert abs(z) < 4
    assert metrics.roc_auc_score(y, p) == pytest.approx(written[1].bayes_auc, abs=0.005)
    assert metrics.log_loss(y, p) == pytest.approx(written[1].bayes_log_loss, abs=0.005)


def test_probabilities_are_the_teachers_for_the_written_values(written, rows):
    teacher = planted._teacher()
    place = {c: {text: i for i, text in enumerate(teacher.texts[c])} for c in SPARSE_COLUMNS}
    p = read_bayes(written[0])
    for row in [0, 1, 65_535, 65_536, ROWS - 1]:
        record = dict(zip(COLUMNS, rows[row], strict=True))
        total = 0.0
        for c, slope, (mean, spread, *_) in zip(DENSE_COLUMNS, teacher.slopes, planted._COUNTS, strict=True):
            level = (np.log(1 + max(int(record[c] or 0), 0)) - mean) / spread
            total += slope * level + planted._CURVED.get(c, 0) * abs(slope) * level**2
        ids = {c: place[c][record[c]] for c in SPARSE_COLUMNS}
        total += sum(float(teacher.effects[c][i]) for c, i in ids.items())
        for a, b in PAIRS:
            u, v = teacher.vectors[a][:, ids[a]], teacher.vectors[b][:, ids[b]]
            total += float(teacher.dot_weight) * sum(float(x) * float(y) for x, y in zip(u, v, strict=True))
        logit = planted._SCALE * total + planted._BIAS
        assert p[row] == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-4)


def test_a_large_part_of_the_logit_is_no_sum_of_terms_of_single_columns():
    assert len(set(PAIRS)) >= 10
    chunk = next(planted_chunks(60_000))
    logit = np.log(chunk.probability / (1 - chunk.probability)).astype(np.float64)
    frame = chunk.frame.select(SPARSE_COLUMNS).with_columns(logit=pl.Series(logit))
    a, b = "C17", "C23"
    mean = frame["logit"].mean()
    cells = frame.group_by(a, b).agg(pl.len(), cell=pl.col("logit").mean()).filter(pl.col("len") >= 100)
    for c in (a, b):
        cells = cells.join(frame.group_by(c).agg(pl.col("logit").mean().alias(f"mean_{c}")), on=c)
    rest = cells["cell"] - cells[f"mean_{a}"] - cells[f"mean_{b}"] + mean
    spread = np.sqrt(np.average(rest.to_numpy() ** 2, weights=cells["len"].to_numpy()))
    # One pair of twelve. Without a dot product the rest would be noise: about 1.3 / sqrt(400) = 0.07.
    assert spread > 0.15


def test_same_seed_same_bytes_whatever_happened_before(tmp_path):
    write_planted(tmp_path / "a", 70_000, seed=3)
    write_planted(tmp_path / "other", 10, seed=4)
    write_planted(tmp_path / "b", 70_000, seed=3, progress=lambda rows: np.random.seed(rows))
    for suffix in ("", ".bayes.npy"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_fewer_rows_are_the_head_of_more_and_seeds_differ(tmp_path):
    for name, rows, seed in (("long", 66_000, 1), ("short", 1000, 1), ("other", 1000, 2)):
        write_planted(tmp_path / name, rows, seed)
    long, short, other = ((tmp_path / name).read_bytes().splitlines() for name in ("long", "short", "other"))
    assert long[:1000] == short != other
    np.testing.assert_array_equal(read_bayes(tmp_path / "long")[:1000], read_bayes(tmp_path / "short"))


def test_the_teacher_does_not_change(tmp_path):
    write_planted(tmp_path / "one", 1)
    assert (tmp_path / "one").read_text() == GOLDEN_ROW
    assert read_bayes(tmp_path / "one")[0] == pytest.approx(GOLDEN_PROBABILITY, rel=1e-4)


def test_gzip_holds_the_same_text_and_the_same_bytes_each_time(tmp_path):
    for name in ("a.gz", "b.gz", "plain"):
        write_planted(tmp_path / name, 3000)
        time.sleep(0.01)
    assert gzip.decompress((tmp_path / "a.gz").read_bytes()) == (tmp_path / "plain").read_bytes()
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    np.testing.assert_array_equal(read_bayes(tmp_path / "a.gz"), read_bayes(tmp_path / "plain"))


def test_chunks_are_the_written_rows(tmp_path):
    write_planted(tmp_path / "rows", 70_000, seed=5)
    chunks = list(planted_chunks(70_000, seed=5))
    assert [chunk.frame.height for chunk in chunks] == [65_536, 4_464]
    frame = pl.concat([chunk.frame for chunk in chunks])
    assert frame.schema == {
        "label": pl.Float32,
        **dict.fromkeys(DENSE_COLUMNS, pl.Float64),
        **dict.fromkeys(SPARSE_COLUMNS, pl.String),
    }
    assert frame.select(pl.col(SPARSE_COLUMNS).null_count()).sum_horizontal()[0] == 0
    text = pl.read_csv(
        tmp_path / "rows", separator="\t", has_header=False, new_columns=COLUMNS, schema=frame.schema, null_values=[]
    )
    assert text.with_columns(pl.col(SPARSE_COLUMNS).fill_null("")).equals(frame)
    np.testing.assert_array_equal(np.concatenate([c.probability for c in chunks]), read_bayes(tmp_path / "rows"))


def test_progress_counts_every_row_once(tmp_path):
    seen = []
    write_planted(tmp_path / "rows", 140_000, progress=seen.append)
    assert seen == [65_536, 65_536, 8_928]


def test_an_interrupted_write_leaves_nothing_new_and_keeps_the_old(tmp_path):
    def stop(rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_planted(tmp_path / "rows", 10, progress=stop)
    assert list(tmp_path.iterdir()) == []
    write_planted(tmp_path / "rows", 10)
    before = (tmp_path / "rows").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_planted(tmp_path / "rows", 20, progress=stop)
    assert (tmp_path / "rows").read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [tmp_path / "rows", bayes_path(tmp_path / "rows")]


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`rows` must be at least 1. Received: 0."):
        write_planted(tmp_path / "rows", 0)
    with pytest.raises(ValueError, match="`seed` must be at least 0. Received: -1."):
        planted_chunks(10, -1)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file/rows: cannot be written: "):
        write_planted(tmp_path / "file" / "rows", 10)


def test_unreadable_probabilities_are_refused(tmp_path):
    path = tmp_path / "rows"
    with pytest.raises(DataError, match="rows.bayes.npy: cannot be read: No such file"):
        read_bayes(path)
    bayes_path(path).write_bytes(b"not numpy")
    with pytest.raises(DataError, match="rows.bayes.npy: not a NumPy file, or cut short"):
        read_bayes(path)
    write_planted(path, 10)
    bayes_path(path).write_bytes(bayes_path(path).read_bytes()[:-4])
    with pytest.raises(DataError, match="rows.bayes.npy: not a NumPy file, or cut short"):
        read_bayes(path)
    with open(bayes_path(path), "wb") as file:
        np.save(file, np.zeros((2, 2)))
    with pytest.raises(DataError, match=r"must hold float32 \[rows\]. Received: float64 \[2, 2\]"):
        read_bayes(path)
