"""Stage `report`: `report/index.html`, one page that needs no other file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tfdlrm.data.files import write_atomic
from tfdlrm.data.manifest import MANIFEST
from tfdlrm.pipelines.reporting.comparison import comparison, history_of
from tfdlrm.pipelines.reporting.environment import environment
from tfdlrm.pipelines.reporting.importance import explanation
from tfdlrm.pipelines.reporting.slices import slices_of
from tfdlrm.pipelines.stages.context import Run
from tfdlrm.pipelines.stages.evaluate import PREDICTIONS
from tfdlrm.pipelines.table import correction_table, result_table, stage_table
from tfdlrm.pipelines.work_dir import config_toml
from tfdlrm.report.explanation import ranked, sections
from tfdlrm.report.html import Section, render
from tfdlrm.report.quantized import quantized_table
from tfdlrm.report.run_sections import data_section, environment_section, learning_plots, result_plots, time_section
from tfdlrm.report.slices import slice_section
from tfdlrm.spec.errors import DataError
from tfdlrm.training.checkpoint import checkpoints

PAGE, PROFILE = "index.html", "profile.json"
_NAMES = {"parent": "the run before", "baseline": "hashed logistic regression", "bayes": "best possible"}


def work(run: Run) -> dict[str, Any]:
    """Draw what training and evaluation left, look at features and slices, and write the page."""
    metrics = run.work_dir.metrics()
    if "evaluate" not in metrics.get("stages", {}):
        raise DataError(f"{run.work_dir.path}: nothing to report on. Run the stage `evaluate` first.")
    page = run.work_dir.report / PAGE
    write_atomic(page, render(run.config.name, list(_sections(run, metrics))))
    return {"page": str(page)}


def summary(results: Mapping[str, Any]) -> str:
    """Say where the page is."""
    return str(results["page"])


def _sections(run: Run, metrics: Mapping[str, Any]) -> Iterator[Section]:
    stages = metrics["stages"]
    evaluated, trained = stages["evaluate"], stages.get("train", {})
    columns = _columns(run) if evaluated["split"] else {}
    # Rows and weights may have been removed since, to save room.
    has_rows = (run.work_dir.data / MANIFEST).is_file()
    explained = explanation(run) if has_rows and checkpoints(run.work_dir.checkpoints) else None
    yield _results(run, metrics, columns)
    yield from comparison(run)
    yield Section("Training", plots=learning_plots(history_of(run.work_dir, run.config), trained.get("best_step")))
    if columns and has_rows and run.config.report.slice_rows and run.manifest.spec.sparse:
        found = slices_of(run, columns, evaluated["exported"], evaluated["split"])
        first = [feature["name"] for feature in ranked(explained)] if explained else []
        yield slice_section(found.by, found.whole, found.rows, first)
    yield from sections(explained) if explained else []
    if "prepare" in stages:
        yield data_section(
            stages["prepare"]["splits"], stages["prepare"]["statistics"], _features(run) if has_rows else []
        )
    seconds = {name: stage["seconds"] for name, stage in stages.items() if name != "report"}
    yield time_section(stage_table(metrics), seconds, _profile(run))
    yield environment_section(trained.get("environment"), environment())
    yield Section("Configuration", code=[config_toml(run.config)])


def _columns(run: Run) -> dict[str, Any]:
    """Return labels, scores and weights of the held-out rows, as the stage `evaluate` left them."""
    path = run.work_dir.report / PREDICTIONS
    if not path.is_file():
        raise DataError(f"{path}: not there. Run the stage `evaluate` again.")
    with np.load(path) as file:
        return dict(file)


def _results(run: Run, metrics: Mapping[str, Any], columns: Mapping[str, Any]) -> Section:
    stages = metrics["stages"]
    evaluated = stages["evaluate"]
    tables = [table for table in (result_table(metrics), correction_table(metrics)) if table is not None]
    if "quantized" in stages.get("export", {}):
        tables.append(quantized_table(stages["export"]["quantized"]))
    if not columns:
        return Section("Results", ["No rows were held out to judge the model by."], tables)
    name = run.config.model.name
    scores = {name: columns[evaluated["exported"]], **{own: columns[k] for k, own in _NAMES.items() if k in columns}}
    plots = result_plots(columns["label"], scores, columns.get("sample_weight"), _NAMES["bayes"])
    return Section("Results", [_verdict(run, evaluated)], tables, plots)


def _verdict(run: Run, evaluated: Mapping[str, Any]) -> str:
    exported = evaluated["exported"]
    m = evaluated["metrics"][exported]
    line = f"The {exported} weights of {run.config.model.name}, step {evaluated['steps'][exported]:,}"
    if m["auc"] is None:
        return f"{line}: log loss {m['log_loss']:.5f} on {evaluated['rows']:,} {evaluated['split']} rows of one label."
    line += (
        f", reach an AUC of {m['auc']:.4f} (95% interval {m['auc_low']:.4f} to {m['auc_high']:.4f}) on "
        f"{evaluated['rows']:,} {evaluated['split']} rows"
    )
    others = [(key, evaluated["metrics"].get(key)) for key in ("baseline", "bayes")]
    parts = [f"{_NAMES[key]} {found['auc']:.4f}" for key, found in others if found]
    return f"{line}; {', '.join(parts)}." if parts else f"{line}."


def _features(run: Run) -> list[list[str]]:
    spec = run.spec
    found = []
    for feature in spec.sparse:
        table = spec.table_of(feature)
        found.append([feature.name, table.name, f"{table.vocabulary_size:,}", str(table.embedding_dim)])
    return found


def _profile(run: Run) -> dict[str, Any] | None:
    """Return milliseconds by group of operators, where `benchmark train --profile` was told to leave them here."""
    file = run.work_dir.report / PROFILE
    if not file.is_file():
        return None
    figures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    found: dict[str, Any] | None = figures.get("profile", {}).get("milliseconds")
    return found
