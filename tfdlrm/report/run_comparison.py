"""Two runs beside each other: metrics with the interval of their difference, curves, and what was set otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdlrm.metrics.paired import Difference, auc_difference, log_loss_difference
from tfdlrm.report.curves import reliability_bins, roc_points
from tfdlrm.report.html import Plot, Section, Table
from tfdlrm.report.plots import learning_curve, reliability_diagram, roc_curves

_METRICS = {
    "auc": ("AUC", ".4f"),
    "log_loss": ("log loss", ".5f"),
    "normalized_entropy": ("NE", ".4f"),
    "calibration": ("calibration", ".4f"),
}
_MOST_SETTINGS = 100


@dataclass(frozen=True)
class ComparedRun:
    """What is compared of a run.

    Attributes:
        name: What it is called on the page.
        metrics: Metrics of its held-out rows by name, nulls where there are none.
        labels: Labels of these rows, `[n]`.
        scores: What its exported weights say about them, `[n]`.
        sample_weight: Their weights, if there are any.
        history: Its validations, as `learning_curve` takes them.
    """

    name: str
    metrics: Mapping[str, float | None]
    labels: npt.NDArray[Any]
    scores: npt.NDArray[Any]
    sample_weight: npt.NDArray[Any] | None
    history: Sequence[Mapping[str, Any]]


def same_rows(run: ComparedRun, other: ComparedRun) -> bool:
    """Tell whether two runs were judged by the same rows: as many, with the same labels and weights, one by one."""
    if not np.array_equal(run.labels, other.labels):
        return False
    pair = (run.sample_weight, other.sample_weight)
    if pair[0] is None or pair[1] is None:
        return pair[0] is pair[1]
    return bool(np.allclose(pair[0], pair[1], rtol=1e-6))


def comparison_section(run: ComparedRun, other: ComparedRun, settings: Sequence[tuple[str, str, str]]) -> Section:
    """Return the section of the page of `run` that holds it against another run.

    Args:
        run: The run that the page is about.
        other: The other run.
        settings: What is set otherwise: key, value here, value there.
    """
    paired = same_rows(run, other)
    differences: dict[str, Difference] = {}
    if paired:
        scored = (run.labels, run.scores, other.scores, run.sample_weight)
        differences["log_loss"] = log_loss_difference(*scored)
        if 0 < run.labels.mean() < 1:
            differences["auc"] = auc_difference(*scored)
    text = [_verdict(other.name, differences) if paired else _NOT_PAIRED.format(len(run.labels), len(other.labels))]
    return Section(
        "Comparison with another run",
        text,
        [_metric_table(run, other, differences), *_settings_table(run.name, other.name, settings)],
        _plots(run, other),
    )


_NOT_PAIRED = (
    "The two runs were judged by different rows ({:,} here, {:,} there), so their differences have no interval: "
    "part of each is that of the rows."
)


def _verdict(other: str, differences: Mapping[str, Difference]) -> str:
    parts = []
    for key, sign in (("auc", 1), ("log_loss", -1)):
        if key not in differences:
            continue
        found, name = differences[key], _METRICS[key][0]
        better = "better" if found.value * sign > 0 else "worse"
        how = f"{better} than {other}" if found.beyond_chance else f"not told apart from {other}"
        parts.append(
            f"by {name} this run is {how} ({found.value:+.5f}, 95% interval {found.low:+.5f} to {found.high:+.5f})"
        )
    line = "; ".join(parts)
    return f"Both runs were judged by the same rows: {line}. The interval is that of the rows, not of other seeds."


def _metric_table(run: ComparedRun, other: ComparedRun, differences: Mapping[str, Difference]) -> Table:
    rows = []
    for key, (name, form) in _METRICS.items():
        here, there = run.metrics.get(key), other.metrics.get(key)
        cells = ["-" if value is None else format(value, form) for value in (here, there)]
        difference = "-" if here is None or there is None else f"{here - there:+{form}}"
        found = differences.get(key)
        interval = "" if found is None else f"{found.low:+.5f} to {found.high:+.5f}"
        rows.append([name, *cells, difference, interval])
    columns = ["", run.name, other.name, "difference", "95% interval of it"]
    return Table("Metrics of the exported weights on held-out rows", columns, rows)


def _settings_table(here: str, there: str, settings: Sequence[tuple[str, str, str]]) -> list[Table]:
    if not settings:
        return [Table("Settings: all are the same", ["setting", here, there], [])]
    more = len(settings) - _MOST_SETTINGS
    caption = "Settings that differ" + (f", the first {_MOST_SETTINGS} of {len(settings)}" if more > 0 else "")
    return [Table(caption, ["setting", here, there], settings[:_MOST_SETTINGS])]


def _plots(run: ComparedRun, other: ComparedRun) -> list[Plot]:
    plots = []
    both = (run, other)
    if run.history and other.history:
        caption = "Learning curves of both runs over the training rows that each had seen."
        plots.append(Plot(caption, learning_curve({own.name: own.history for own in both})))
    if all(0 < own.labels.mean() < 1 for own in both):
        curves = {own.name: roc_points(own.labels, own.scores, own.sample_weight) for own in both}
        plots.append(Plot("ROC curves of both runs.", roc_curves(curves)))
    bins = {own.name: reliability_bins(own.labels, own.scores, own.sample_weight) for own in both}
    plots.append(Plot("Calibration of both runs in bins of equal size, with 95% intervals.", reliability_diagram(bins)))
    return plots
