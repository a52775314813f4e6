from __future__ import annotations

import dataclasses

import numpy as np

from tfdlrm.metrics.binary import evaluate_binary
from tfdlrm.report.html import render
from tfdlrm.report.run_comparison import ComparedRun, comparison_section, same_rows

HISTORY = [{"rows_seen": 10 * i, "training_loss": 0.6, "log_loss": 0.7 - i / 50, "auc": 0.6} for i in (1, 2)]


def run(name: str, noise: float, seed: int = 0, rows: int = 800) -> ComparedRun:
    rng = np.random.default_rng(seed)
    truth = rng.random(rows)
    labels = (rng.random(rows) < truth).astype(np.float32)
    scores = np.clip(truth + noise * np.random.default_rng(7).normal(size=rows), 0.01, 0.99)
    return ComparedRun(name, evaluate_binary(labels, scores).as_dict(), labels, scores, None, HISTORY)


def test_better_worse_and_the_same_are_called_so() -> None:
    good, bad = run("good", 0.0), run("bad", 0.6)
    assert "by AUC this run is better than bad (+0." in comparison_section(good, bad, []).text[0]
    line = comparison_section(bad, good, []).text[0]
    assert "by AUC this run is worse than good (-0." in line and "by log loss this run is worse than good (+" in line
    assert "not told apart from good" in comparison_section(good, good, []).text[0]


def test_table_holds_both_their_difference_and_its_interval() -> None:
    good, bad = run("good", 0.0), run("bad", 0.6)
    section = comparison_section(good, bad, [("train.epochs", "1", "2")])
    metrics, settings = section.tables
    assert metrics.columns[1:3] == ["good", "bad"]
    name, here, there, difference, interval = metrics.rows[0]
    assert name == "AUC" and (here, there) == (f"{good.metrics['auc']:.4f}", f"{bad.metrics['auc']:.4f}")
    assert difference == f"{good.metrics['auc'] - bad.metrics['auc']:+.4f}"
    low, high = (float(text) for text in interval.split(" to "))
    assert low < float(difference) < high and low > 0
    assert settings.rows == [("train.epochs", "1", "2")]
    assert len(section.plots) == 3
    assert render("page", [section]).count("<img") == 3


def test_other_rows_have_no_interval() -> None:
    section = comparison_section(run("a", 0.1), run("b", 0.1, seed=5), [])
    assert "judged by different rows (800 here, 800 there)" in section.text[0]
    assert all(row[-1] == "" for row in section.tables[0].rows)


def test_rows_are_the_same_where_labels_and_weights_are() -> None:
    one = run("a", 0.1)
    weighted = dataclasses.replace(one, sample_weight=np.ones(800))
    assert same_rows(one, run("b", 0.6)) and not same_rows(one, run("b", 0.6, rows=799))
    assert not same_rows(one, weighted) and same_rows(weighted, weighted)
    assert not same_rows(weighted, dataclasses.replace(one, sample_weight=np.full(800, 2.0)))


def test_one_label_and_no_validation_leave_curves_out() -> None:
    one = dataclasses.replace(run("a", 0.1), labels=np.zeros(800, np.float32), history=[])
    one = dataclasses.replace(one, metrics={**one.metrics, "auc": None})
    section = comparison_section(one, one, [])
    assert len(section.plots) == 1 and section.tables[0].rows[0][1:4] == ["-", "-", "-"]
    assert section.tables[1].rows == []
