"""Stage `export`: the chosen weights and the encoder as the next version of a SavedModel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfdlrm.export.quantized import quantized_tables
from tfdlrm.export.saved_model import export_model
from tfdlrm.export.serving_rows import serving_rows
from tfdlrm.pipelines.quantized_loss import judge_tables, refuse_loss
from tfdlrm.pipelines.stages.context import Run


def work(run: Run) -> dict[str, Any] | None:
    """Write the version that follows the highest one, unless it would answer what the last one answers."""
    weights, base = run.chosen_weights(), Path(run.config.export.directory) / run.model_name
    step = int(run.weights()[weights].name.removeprefix("step-"))
    before = run.work_dir.stage("export")
    tables, max_auc_loss = run.config.export.tables, run.config.export.max_auc_loss
    noted = {"step": step, "logit_shift": run.config.logit_shift, "tables": tables}
    earlier = {"logit_shift": 0.0, "tables": "float32"}  # of versions written before these were noted
    if (
        before
        and Path(before["path"]).is_dir()
        and Path(before["path"]).parent == base
        and {name: {**earlier, **before}[name] for name in noted} == noted
    ):
        refuse_loss(before.get("quantized"), tables, max_auc_loss)
        return None
    model = run.trained_model()
    # The rows are those that are served, and are packed once: to be judged, then to be written.
    with serving_rows(model, run.untouched_rows), quantized_tables(model, tables):
        quantized = None if tables == "float32" else judge_tables(run, model, [tables])
        refuse_loss(quantized, tables, max_auc_loss)
        path = export_model(
            model,
            run.encoder,
            base,
            untouched_rows=run.untouched_rows,
            logit_shift=run.config.logit_shift,
            vocabulary=(run.manifest.vocabulary_version, run.manifest.vocabulary_parent),
            tables=tables,
            config=run.config,
        )
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {
        "path": str(path),
        "model_name": run.model_name,
        "version": int(path.name),
        "weights": weights,
        **noted,
        "bytes": size,
        **({} if quantized is None else {"quantized": quantized}),
    }


def summary(results: Mapping[str, Any]) -> str:
    """Say what was written."""
    shift = results["logit_shift"]
    corrected = f", log-odds corrected by {shift:.4f} for the rows left out" if shift else ""
    size = f"{results['bytes'] / 2**20:,.1f} MiB"
    return f"{results['path']}, {size}, {results['weights']} weights{corrected}{_quantized(results)}"


def _quantized(results: Mapping[str, Any]) -> str:
    if "quantized" not in results:
        return ""
    found = results["quantized"]["forms"][results["tables"]]
    loss = "unknown" if found["auc_loss"] is None else f"{found['auc_loss']:.6f}"
    return f", tables in {results['tables']}: {found['ratio']:.4f} of the bytes of float32, AUC loss {loss}"
