"""Stage `export`: the chosen weights and the encoder as the next version of a SavedModel, once it has been blessed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tensorflow as tf

from tfdlrm.data.encoder_files import ENCODER_FILE
from tfdlrm.data.files import write_atomic
from tfdlrm.export.blessing import Blessing, HeldOut, bless, refuse_low_auc
from tfdlrm.export.quantized import quantized_tables
from tfdlrm.export.saved_model import export_model
from tfdlrm.export.serving_rows import serving_rows
from tfdlrm.export.warmup import NEEDS, can_warm_up
from tfdlrm.metrics.sampling import weights_of_all_rows
from tfdlrm.pipelines.model_card import evaluation, write_card
from tfdlrm.pipelines.quantized_loss import judge_tables, refuse_loss
from tfdlrm.pipelines.served_rows import BATCH, ServedRows, served_rows
from tfdlrm.pipelines.stages.context import Run
from tfdlrm.spec.errors import ConfigError, DataError

_ENCODER_BYTES = 64 << 20


def export_settings(run: Run) -> dict[str, Any]:
    """Return what the answers and signatures of a version depend on, besides the weights, as JSON values."""
    export = run.config.export
    return {
        "logit_shift": run.config.logit_shift,
        "unseen": export.unseen,
        "tables": export.tables,
        "rank_candidates": list(export.rank_candidates),
        "warmup_batch_sizes": list(export.warmup_batch_sizes) if can_warm_up() else [],
    }


def work(run: Run) -> dict[str, Any] | None:
    """Write the version that follows the highest one, unless it would answer what the last one answers."""
    weights, base, export = run.chosen_weights(), Path(run.config.export.directory) / run.model_name, run.config.export
    noted = {"step": run.chosen_step(), **export_settings(run)}
    tables = export.tables
    _refuse_without_rows(run)
    before = run.work_dir.stage("export")
    if (
        before
        and Path(before["path"]).is_dir()
        and Path(before["path"]).parent == base
        and {name: before.get(name) for name in noted} == noted
    ):
        refuse_loss(before.get("quantized"), tables, export.max_auc_loss)
        _refuse_low_auc(run, base, before.get("quantized"))
        return None
    if tables == "float32":
        _refuse_low_auc(run, base, None)
    model = run.trained_model()
    found: list[Blessing] = []
    with (
        TemporaryDirectory(prefix="tfdlrm-card-") as folder,
        # The rows are those that are served, and are packed once: to be judged, asked, and written.
        serving_rows(model, run.untouched_rows),
        quantized_tables(model, tables),
    ):
        quantized = None if tables == "float32" else judge_tables(run, model, [tables])
        refuse_loss(quantized, tables, export.max_auc_loss)
        if quantized is not None:
            _refuse_low_auc(run, base, quantized)
        served = served_rows(run, model)
        card = write_card(run, served.columns, Path(folder), quantized)
        encoder = _encoder_files(run)

        def blessed(directory: Path) -> None:
            found.append(_blessed(run, directory, base, served))
            # Who finds the version finds its card in the report, too.
            for file in card.values():
                write_atomic(run.work_dir.report / file.name, file.read_bytes())

        path = export_model(
            model,
            run.encoder,
            base,
            untouched_rows=run.untouched_rows,
            logit_shift=run.config.logit_shift,
            vocabulary=(run.manifest.vocabulary_version, run.manifest.vocabulary_parent),
            tables=tables,
            config=run.config,
            rank_candidates=export.rank_candidates,
            warmup=served.arrays,
            warmup_batch_sizes=noted["warmup_batch_sizes"],
            bless=blessed,
            extra_assets=card | encoder,
        )
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {
        "path": str(path),
        "model_name": run.model_name,
        "version": int(path.name),
        "weights": weights,
        **noted,
        "bytes": size,
        "fingerprint": _fingerprint(path),
        "encoder_files": sorted(encoder),
        **_blessing(found[0]),
        **({} if can_warm_up() or not export.warmup_batch_sizes else {"warning": f"none written: {NEEDS}"}),
        **({} if quantized is None else {"quantized": quantized}),
    }


def summary(results: Mapping[str, Any]) -> str:
    """Say what was written."""
    shift = results["logit_shift"]
    corrected = f", log-odds corrected by {shift:.4f} for the rows left out" if shift else ""
    size = f"{results['bytes'] / 2**20:,.1f} MiB"
    warning = f", warm-up requests: {results['warning']}" if "warning" in results else ""
    return f"{results['path']}, {size}, {results['weights']} weights{corrected}{_quantized(results)}{warning}"


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


def _encoder_files(run: Run) -> dict[str, Path]:
    """Return the encoder's files by the names they get beside the version, without vocabularies that are large.

    A version does not read them: its vocabularies are variables.
    """
    paths = {name: run.work_dir.data / name for name in run.encoder.asset_names}
    small = sum(path.stat().st_size for path in paths.values()) <= _ENCODER_BYTES
    return {f"encoder/{name}": path for name, path in paths.items() if small or name == ENCODER_FILE}


def _refuse_without_rows(run: Run) -> None:
    """Raise where `[export]` asks for what cannot be said, since every row trains."""
    if run.held_out() is not None:
        return
    if run.config.export.no_regression:
        raise ConfigError(
            "`export.no_regression` must be false where every row trains: there are no rows to compare versions on."
        )
    if run.config.export.min_auc is not None:
        raise ConfigError(
            "`export.min_auc` must be absent where every row trains: there are no rows to judge the model on. "
            f"Received: {run.config.export.min_auc:g}."
        )


def _refuse_low_auc(run: Run, base: Path, quantized: Mapping[str, Any] | None) -> None:
    """Raise where `[export]` asks for a better model than this one, as it is served.

    Args:
        run: The run.
        base: Folder of the model's versions.
        quantized: What `judge_tables` said of the form in which tables are served; `None` for float32, of which the
            stage `evaluate` says it.
    """
    floor, weights, tables = run.config.export.min_auc, run.chosen_weights(), run.config.export.tables
    if floor is None:
        return
    judged = evaluation(run) if quantized is None else quantized
    if judged is None:
        raise DataError(
            f"{run.work_dir.path}: `export.min_auc` asks for the AUC of the {weights} weights. "
            "Run the stage `evaluate` first."
        )
    auc = judged["metrics"][weights]["auc"] if quantized is None else quantized["forms"][tables]["auc"]
    stored = "" if quantized is None else f", tables in {tables}"
    refuse_low_auc(
        base, float("nan") if auc is None else auc, floor, judged["rows"], judged["split"] + " rows" + stored
    )


def _blessed(run: Run, directory: Path, base: Path, served: ServedRows) -> Blessing:
    rules = run.config.export
    held_out = HeldOut(
        served.arrays,
        served.ids,
        served.expected,
        served.labels,
        weights_of_all_rows(served.labels, served.weight, run.config.logit_shift),
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
            "standard_error": comparison.standard_error,
        }
    return results
