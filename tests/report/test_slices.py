from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tfdlrm.metrics.binary import evaluate_binary
from tfdlrm.report.slices import Slice, slice_of, slice_section


def rows(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = rng.random(count)
    return (rng.random(count) < scores).astype(np.float32), scores


def test_a_slice_is_judged_alone() -> None:
    labels, scores = rows(300)
    found = slice_of("a", labels, scores)
    assert (found.rows, found.positives) == (300, labels.sum())
    assert found.metrics.auc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_small_slices_are_not_judged() -> None:
    labels, scores = rows(99)
    assert slice_of("few rows", labels, scores).metrics is None
    few = np.zeros(500)
    few[:9] = 1
    assert slice_of("few of a label", few, np.linspace(0, 1, 500)).metrics is None
    assert slice_of("few of the other", 1 - few, np.linspace(0, 1, 500)).metrics is None
    few[9] = 1
    assert slice_of("enough", few, np.linspace(0, 1, 500)).metrics is not None
    assert slice_of("none", np.zeros(0), np.zeros(0)) == Slice("none", 0, 0, None)


def sliced(count: int = 3) -> dict[str, list[Slice]]:
    return {
        f"C{feature}": [
            *(slice_of(f"value <{i}>", *rows(200, 10 * feature + i)) for i in range(2)),
            Slice("tiny", 7, 1, None),
        ]
        for feature in range(count)
    }


def test_section_says_what_is_too_small_and_where_it_is_worst() -> None:
    slices = sliced()
    whole = evaluate_binary(*rows(1000))
    section = slice_section(slices, whole, 1000)
    (table,) = section.tables
    assert table.rows[2] == ["C0", "tiny", "7", "0.1429", "too small", "", "", ""]
    assert {len(row) for row in table.rows} == {len(table.columns)}
    (plot,) = section.plots
    every = [(part.metrics.auc, part.name) for own in slices.values() for part in own if part.metrics]
    assert f"{min(every)[0]:.4f}" in plot.caption and f"{max(every)[0]:.4f}" in plot.caption
    assert f"{whole.auc:.4f}" in plot.caption and plot.png.startswith(b"\x89PNG")


def test_the_most_important_features_are_drawn() -> None:
    section = slice_section(sliced(9), evaluate_binary(*rows(1000)), 1000, first=["C8", "C7"])
    assert section.plots[0].alt == "AUC of slices, one panel each for C8, C7, C0, C1, C2, C3"
    assert len(section.tables[0].rows) == 27


def test_nothing_is_drawn_where_nothing_can_be_judged() -> None:
    section = slice_section({"C0": [Slice("a", 5, 1, None), Slice("b", 5, 1, None)]}, evaluate_binary(*rows(10)), 10)
    assert section.plots == [] and len(section.tables[0].rows) == 2
