"""What a model listens to and how its tables are used, as tables, plots and sections of a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfdlrm.report.explanation_plots import importance_bars, norm_curves
from tfdlrm.report.html import Plot, Section, Table

Figures = Mapping[str, Any]
_USED_TABLES = 5
_DRAWN_FEATURES = 20
_GROUPS = 10


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


def usage_tables(figures: Figures) -> list[Table]:
    """Return how embedding tables are read, how long their vectors are, and, where any is read, their norm by use."""
    reads, norms, deciles = [], [], []
    for table in figures["tables"]:
        name = table["table"]
        low, middle, high = (table["norm_quantiles"][i] for i in (1, 3, 5))
        by_use: list[str] = ["", "", ""]
        if table["used"] is not None:
            used, count = table["used"], table["reads"]
            cells = [f"{table['rows'] - used:,}", f"{used / table['rows']:.1%}", f"{count:,}"]
            cells += [f"{count / used:,.1f}" if used else "-", _number(table["top_share"], ".1%")]
            reads.append([name, f"{table['rows']:,}", *cells])
            by_use = [_number(table[key], ".3g") for key in ("norm_used", "norm_unused")]
            by_use.append(_number(table["correlation"], ".2f"))
        norms.append([name, *(_number(value, ".3g") for value in (table["norm_mean"], low, middle, high)), *by_use])
        if table["deciles"]:
            own = [f"{group['norm']:.3g}" for group in table["deciles"]]
            deciles.append([name, *own, *[""] * (_GROUPS - len(own))])
    columns = ["table", "rows", "never read", "share used", "reads", "by used row", "top 1% of rows have"]
    found = [Table(f"Reads of {figures['training_rows']:,} training rows", columns, reads)] if reads else []
    columns = ["table", "mean", "5%", "50%", "95%", "used rows", "unused rows", "rank corr. with reads"]
    found.append(Table("Norms of vectors", columns, norms))
    if deciles:
        caption = "Mean norm of used rows in tenths, most read first"
        found.append(Table(caption, ["table", *(str(i + 1) for i in range(_GROUPS))], deciles))
    return found


def plots(figures: Figures) -> dict[str, Plot]:
    """Return the plots by the name of a file: `importance.png` and, where a table was read, `norms.png`."""
    features = ranked(figures)
    caption = "What is lost when a feature is permuted: mean and spread over the permutations."
    if len(features) > _DRAWN_FEATURES:
        caption += f" The first {_DRAWN_FEATURES} of {len(features)} features; all are in the table."
    alt = f"bars, the longest are {', '.join(feature['name'] for feature in features[:3])}"
    found = {"importance.png": Plot(caption, importance_bars(features[:_DRAWN_FEATURES]), alt)}
    used = sorted((table for table in figures["tables"] if table["curve"]), key=lambda table: -table["used"])
    if used:
        caption = "Mean norm of rows by their rank of use, for the tables of most used rows."
        found["norms.png"] = Plot(caption, norm_curves(used[:_USED_TABLES]))
    return found


def sections(figures: Figures) -> list[Section]:
    """Return sections of a page: features, and tables."""
    drawn = plots(figures)
    text = (
        "A feature is dealt out anew among the rows, a bag with its weights. What other features tell as well is not "
        "missed: features that stand for one another all look unimportant."
    )
    return [
        Section("Importance of features", [text], [importance_table(figures)], [drawn["importance.png"]]),
        Section(
            "Embedding tables",
            tables=usage_tables(figures),
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
