"""Stage `export`: the chosen weights and the encoder as the next version of a SavedModel, once it has been blessed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tensorflow as tf

from tfdlrm.export.blessing import Blessing, HeldOut, bless, refuse_low_auc
from tfdlrm.export.quantized import quantized_tables
from tfdlrm.export.saved_model import export_model
from tfdlrm.export.serving_rows import serving_rows
from tfdlrm.metrics.sampling import weights_of_all_rows
from tfdlrm.pipelines.model_card import evaluation, write_card
from tfdlrm.pipelines.quantized_loss import judge_tables, refuse_loss
from tfdlrm.pipelines.served_rows import BATCH, ServedRows, served_rows
from tfdlrm.pipelines.stages.context import Run
from tfdlrm.spec.errors import ConfigError, DataError


def work(run: Run) -> dict[str, Any] | None:
    """Write the version that follows the highest one, unless it would answer what the last one answers."""
    weights, base = run.chosen_weights(), Path(run.config.export.directory) / run.model_name
    noted = {
        "step": run.chosen_step(),
        "logit_shift": run.config.logit_shift,
        "rank_candidates": list(run.config.export.rank_candidates),
        "warmup_batch_sizes": list(run.config.export.warmup_batch_sizes),
    }
    before = run.work_dir.stage("export")
    tables, max_auc_loss = run.config.export.tables, run.config.export.max_auc_loss
    noted["tables"] = tables
    if (
        before
        and Path(before["path"]).is_dir()
        and Path(before["path"]).parent == base
        and {name: before.get(name) for name in noted} == noted
    ):
        refuse_loss(before.get("quantized"), tables, max_auc_loss)
        return None
    _refuse_by_rules(run, base, weights)
    model = run.trained_model()
    found: list[Blessing] = []
    with (
        TemporaryDirectory(prefix="tfdlrm-card-") as folder,
        # The rows are those that are served, and are packed once: to be judged, asked, and written.
        serving_rows(model, run.untouched_rows),
        quantized_tables(model, tables),
    ):
        quantized = None if tables == "float32" else judge_tables(run, model, [tables])
        refuse_loss(quantized, tables, max_auc_loss)
        served = served_rows(run, model)
        card = write_card(run, served.columns, Path(folder))
        path = export_model(
            model,
            run.encoder,
            base,
            untouched_rows=run.untouched_rows,
            logit_shift=run.config.logit_shift,
            vocabulary=(run.manifest.vocabulary_version, run.manifest.vocabulary_parent),
            tables=tables,
            config=run.config,
            rank_candidates=run.config.export.rank_candidates,
            warmup=served.arrays,
            warmup_batch_sizes=run.config.export.warmup_batch_sizes,
            bless=lambda directory: found.append(_blessed(run, directory, base, served)),
            extra_assets=card,
        )
        run.work_dir.report.mkdir(parents=True, exist_ok=True)
        for file in card.values():
            shutil.copyfile(file, run.work_dir.report / file.name)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {
        "path": str(path),
        "model_name": run.model_name,
        "version": int(path.name),
        "weights": weights,
        **noted,
        "bytes": size,
        "fingerprint": _fingerprint(path),
        **_blessing(found[0]),
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


def _fingerprint(path: Path) -> str | None:
    """Return what tells the model from others: hashes of program, signatures, functions and variables."""
    if not (path / "fingerprint.pb").is_file():
        return None
    return str(tf.saved_model.experimental.read_fingerprint(str(path)).singleprint())


def _refuse_by_rules(run: Run, base: Path, weights: str) -> None:
    """Raise where `[export]` asks for what cannot be said, or for a better model: before anything is written."""
    if run.config.export.no_regression and run.held_out() is None:
        raise ConfigError(
            "`export.no_regression` must be false where every row trains: there are no rows to compare versions on."
        )
    floor = run.config.export.min_auc
    if floor is None:
        return
    results = evaluation(run)
    if results is None:
        raise DataError(
            f"{run.work_dir.path}: `export.min_auc` asks for the AUC of the {weights} weights. "
            "Run the stage `evaluate` first."
        )
    auc = results["metrics"][weights]["auc"]
    refuse_low_auc(base, float("nan") if auc is None else auc, floor, results["rows"], results["split"])


def _blessed(run: Run, directory: Path, base: Path, served: ServedRows) -> Blessing:
    rules = run.config.export
    held_out = HeldOut(
        served.arrays,
        served.ids,
        served.expected,
        served.labels,
        weights_of_all_rows(served.labels, None, run.config.logit_shift),
        BATCH,
    )
    return bless(directory, base, held_out, rules.tolerance, rules.max_regression if rules.no_regression else None)


def _blessing(found: Blessing) -> dict[str, Any]:
    verified, comparison = found.verified, found.comparison
    results: dict[str, Any] = {
        "verified_rows": verified.rows,
        "differences": verified.differences,
        "seconds_load": verified.seconds_load,
        "warmup_requests": verified.warmup_requests,
        "ops": list(verified.ops),
    }
    if comparison is not None:
        results["in_place"] = {
            "version": int(comparison.version.name),
            "log_loss": comparison.log_loss_in_place,
            "log_loss_of_this": comparison.log_loss,
        }
    return results
