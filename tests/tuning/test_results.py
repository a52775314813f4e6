"""Averages over seeds, the best trial, what nothing beats, and the table of all."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfdlrm.tuning.results import SeedResult, Spent, TrialResult, best_of, frame, pareto_front, ranked, rows_seen
from tfdlrm.tuning.sweep_config import sweep_config

SWEEP = sweep_config({"space": {}})


def trial(name, *losses, share=1.0, rows=100, rows_before=0, **known):
    seeds = tuple(
        SeedResult(
            seed=seed,
            metrics={"log_loss": loss, "auc": 1 - loss, "normalized_entropy": 2 * loss},
            rows=rows,
            steps=10,
            seconds=0.5,
        )
        for seed, loss in enumerate(losses)
    )
    spent = tuple(Spent(seed=seed.seed, rows=rows, seconds=0.5, rows_before=rows_before) for seed in seeds)
    ended = {"trial": name, "status": "completed", "seeds": seeds, "spent": spent, "share": share}
    return TrialResult(**{**ended, **known})


def test_seeds_are_averaged():
    result = trial("0", 0.4, 0.5, 0.9)
    assert result.mean("log_loss") == pytest.approx(0.6)
    assert result.spread("auc") == pytest.approx(np.std([0.4, 0.5, 0.9], ddof=1))
    assert (result.rows, result.rows_per_second) == (300, 200.0)
    assert trial("1", 0.4).spread("auc") is None
    assert TrialResult(trial="2", status="failed", seeds=result.seeds).mean("log_loss") is None


def test_the_best():
    trials = [trial("0", 0.5), trial("1", 0.4, 0.42), trial("2", 0.3, share=0.5), trial("3", status="failed")]
    assert best_of(trials, SWEEP).trial == "1"
    assert [one.trial for one in ranked(trials, SWEEP)] == ["1", "0", "2"]
    assert best_of([trials[2], trials[3]], SWEEP).trial == "2"
    assert best_of([trials[3]], SWEEP) is None
    auc = sweep_config({"space": {}, "objective": "auc"})
    assert best_of([trial("0", 0.5), trial("1", 0.4)], auc).trial == "1"
    assert [one.trial for one in ranked(trials, auc)] == ["1", "0", "2"]


def test_rows_that_were_gone_on_from_count_once():
    first = trial("0", 0.5, share=0.5)
    on = trial("1", 0.5, rows=250, rows_before=100, goes_on_from="0")
    assert rows_seen([first, on]) == 250
    assert rows_seen([first, trial("2", 0.4)]) == 200


def test_rows_of_trainings_that_failed_count():
    half = trial("0", 0.5, 0.5, share=0.5)
    # Its first training went on, to 250 samples; the second had seen 130 when it failed.
    spent = (Spent(seed=0, rows=250, rows_before=100), Spent(seed=1, rows=130, rows_before=100))
    on = TrialResult(trial="1", status="failed", seeds=half.seeds[:1], spent=spent, goes_on_from="0")
    assert (on.rows, on.rows_per_second) == (380, 200.0)
    assert rows_seen([half, on]) == 200 + 150 + 30
    # One of which another begins afresh takes nothing off.
    assert rows_seen([half, trial("2", 0.5, goes_on_from="0")]) == 300


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_the_front_is_what_nothing_beats(points):
    def beaten(place):
        x, y = points[place]
        return any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)

    front = pareto_front(points)
    # Of equal points one is enough.
    assert {points[place] for place in front} == {point for i, point in enumerate(points) if not beaten(i)}
    assert len({points[place] for place in front}) == len(front)


def test_the_table():
    trials = [
        trial("0", 0.5, values={"a": 1, "b": [1, 2], "c": "x"}, bytes=100),
        trial("1", status="refused", reason="too large", values={"a": 2.5, "b": 3}),
    ]
    table = frame(trials, ["a", "b", "c"])
    assert table["a"].to_list() == [1.0, 2.5]
    assert table["b"].to_list() == ["[1, 2]", "3"]
    assert table["c"].to_list() == ["x", None]
    assert table["log_loss"].to_list() == [0.5, None]
    assert table["status"].to_list() == ["completed", "refused"]
    assert table["bytes"].dtype == pl.Int64
    assert frame([], ["a"]).height == 0
    assert pl.read_csv(table.write_csv().encode())["reason"].to_list() == ["", "too large"]
