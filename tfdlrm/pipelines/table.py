"""Results as tables of text: for the terminal, and for the HTML report."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console as RichConsole
from rich.table import Table as RichTable
from rich.text import Text

from tfdlrm.pipelines.manner import manner, say
from tfdlrm.report.html import Table
from tfdlrm.spec.budget import COLUMNS, BudgetPlan

_SCORERS = {
    **{"best": "model, best weights", "last": "model, last weights", "parent": "the run before, as it was"},
    "baseline": "hashed logistic regression",
}
_TRUTH = {"bayes": "best possible (planted truth)"}
PLAIN_WIDTH = 120


def stage_table(metrics: Mapping[str, Any]) -> Table:
    """Return rows, seconds and rows/s of every stage that ran."""
    rows = []
    for name, stage in metrics.get("stages", {}).items():
        count, rate = stage.get("rows"), stage.get("rows_per_second")
        rows.append([name, f"{count:,}" if count else "", f"{stage['seconds']:,.1f}", f"{rate:,.0f}" if rate else ""])
    return Table("Stages", ["stage", "rows", "seconds", "rows/s"], rows)


def result_table(metrics: Mapping[str, Any]) -> Table | None:
    """Return one line for each that scored the held-out rows, `None` where nothing was evaluated."""
    evaluated = metrics.get("stages", {}).get("evaluate")
    if not evaluated or not evaluated["split"]:
        return None
    results = evaluated["metrics"]
    bayes = results.get("bayes")
    columns = ["", "AUC", "95% interval", "log loss", "NE", "calibration", "accuracy"]
    if bayes:
        columns.insert(3, "to best AUC")
    rows = []
    for name, label in {**_SCORERS, **_TRUTH}.items():
        if name not in results:
            continue
        m = results[name]
        low, high = (_number(m[key], ".4f") for key in ("auc_low", "auc_high"))
        cells = [_number(m["auc"], ".4f"), f"{low} to {high}"]
        cells += [_number(_difference(bayes["auc"], m["auc"]), ".4f")] if bayes else []
        cells += [_number(m["log_loss"], ".5f"), _number(m["normalized_entropy"], ".4f")]
        cells += [_number(m["calibration"], ".4f"), _number(m["accuracy"], ".4f")]
        exported = " (exported)" if name == evaluated["exported"] else ""
        rows.append([label + exported, *cells])
    base_rate = next(iter(results.values()))["base_rate"]
    caption = f"{evaluated['rows']:,} {evaluated['split']} rows, mean label {base_rate:.4f}"
    if "correction" in evaluated:
        times = 1 / (1 - evaluated["correction"]["drop_negatives"])
        caption += f" with each row of label 0 counted {times:,.4g} times, for those left out"
    return Table(caption, columns, rows)


def correction_table(metrics: Mapping[str, Any]) -> Table | None:
    """Return what the correction for rows left out did to the calibration, `None` where there was none."""
    evaluated = metrics.get("stages", {}).get("evaluate", {})
    correction = evaluated.get("correction")
    if correction is None:
        return None
    without = correction["calibration_without"]
    rows = [
        [label, _number(evaluated["metrics"][name]["calibration"], ".4f"), _number(without[name], ".4f")]
        for name, label in {**_SCORERS, **_TRUTH}.items()
        if name in without
    ]
    caption = (
        f"Calibration, corrected for the {correction['drop_negatives']:.1%} of rows of label 0 that were left out: "
        f"{correction['logit_shift']:.4f} on the log-odds"
    )
    return Table(caption, ["", "corrected", "without"], rows)


def fold_table(metrics: Mapping[str, Any]) -> Table:
    """Return a line for each fold, then mean and spread."""
    names = [name for name in (*_SCORERS, "bayes") if name in metrics["mean"]]
    columns = ["fold", "rows"]
    for name in names:
        label = {**_SCORERS, "bayes": "best possible"}[name]
        columns += [f"AUC, {label}", "log loss"]
    rows = [
        [str(fold["fold"]), f"{fold['rows']:,}"]
        + [_number(fold["metrics"][name][key], ".4f") for name in names for key in ("auc", "log_loss")]
        for fold in metrics["folds"]
    ]
    for kind in ("mean", "spread"):
        cells = [_number(metrics[kind][name][key], ".4f") for name in names for key in ("auc", "log_loss")]
        rows.append([kind, "", *cells])
    return Table(f"{len(metrics['folds'])} folds; spread is the standard deviation between them", columns, rows)


def plan_table(plan: BudgetPlan) -> Table:
    """Return a line for each embedding table, largest first: its bytes before and after, how and why."""
    return Table("Embedding tables", list(COLUMNS), plan.table())


def print_tables(*tables: Table | None, width: int = PLAIN_WIDTH) -> None:
    """Print tables to standard output, `width` characters wide at most where it is no terminal."""
    console = RichConsole(file=sys.stdout, width=None if sys.stdout.isatty() else width)
    for table in tables:
        if table is None:
            continue
        # As text: what is in brackets in it is not for rich to read.
        shown = RichTable(title=Text(table.caption), title_justify="left", box=SIMPLE_HEAD)
        for number, column in enumerate(table.columns):
            shown.add_column(Text(column), justify="right" if number else "left", no_wrap=not number)
        for row in table.rows:
            shown.add_row(*map(Text, row))
        console.print(shown)


def say_tables(*tables: Table | None, width: int = PLAIN_WIDTH) -> None:
    """Tell the tables of a run: as `print_tables`, or as JSON lines, or not at all, as `manner` has it."""
    if not manner().json_logs:
        if not manner().quiet:
            print_tables(*tables, width=width)
        return
    for table in tables:
        if table is not None:
            say(table.caption, table=[dict(zip(table.columns, row, strict=True)) for row in table.rows])


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
