"""What a comparison leaves in `report/`: `results.json`, `results.csv`, `table.md`, and the figure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tfdlrm.data.files import write_atomic
from tfdlrm.pipelines.comparison.summary import Group, Planned, Result, panels, summarize
from tfdlrm.pipelines.comparison.widths import Fitted
from tfdlrm.pipelines.work_dir import plain
from tfdlrm.report.comparison import LABELS, html, png, svg
from tfdlrm.report.html import Table
from tfdlrm.spec.compare import CompareConfig

FIGURE_METRIC = "accuracy"
_COLUMNS = ["model", "AUC", "p, Holm", "log loss", "p, Holm", "NE", "accuracy"] + [
    "dense weights",
    "table weights",
    "rows/s",
    "seeds",
]


def write_report(
    config: CompareConfig,
    groups: Mapping[Group, Planned],
    fitted: Mapping[tuple[str, str], Fitted | str],
    folder: Path,
) -> list[Table]:
    """Write all files of the report and return its tables.

    Args:
        config: The comparison.
        groups: What is done of it.
        fitted: The settings of every data set and model, or why there are none.
        folder: Where to write.
    """
    lines = summarize(config, groups)
    for line in lines:
        settings = fitted[line["dataset"], line["model"]]
        if isinstance(settings, Fitted):
            line |= {"size": settings.note, "widths": settings.widths}
    skipped = [
        {"dataset": dataset, "model": model, "reason": reason}
        for (dataset, model), reason in fitted.items()
        if isinstance(reason, str)
    ]
    cells = [planned.results[key] for planned in groups.values() for key in sorted(planned.results, key=str)]
    content = {
        "name": config.name,
        "configuration": config.model_dump(mode="json", exclude_unset=True),
        "reference": config.reference_label,
        "lines": lines,
        "skipped": skipped,
        "cells": [{key: value for key, value in cell.items() if key != "settings"} for cell in cells],
    }
    write_atomic(folder / "results.json", json.dumps(plain(content), indent=1, allow_nan=False) + "\n")
    write_atomic(folder / "results.csv", _csv(lines))
    tables = [
        _table(config, dataset.name, optimizer.label, lines)
        for dataset in config.datasets
        for optimizer in config.optimizers
    ]
    tables = [table for table in tables if table.rows]
    write_atomic(folder / "table.md", _markdown(config, tables, skipped))
    drawn = {metric: panels(config, groups, metric) for metric in LABELS}
    if any(panel.curves for panel in drawn[FIGURE_METRIC]):
        write_atomic(folder / "figure.png", png(drawn[FIGURE_METRIC], FIGURE_METRIC))
        write_atomic(folder / "figure.svg", svg(drawn[FIGURE_METRIC], FIGURE_METRIC))
        write_atomic(folder / "figure.html", html(config.name, drawn))
    return tables


def notes(config: CompareConfig, skipped: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the lines under the tables: what the numbers are, and what was left out."""
    said = [
        "Mean ± standard deviation over seeds, folds averaged within a seed. "
        f"p: paired t-test over seeds against {config.reference_label}, corrected by Holm's method for the models of "
        "one table; it tells a difference from the chance of weights and order, not from that of the rows."
    ]
    return said + [f"Left out: {s['model']} on {s['dataset']}: {s['reason']}" for s in skipped]


def _csv(lines: Sequence[Result]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _table(config: CompareConfig, dataset: str, optimizer: str, lines: Sequence[Result]) -> Table:
    own = [line for line in lines if (line["dataset"], line["optimizer"]) == (dataset, optimizer)]
    best = next((line["best_possible_auc"] for line in own if line["best_possible_auc"] is not None), None)
    folds = f", {own[0]['folds']} folds" if own and own[0]["folds"] > 1 else ""
    caption = f"{dataset}{folds}, {optimizer}" + ("" if best is None else f"; best possible AUC {best:.4f}")
    return Table(caption, _COLUMNS, [_row(config, line) for line in own])


def _row(config: CompareConfig, line: Result) -> list[str]:
    size = f" ({line['size']})" if line["size"] not in ("", "equal") else ""
    rate, tables = line["rows_per_second"], line["table_parameters"]
    return [
        line["model"] + (" (reference)" if line["model"] == config.reference_label else ""),
        _mean(line, "auc", ".4f"),
        _p(line["auc_p_holm"]),
        _mean(line, "log_loss", ".4f"),
        _p(line["log_loss_p_holm"]),
        _mean(line, "normalized_entropy", ".4f"),
        _mean(line, "accuracy", ".4f"),
        f"{line['dense_parameters']:,}{size}",
        "-" if tables is None else f"{tables:,}",
        "-" if rate is None else f"{rate:,.0f}",
        f"{line['n']}" + (f", {line['diverged']} diverged" if line["diverged"] else ""),
    ]


def _mean(line: Result, metric: str, form: str) -> str:
    mean, spread = line[metric], line[f"{metric}_spread"]
    if mean is None:
        return "-"
    return format(mean, form) + ("" if spread is None else f" ± {spread:{form}}")


def _p(value: float | None) -> str:
    return "-" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _markdown(config: CompareConfig, tables: Sequence[Table], skipped: Sequence[Mapping[str, str]]) -> str:
    parts = [f"# {config.name}"]
    for table in tables:
        rows = [table.columns, ["---"] + ["---:"] * (len(table.columns) - 1), *table.rows]
        parts.append(f"## {table.caption}\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows))
    return "\n\n".join([*parts, *notes(config, skipped)]) + "\n"
