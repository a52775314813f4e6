"""Stage `report`: `report/index.html`, one page that needs no other file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from tfdlrm.data.files import write_atomic
from tfdlrm.pipelines.stages.context import Run
from tfdlrm.pipelines.stages.evaluate import PREDICTIONS
from tfdlrm.pipelines.table import correction_table, result_table, stage_table
from tfdlrm.pipelines.work_dir import config_toml
from tfdlrm.report.curves import reliability_bins, roc_points
from tfdlrm.report.explanation import sections
from tfdlrm.report.html import Plot, Section, Table, render
from tfdlrm.report.plots import learning_curve, reliability_diagram, roc_curves, score_distribution
from tfdlrm.report.quantized import quantized_table
from tfdlrm.spec.errors import DataError

PAGE, EXPLANATION = "index.html", "explain.json"
_NAMES = {"parent": "the run before", "baseline": "hashed logistic regression", "bayes": "best possible"}


def work(run: Run) -> dict[str, Any]:
    """Draw what training and evaluation left, and write the page."""
    metrics = run.work_dir.metrics()
    if "evaluate" not in metrics.get("stages", {}):
        raise DataError(f"{run.work_dir.path}: nothing to report on. Run the stage `evaluate` first.")
    stages = metrics["stages"]
    results = [table for table in (result_table(metrics), correction_table(metrics)) if table is not None]
    if "quantized" in stages.get("export", {}):
        results.append(quantized_table(stages["export"]["quantized"]))
    page_sections = [
        Section("Results", tables=results, plots=_result_plots(run, stages["evaluate"])),
        Section("Training", plots=_training_plots(stages["train"])),
        *explained_sections(run),
        Section("Data", tables=[_split_table(stages["prepare"])] if "prepare" in stages else []),
        Section("Stages", tables=[stage_table(metrics)]),
        Section("Configuration", code=[config_toml(run.config)]),
    ]
    page = run.work_dir.report / PAGE
    write_atomic(page, render(run.config.name, page_sections))
    return {"page": str(page)}


def summary(results: Mapping[str, Any]) -> str:
    """Say where the page is."""
    return str(results["page"])


def explained_sections(run: Run) -> list[Section]:
    """Return what `tfdlrm.pipelines.explain` found out about the exported weights, if it was asked."""
    file = run.work_dir.report / EXPLANATION
    if not file.is_file():
        return []
    figures = json.loads(file.read_text(encoding="utf-8"))
    return sections(figures) if figures["step"] == run.chosen_step() else []


def _result_plots(run: Run, evaluated: Mapping[str, Any]) -> list[Plot]:
    if not evaluated["split"]:
        return []
    with np.load(run.work_dir.report / PREDICTIONS) as file:
        columns = dict(file)
    labels, weight, chosen = columns["label"], columns.get("sample_weight"), columns[evaluated["exported"]]
    scores = {
        run.config.model.name: chosen,
        **{label: columns[name] for name, label in _NAMES.items() if name in columns},
    }
    plots = []
    if 0 < labels.mean() < 1:
        curves = {name: roc_points(labels, values, weight) for name, values in scores.items()}
        plots.append(Plot("ROC: true against false positive rate.", roc_curves(curves)))
    bins = {
        name: reliability_bins(labels, values, weight) for name, values in scores.items() if name != _NAMES["bayes"]
    }
    caption = "Calibration in bins of equal size: mean label over mean prediction, with 95% intervals."
    plots.append(Plot(caption, reliability_diagram(bins)))
    plots.append(Plot("Predicted probabilities by label.", score_distribution(labels, chosen)))
    return plots


def _training_plots(trained: Mapping[str, Any]) -> list[Plot]:
    if not trained["history"]:
        return []
    return [Plot("Log loss and AUC over training steps.", learning_curve(trained["history"], trained["best_step"]))]


def _split_table(prepared: Mapping[str, Any]) -> Table:
    rows = [
        [name, f"{split['rows']:,}", f"{split['positives'] / split['rows']:.4f}" if split["rows"] else ""]
        for name, split in prepared["splits"].items()
    ]
    return Table("Rows", ["split", "rows", "share of label 1"], rows)
