"""The model card of a run, out of what its stages left."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdlrm.data.files import sha256_of
from tfdlrm.data.manifest import MANIFEST
from tfdlrm.export.model_card import CALIBRATION_PLOT, CARD_JSON, CARD_TEXT, AsServed, Evaluation, ModelCard
from tfdlrm.pipelines.held_out import as_rows
from tfdlrm.pipelines.stages.context import Run
from tfdlrm.pipelines.stages.evaluate import PREDICTIONS
from tfdlrm.pipelines.work_dir import config_toml
from tfdlrm.report.curves import reliability_bins
from tfdlrm.report.plots import reliability_diagram
from tfdlrm.spec.config import TableForm


def evaluation(run: Run) -> dict[str, Any] | None:
    """Return the results of the stage `evaluate`, `None` unless they judge the weights that are exported, as they are.

    They do not where training went on, other weights were chosen, or the correction for rows left out has changed.
    """
    results = run.work_dir.stage("evaluate")
    weights = run.chosen_weights()
    if results is None or results["split"] is None or results["steps"].get(weights) != run.chosen_step():
        return None
    shift = results.get("correction", {}).get("logit_shift", 0.0)
    return results if shift == run.config.logit_shift else None


def write_card(
    run: Run, columns: Mapping[str, list[Any]], folder: Path, quantized: Mapping[str, Any] | None = None
) -> dict[str, Path]:
    """Write the card as Markdown and JSON, and the calibration plot where the weights were evaluated.

    Args:
        run: The run, trained.
        columns: Held-out raw rows; the first is the sample request.
        folder: Where the files go.
        quantized: What `judge_tables` said of the form in which tables are served, where it is not float32.

    Returns:
        The files by name.
    """
    results = evaluation(run)
    weights = run.chosen_weights()
    judged = None
    in_float32 = "" if quantized is None else ", tables in float32"
    if results is not None:
        with np.load(run.work_dir.report / PREDICTIONS) as file:
            labels, scores = file["label"], file[weights]
            weight = file.get("sample_weight")
        judged = _evaluation(results, weights, labels, scores, weight)
        plot = reliability_diagram({f"{run.config.model.name}{in_float32}": reliability_bins(labels, scores, weight)})
        (folder / CALIBRATION_PLOT).write_bytes(plot)
    card = ModelCard(
        model_name=run.model_name,
        weights=weights,
        step=run.chosen_step(),
        manifest_sha256=sha256_of(run.work_dir.data / MANIFEST),
        rows={name: {"rows": s.rows, "positives": s.positives} for name, s in run.manifest.splits.items()},
        evaluation=judged,
        spec=run.spec,
        tables=run.config.export.tables,
        as_served=None if quantized is None else _as_served(quantized, run.config.export.tables),
        table_bytes={table.name: table.stored_bytes for table in run.spec.tables},
        rank_candidates=run.config.export.rank_candidates,
        request=json.dumps({"instances": as_rows({name: values[:1] for name, values in columns.items()})}),
        config=run.config,
    )
    (folder / CARD_JSON).write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (folder / CARD_TEXT).write_text(card.markdown(config_toml(run.config)), encoding="utf-8")
    return {path.name: path for path in sorted(folder.iterdir())}


def _evaluation(
    results: Mapping[str, Any],
    weights: str,
    labels: npt.NDArray[Any],
    scores: npt.NDArray[Any],
    weight: npt.NDArray[Any] | None,
) -> Evaluation:
    metrics = dict(results["metrics"][weights])
    low, high = metrics.pop("auc_low"), metrics.pop("auc_high")
    intervals = {} if None in (low, high) else {"auc": (low, high)}
    if weight is None:
        intervals["log_loss"] = log_loss_interval(labels, scores)
    others = {
        name: {key: values[key] for key in ("auc", "log_loss")}
        for name, values in results["metrics"].items()
        if name not in ("best", "last")
    }
    rows = int(metrics.pop("rows"))
    return Evaluation(split=results["split"], rows=rows, metrics=metrics, intervals=intervals, others=others)


def _as_served(quantized: Mapping[str, Any], tables: TableForm) -> AsServed:
    found = quantized["forms"][tables]
    metrics = {name: found[name] for name in ("auc", "log_loss", "normalized_entropy", "calibration", "auc_loss")}
    # JSON has no nan.
    known = {name: None if value is None or math.isnan(value) else value for name, value in metrics.items()}
    return AsServed(
        split=quantized["split"], rows=quantized["rows"], bytes=found["bytes"], ratio=found["ratio"], metrics=known
    )


def log_loss_interval(labels: npt.NDArray[Any], probabilities: npt.NDArray[Any]) -> tuple[float, float]:
    """Return the 95% interval of the mean loss of a row, by the normal law of a mean of independent rows.

    Args:
        labels: 0 or 1, `[n]`.
        probabilities: float32, `[n]`; drawn in as `tfdlrm.metrics.binary.log_loss` does.
    """
    edge = float(np.finfo(probabilities.dtype).eps)
    inside = np.clip(probabilities.astype(np.float64), edge, 1 - edge)
    losses = -np.where(labels > 0.5, np.log(inside), np.log1p(-inside))
    reach = NormalDist().inv_cdf(0.975) * float(losses.std()) / float(np.sqrt(len(losses)))
    return float(losses.mean()) - reach, float(losses.mean()) + reach
