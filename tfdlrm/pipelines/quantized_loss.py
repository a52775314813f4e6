"""What embedding tables in fewer bytes cost a trained model on held-out rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tf_keras as keras

from tfdlrm.export.quantized import quantized_tables
from tfdlrm.export.serving_rows import serving_rows
from tfdlrm.metrics.binary import evaluate_binary
from tfdlrm.metrics.sampling import weights_of_all_rows
from tfdlrm.pipelines.stages.context import Run
from tfdlrm.spec.config import TableForm
from tfdlrm.spec.errors import ConfigError
from tfdlrm.training.rounds import Progress
from tfdlrm.training.trainer import Scorer, Scores

_METRICS = ("auc", "log_loss", "normalized_entropy", "calibration")


def judge_tables(run: Run, model: keras.Model, forms: Iterable[TableForm]) -> dict[str, Any]:
    """Score the held-out rows with the tables as they are and in other forms, as they would be served.

    Args:
        run: A run that has been trained.
        model: Its trained model.
        forms: Other forms than `"float32"`.

    Returns:
        `split`, `rows`, `weights` and `step` of what was judged, and `forms`: for `"float32"` and each of `forms`,
        `bytes` of the tables and their `ratio` to float32, AUC, log loss, normalized entropy and calibration, what is
        lost of the AUC and added to the log loss, and the greatest and the mean `difference` of a probability.
    """
    split = run.held_out() or "train"
    rows = run.manifest.splits[split].rows
    judged: dict[str, dict[str, Any]] = {}
    with run.console.bars() as bar, serving_rows(model, run.untouched_rows):
        for form in dict.fromkeys(("float32", *forms)):
            with quantized_tables(model, form) as size:
                labels, scores, weight = _scores(run, model, split, bar(f"score {form}", rows))
            metrics = evaluate_binary(labels, scores, weights_of_all_rows(labels, weight, run.config.logit_shift))
            own = judged.setdefault("float32", {**metrics.as_dict(), "scores": scores})
            differences = np.abs(scores.astype(np.float64) - own["scores"])
            judged[form] = {
                "scores": scores,
                "bytes": size.stored,
                "ratio": size.stored / size.float32,
                **{name: getattr(metrics, name) for name in _METRICS},
                "auc_loss": own["auc"] - metrics.auc,
                "log_loss_added": metrics.log_loss - own["log_loss"],
                "difference_max": float(differences.max(initial=0.0)),
                "difference_mean": float(differences.mean()) if differences.size else 0.0,
            }
    without_scores = {form: {k: v for k, v in found.items() if k != "scores"} for form, found in judged.items()}
    return {
        "split": split,
        "rows": rows,
        "weights": run.chosen_weights(),
        "step": run.chosen_step(),
        "forms": without_scores,
    }


def _scores(run: Run, model: keras.Model, split: str, progress: Progress) -> Scores:
    """Score a split by a graph of its own: a graph reads the tables that it was traced with, and keeps them."""
    batches = run.batches(split)
    return Scorer(model, run.config.logit_shift, batches.element_spec[0])(batches, progress)


def refuse_loss(judged: Mapping[str, Any] | None, form: TableForm, most: float) -> None:
    """Raise where tables in a form cost more AUC than they may; an AUC that nothing defines costs nothing.

    Raises:
        ConfigError: they do.
    """
    loss = None if judged is None else judged["forms"][form]["auc_loss"]
    if judged is not None and loss is not None and not math.isnan(loss) and loss > most:
        raise ConfigError(
            f'`export.tables` "{form}" must cost at most {most:g} of the AUC, `export.max_auc_loss`. Received: '
            f"{loss:.5f} on {judged['rows']:,} {judged['split']} rows; nothing was exported."
        )
