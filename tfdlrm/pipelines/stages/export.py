"""Stage `export`: the chosen weights and the encoder as the next version of a SavedModel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfdlrm.export.saved_model import export_model
from tfdlrm.pipelines.stages.context import Run


def work(run: Run) -> dict[str, Any] | None:
    """Write the version that follows the highest one, unless it would answer what the last one answers."""
    weights, base = run.chosen_weights(), Path(run.config.export.directory) / run.model_name
    step = int(run.weights()[weights].name.removeprefix("step-"))
    before = run.work_dir.stage("export")
    noted = {"step": step, "logit_shift": run.config.logit_shift}
    if (
        before
        and Path(before["path"]).is_dir()
        and Path(before["path"]).parent == base
        and {"step": before["step"], "logit_shift": before.get("logit_shift", 0.0)} == noted
    ):
        return None
    model = run.trained_model()
    path = export_model(
        model,
        run.encoder,
        base,
        untouched_rows=run.untouched_rows,
        logit_shift=run.config.logit_shift,
        vocabulary=(run.manifest.vocabulary_version, run.manifest.vocabulary_parent),
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
    }


def summary(results: Mapping[str, Any]) -> str:
    """Say what was written."""
    shift = results["logit_shift"]
    corrected = f", log-odds corrected by {shift:.4f} for the rows left out" if shift else ""
    return f"{results['path']}, {results['bytes'] / 2**20:,.1f} MiB, {results['weights']} weights{corrected}"
