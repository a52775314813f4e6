"""Figures of `explain` as tables and plots, with everything in them that may be unknown."""

from __future__ import annotations

from tfdlrm.report.explanation import importance_table, plots, sections, usage_tables
from tfdlrm.report.html import render

GROUP = {"rows": 3, "share": 1.0, "most": 9, "least": 1, "norm": 0.25}
NORMS = {"rows": 200, "dim": 4, "norm_mean": 0.5, "norm_quantiles": [0, 0.1, 0.2, 0.3, 0.4, 0.9, 1]}
UNKNOWN = dict.fromkeys(["used", "reads", "top_share", "norm_used", "norm_unused", "correlation"])
KNOWN = {"used": 3, "reads": 12, "top_share": 0.75, "norm_used": 0.25, "norm_unused": None, "correlation": None}


def metric(mean: float | None, spread: float | None) -> dict[str, object]:
    return {"mean": mean, "spread": spread, "values": [mean]}


FIGURES = {
    **{"split": "test", "rows": 1000, "repeats": 1, "log_loss": 0.5, "auc": None, "training_rows": 4800, "step": 3},
    "features": [
        {"name": "small", "kind": "dense", "log_loss": metric(-0.001, None), "auc": metric(None, None)},
        {"name": "large", "kind": "sparse", "log_loss": metric(0.2, 0.01), "auc": metric(0.1, 0.002)},
    ],
    "tables": [
        {"table": "read", **NORMS, **KNOWN, "deciles": [GROUP], "curve": [[1.5, 4.0, 0.25]]},
        {"table": "own <x>", **NORMS, **UNKNOWN, "deciles": [], "curve": []},
    ],
}


def test_features_come_by_what_is_lost_without_them() -> None:
    table = importance_table(FIGURES)
    assert table.caption == "1,000 test rows, 1 permutations of each feature; log loss 0.50000, AUC -"
    assert table.rows == [
        ["large", "sparse", "0.20000", "0.01000", "0.10000", "0.00200"],
        ["small", "dense", "-0.00100", "-", "-", "-"],
    ]


def test_tables_tell_what_is_known() -> None:
    reads, norms, tenths = usage_tables(FIGURES)
    assert reads.rows == [["read", "200", "197", "1.5%", "12", "4.0", "75.0%"]]
    assert norms.rows == [
        ["read", "0.5", "0.1", "0.3", "0.9", "0.25", "-", "-"],
        ["own <x>", "0.5", "0.1", "0.3", "0.9", "", "", ""],
    ]
    assert tenths.rows == [["read", "0.25", *[""] * 9]]
    for table in (reads, norms, tenths):
        assert {len(row) for row in table.rows} == {len(table.columns)}
    unread = {**FIGURES, "tables": FIGURES["tables"][1:]}
    assert [table.caption for table in usage_tables(unread)] == ["Norms of vectors"]
    assert list(plots(unread)) == ["importance.png"]


def test_of_many_features_the_first_are_drawn() -> None:
    many = [{**FIGURES["features"][1], "name": f"f{number}"} for number in range(30)]
    (plot, *_) = plots({**FIGURES, "features": many}).values()
    assert plot.caption.endswith("The first 20 of 30 features; all are in the table.")
    assert "permutations." in plots(FIGURES)["importance.png"].caption[-20:]


def test_page_holds_tables_and_plots() -> None:
    assert all(plot.png.startswith(b"\x89PNG") for plot in plots(FIGURES).values())
    page = render("run", sections(FIGURES))
    assert page.count("data:image/png;base64,") == 2
    assert "own &lt;x&gt;" in page and page.count("<table>") == 4
