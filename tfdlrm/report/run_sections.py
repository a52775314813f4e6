"""Sections of the page of a run, from what its stages noted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdlrm.report.curves import (
    Bin,
    average_precision,
    precision_recall_points,
    reliability_bins,
    roc_points,
    thinned,
)
from tfdlrm.report.html import Plot, Section, Table
from tfdlrm.report.plots import (
    group_bars,
    learning_curve,
    precision_recall_curves,
    reliability_diagram,
    roc_curves,
    score_distribution,
    stage_bars,
)

Array = npt.NDArray[Any]
Figures = Mapping[str, Any]
_LEAST_RECALL = 0.02
"""Below it precision is that of a handful of rows."""


def result_plots(
    labels: Array, scores: Mapping[str, Array], sample_weight: Array | None, truth: str | None = None
) -> list[Plot]:
    """Return ROC and precision-recall curves, calibration and the distribution of scores.

    Args:
        labels: 0 or 1, `[n]`.
        scores: Who scored the rows to probabilities, `[n]`; the model itself is first.
        sample_weight: Weight of each row, if there are any.
        truth: Which of them is the truth, whose calibration is no news.
    """
    plots = []
    if 0 < labels.mean() < 1:
        plots += [_roc(labels, scores, sample_weight), _precision_recall(labels, scores, sample_weight)]
    judged = {name: values for name, values in scores.items() if name != truth}
    bins = {name: reliability_bins(labels, values, sample_weight) for name, values in judged.items()}
    name, own = next(iter(bins.items()))
    plots.append(
        Plot(
            "Calibration: mean label over mean prediction in bins of equal size, with 95% intervals. "
            + _missed(name, own),
            reliability_diagram(bins),
            "reliability diagram; the dotted diagonal is perfect calibration",
        )
    )
    model = next(iter(scores.values()))
    weight = np.ones(len(labels)) if sample_weight is None else sample_weight
    of_label = [labels == label for label in (0, 1)]
    means = [f"{np.average(model[rows], weights=weight[rows]):.4f}" for rows in of_label if weight[rows].any()]
    plots.append(
        Plot(
            f"Predicted probabilities of {next(iter(scores))} by label; their means are {' and '.join(means)}.",
            score_distribution(labels, model, sample_weight),
            "histograms of predicted probabilities of rows with label 0 and with label 1",
        )
    )
    return plots


def _roc(labels: Array, scores: Mapping[str, Array], sample_weight: Array | None) -> Plot:
    curves = {name: roc_points(labels, values, sample_weight) for name, values in scores.items()}
    false, true = next(iter(curves.values()))
    at = float(np.interp(0.1, false, true))
    return Plot(
        f"ROC: with one in ten of the rows of label 0 let through, {next(iter(scores))} finds {at:.1%} of label 1.",
        roc_curves(curves),
        f"ROC curves of {', '.join(curves)}; the dotted diagonal is chance",
    )


def _precision_recall(labels: Array, scores: Mapping[str, Array], sample_weight: Array | None) -> Plot:
    every = {
        name: precision_recall_points(labels, values, sample_weight, len(labels)) for name, values in scores.items()
    }
    curves = {name: thinned(*points) for name, points in every.items()}
    base_rate = float(np.average(labels, weights=sample_weight))
    highest = max(float(precision[recall >= _LEAST_RECALL].max()) for recall, precision in curves.values())
    means = ", ".join(f"{name} {average_precision(*points):.4f}" for name, points in every.items())
    return Plot(
        f"Precision over recall; average precision: {means}. By chance {base_rate:.4f}.",
        precision_recall_curves(curves, base_rate, min(1.0, 1.1 * highest)),
        f"precision-recall curves of {', '.join(curves)}; the dotted line is chance",
    )


def _missed(name: str, bins: Sequence[Bin]) -> str:
    inside = sum(b.low <= b.predicted <= b.high for b in bins)
    return f"Of {len(bins)} bins of {name}, {inside} have the prediction inside their interval."


def learning_plots(history: Sequence[Figures], best_step: int | None) -> list[Plot]:
    """Return the learning curve, none where there was no validation.

    Args:
        history: One entry a validation, as `learning_curve` takes them, with `step`.
        best_step: Step of the best weights, if any.
    """
    if not any(entry.get("log_loss") is not None for entry in history):
        return []
    best = next((entry for entry in history if entry["step"] == best_step), None)
    caption = "Training loss (mean since the point before) and validation metrics over training rows seen."
    if best is not None:
        caption += (
            f" Best after {best['rows_seen']:,} rows, step {best_step:,}: validation log loss {best['log_loss']:.5f}"
            + (f", AUC {best['auc']:.4f}." if best.get("auc") is not None else ".")
        )
    image = learning_curve({"run": history}, None if best is None else best["rows_seen"])
    return [Plot(caption, image, "learning curves: log loss on the left, AUC on the right")]


def data_section(splits: Mapping[str, Figures], statistics: Figures, spec_rows: Sequence[Sequence[str]]) -> Section:
    """Return how many rows there are, what was wrong with others, and how large the vocabularies are.

    Args:
        splits: `rows` and `positives` of each split.
        statistics: What `prepare` noted: `bad_rows`, `vocabulary_sizes`, `shares` by split and feature.
        spec_rows: Feature, table, rows of the table, width: one line for each sparse feature.
    """
    rows = [
        [name, f"{split['rows']:,}", f"{split['positives'] / split['rows']:.4f}" if split["rows"] else ""]
        for name, split in splits.items()
    ]
    tables = [Table("Rows", ["split", "rows", "share of label 1"], rows)]
    bad = statistics.get("bad_rows", {})
    text = [] if bad else ["No row was bad."]
    if bad:
        tables.append(
            Table("Bad rows that were set aside", ["reason", "rows"], [[k, f"{v:,}"] for k, v in bad.items()])
        )
    if spec_rows:
        tables.append(_feature_table(statistics.get("shares", {}), spec_rows))
    return Section("Data", text, tables)


def _feature_table(shares: Figures, spec_rows: Sequence[Sequence[str]]) -> Table:
    names = [name for name in ("train", "validation", "test") if name in shares]
    rows = []
    for feature, *cells in spec_rows:
        own = [shares[name].get(feature, {}) for name in names]
        strange = [sum(v for k, v in share.items() if k != "missing") for share in own]
        rows.append([feature, *cells, f"{own[0].get('missing', 0):.1%}" if own else "", *(f"{s:.1%}" for s in strange)])
    columns = [
        "feature",
        "table",
        "table rows",
        "width",
        "missing in train",
        *(f"rare or unseen in {n}" for n in names),
    ]
    return Table("Categorical features", columns, rows)


def time_section(table: Table, seconds: Mapping[str, float], groups: Figures | None) -> Section:
    """Return where the time of the run went: by stage and, where it was profiled, by group of operators.

    Args:
        table: Rows, seconds and rows/s of the stages.
        seconds: Seconds of each.
        groups: Milliseconds of a training step by group and phase, `None` where it was not profiled.
    """
    total = sum(seconds.values())
    longest = max(seconds, key=lambda name: seconds[name])
    share = seconds[longest] / total if total else 0.0
    plots = [
        Plot(
            f"Seconds by stage, {total:,.1f} in all before this page was written; {longest} took {share:.0%}.",
            stage_bars(seconds),
            "bars of seconds by stage",
        )
    ]
    if groups:
        work = {name: sum(phases.values()) for name, phases in groups.items()}
        largest = max(work, key=lambda name: work[name])
        caption = (
            f"Busy thread time of a profiled training step, {sum(work.values()):.1f} ms in all; {largest} has the "
            f"largest share, {work[largest] / sum(work.values()):.0%}."
        )
        plots.append(Plot(caption, group_bars(groups), "bars of milliseconds by group of operators"))
    return Section("Time", tables=[table], plots=plots)


def environment_section(trained: Mapping[str, str] | None, now: Mapping[str, str]) -> Section:
    """Return versions and machine: those that trained and, where they differ, those that wrote the page."""
    if trained is None or trained == now:
        caption = "Versions and machine" + ("" if trained else " when this page was written")
        return Section("Environment", tables=[Table(caption, ["", ""], [[k, v] for k, v in now.items()])])
    rows = [[key, trained.get(key, "-"), now.get(key, "-")] for key in {**trained, **now}]
    return Section("Environment", tables=[Table("Versions and machine", ["", "training", "this page"], rows)])
