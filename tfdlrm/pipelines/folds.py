"""Cross-validation: every fold in a work dir of its own, then mean and spread."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from tfdlrm.pipelines.run import run_pipeline
from tfdlrm.pipelines.table import fold_table, say_tables
from tfdlrm.pipelines.work_dir import WorkDir
from tfdlrm.spec.config import RunConfig

_STAGES = ("prepare", "train", "evaluate")
_METRICS = ("auc", "log_loss", "normalized_entropy", "calibration", "accuracy")


def cross_validate(config: RunConfig, work_dir: WorkDir, overwrite: bool = False) -> dict[str, Any]:
    """Prepare, train and evaluate once for each fold, in `fold-<k>` of a work dir; finished folds are not done again.

    Args:
        config: The configuration, split by fold; its `data.split.fold` is set to each fold in turn.
        work_dir: Opened. Gets `metrics.json` with every fold's metrics, their means and their spreads: sample
            standard deviations between folds.
        overwrite: Start afresh in folders that hold a run.

    Returns:
        What `metrics.json` holds.

    Raises:
        UserError: as `run_pipeline`.
    """
    split = config.data.split
    folds: list[dict[str, Any]] = []
    for fold in range(split.folds):
        data = config.data.model_copy(update={"split": split.model_copy(update={"fold": fold})})
        own = config.model_copy(update={"data": data})
        with WorkDir(work_dir.path / f"fold-{fold}").open(own, overwrite) as directory:
            metrics = run_pipeline(own, directory, _STAGES, overwrite, table=False)
        evaluated = metrics["stages"]["evaluate"]
        folds.append({"fold": fold, **{key: evaluated[key] for key in ("rows", "steps", "metrics")}})
    results = {"name": config.name, "folds": folds, **_summary(folds)}
    work_dir.write_metrics(results)
    say_tables(fold_table(results))
    return results


def _summary(folds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return mean and spread of every metric, for every scorer that all folds have."""
    names = [name for name in folds[0]["metrics"] if all(name in fold["metrics"] for fold in folds)]
    summary: dict[str, Any] = {"mean": {}, "spread": {}}
    for name in names:
        for metric in _METRICS:
            values = [fold["metrics"][name][metric] for fold in folds]
            known = [value for value in values if value is not None]
            summary["mean"].setdefault(name, {})[metric] = statistics.fmean(known) if known else None
            summary["spread"].setdefault(name, {})[metric] = statistics.stdev(known) if len(known) > 1 else None
    return summary
