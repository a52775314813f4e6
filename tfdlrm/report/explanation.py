"""What a model listens to and how its tables are used, as tables, plots and sections of a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfdlrm.report.explanation_plots import importance_bars, norm_curves
from tfdlrm.report.html import Plot, Section, Table

Figures = Mapping[str, Any]
_USED_TABLES = 5


def importance_table(figures: Figures) -> Table:
    """Return a line for each feature, those first without which the log loss rises most."""
    rows = [
        [
            feature["name"],
            feature["kind"],
            *(cell for m in ("log_loss", "auc") for cell in _mean_and_spread(feature[m])),
        ]
        for feature in ranked(figures)
    ]
    caption = (
        f"{figures['rows']:,} {figures['split']} rows, {figures['repeats']} permutations of each feature; "
        f"log loss {figures['log_loss']:.5f}, AUC {_number(figures['auc'], '.4f')}"
    )
    return Table(caption, ["feature", "kind", "log loss rises by", "spread", "AUC falls by", "spread"], rows)


def usage_table(figures: Figures) -> Table:
    """Return a line for each embedding table."""
    columns = ["table", "rows", "used", "share used", "reads", "a used row", "to top 1%", "norm", "5%", "50%", "95%"]
    columns += ["used rows", "unused rows", "norm and reads"]
    rows = []
    for table in figures["tables"]:
        low, middle, high = (table["norm_quantiles"][i] for i in (1, 3, 5))
        used, reads = table["used"], table["reads"]
        known = ["" for _ in range(5)]
        if used is not None:
            known = [f"{used:,}", f"{used / table['rows']:.1%}", f"{reads:,}", f"{reads / used:,.1f}" if used else "-"]
            known.append(_number(table["top_share"], ".1%"))
        norms = [_number(value, ".3g") for value in (table["norm_mean"], low, middle, high)]
        by_use = [_number(table[key], ".3g") if used is not None else "" for key in ("norm_used", "norm_unused")]
        correlation = _number(table["correlation"], ".2f") if used is not None else ""
        rows.append([table["table"], f"{table['rows']:,}", *known, *norms, *by_use, correlation])
    return Table(f"Embedding tables after {figures['training_rows']:,} training rows", columns, rows)


def decile_table(figures: Figures) -> Table | None:
    """Return the mean norm by decile of use, a line for each table with used rows; `None` where there is none."""
    tables = [table for table in figures["tables"] if table["deciles"]]
    if not tables:
        return None
    groups = max(len(table["deciles"]) for table in tables)
    rows = []
    for table in tables:
        cells = [f"{group['norm']:.3g} ({group['least']:,}+)" for group in table["deciles"]]
        rows.append([table["table"], *cells, *[""] * (groups - len(cells))])
    caption = "Mean norm of used rows in tenths, most read first; in brackets the fewest reads of a row of that tenth"
    return Table(caption, ["table", *(str(i + 1) for i in range(groups))], rows)


def plots(figures: Figures) -> dict[str, Plot]:
    """Return the plots by the name of a file: `importance.png` and, where a table was read, `norms.png`."""
    found = {
        "importance.png": Plot(
            "What is lost when a feature is permuted: mean and spread over the permutations.",
            importance_bars(ranked(figures)),
        )
    }
    used = sorted((table for table in figures["tables"] if table["curve"]), key=lambda table: -table["used"])
    if used:
        caption = "Mean norm of rows by their rank of use, for the tables of most used rows."
        found["norms.png"] = Plot(caption, norm_curves(used[:_USED_TABLES]))
    return found


def sections(figures: Figures) -> list[Section]:
    """Return two sections of a page."""
    drawn = plots(figures)
    deciles = decile_table(figures)
    text = (
        "A feature is dealt out anew among the rows, a bag with its weights. What other features tell as well is not "
        "missed: features that stand for one another all look unimportant."
    )
    return [
        Section("Importance of features", [text], [importance_table(figures)], [drawn["importance.png"]]),
        Section(
            "Embedding tables",
            tables=[usage_table(figures), *([deciles] if deciles else [])],
            plots=[drawn[name] for name in drawn if name == "norms.png"],
        ),
    ]


def ranked(figures: Figures) -> list[Mapping[str, Any]]:
    """Return the features, those first without which the log loss rises most."""
    return sorted(figures["features"], key=lambda feature: -feature["log_loss"]["mean"])


def _mean_and_spread(metric: Mapping[str, Any]) -> list[str]:
    return [_number(metric["mean"], ".5f"), _number(metric["spread"], ".5f")]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
