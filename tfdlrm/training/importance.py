"""Permutation importance: how much worse a trained model gets when one feature is dealt out anew among the rows."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
import tf_keras as keras
from sklearn.inspection import permutation_importance as sklearn_importance

from tfdlrm.metrics.binary import evaluate_binary
from tfdlrm.metrics.sampling import weights_of_all_rows
from tfdlrm.models.probability import probability_function

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class FeatureImportance:
    """What a model loses without one feature.

    Attributes:
        name: The feature.
        kind: `"dense"` or `"sparse"`.
        log_loss: Rise of the log loss, one number a repeat.
        auc: Fall of the AUC, likewise; nan where the rows hold one class only.
    """

    name: str
    kind: str
    log_loss: tuple[float, ...]
    auc: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return name, kind and, for each metric, `mean`, `spread` (sample standard deviation) and `values`."""
        metrics = {"log_loss": self.log_loss, "auc": self.auc}
        return {
            "name": self.name,
            "kind": self.kind,
            **{
                name: {
                    "mean": statistics.fmean(values),
                    "spread": statistics.stdev(values) if len(values) > 1 else None,
                    "values": list(values),
                }
                for name, values in metrics.items()
            },
        }


@dataclass(frozen=True)
class Importances:
    """The importance of every feature.

    Attributes:
        rows: Rows it was measured on.
        log_loss: Log loss of those rows as they are.
        auc: Their AUC.
        features: In the order of the spec, dense features first.
    """

    rows: int
    log_loss: float
    auc: float
    features: tuple[FeatureImportance, ...]


def permutation_importance(
    model: keras.Model,
    batches: Iterable[tuple[Any, ...]],
    repeats: int = 5,
    seed: int = 0,
    *,
    logit_shift: float = 0.0,
    batch_size: int = 8192,
    progress: Callable[[int], None] = lambda rows: None,
) -> Importances:
    """Measure the rise of the log loss and the fall of the AUC when one feature at a time is permuted (Breiman 2001).

    A bag is permuted whole, its ids together with their weights. All rows are in memory, and an index of 4 bytes for
    each row and feature beside them; scikit-learn does the permuting. What a feature tells that others tell too is not
    seen: the model falls back on them.

    Args:
        model: A built `ClickModel`.
        batches: Rows of the batch contract, as tensors or arrays.
        repeats: Permutations of each feature, at least 1. Defaults to 5.
        seed: Of the permutations, in [0, 2**32). The same seed and rows give the same numbers.
        logit_shift: Added to the log-odds, and undone in the weights of rows with label 0: see
            `tfdlrm.metrics.sampling`. Defaults to 0.
        batch_size: Rows that are scored at a time. Defaults to 8192.
        progress: Called with the number of rows just scored: `rows * (1 + features * repeats)` in all.

    Raises:
        ValueError: `repeats` is below 1, or there are no rows.
    """
    if repeats < 1:
        raise ValueError(f"`repeats` must be at least 1. Received: {repeats}.")
    inputs, labels, weight = _joined(batches)
    weight = weights_of_all_rows(labels, weight, logit_shift)
    rows = _ShuffledRows(model, inputs, logit_shift, batch_size, progress)
    whole: list[dict[str, float]] = []

    def scores(
        rows: _ShuffledRows, index: Array, labels: Array, sample_weight: Array | None = None
    ) -> dict[str, float]:
        metrics = evaluate_binary(labels, rows.probabilities(index), sample_weight)
        found = {"log_loss": -metrics.log_loss, "auc": metrics.auc}  # both better when higher
        whole.append(found)
        return found

    result = sklearn_importance(
        rows, rows.index, labels, scoring=scores, n_repeats=repeats, random_state=seed, sample_weight=weight
    )
    spec = model.spec
    kinds = [*((name, "dense") for name in spec.dense_names), *((name, "sparse") for name in spec.sparse_names)]
    return Importances(
        rows=len(labels),
        log_loss=-whole[0]["log_loss"],
        auc=whole[0]["auc"],
        features=tuple(
            FeatureImportance(name, kind, *(tuple(result[metric].importances[i].tolist()) for metric in whole[0]))
            for i, (name, kind) in enumerate(kinds)
        ),
    )


class _ShuffledRows:
    """What scikit-learn takes for an estimator: scores rows whose features may come from different rows.

    Its input is a matrix `[rows, features]` that says from which row the value of a feature is. So a bag, many columns
    wide, is one column to permute.
    """

    def __init__(
        self,
        model: keras.Model,
        inputs: dict[str, Array],
        logit_shift: float,
        batch_size: int,
        progress: Callable[[int], None],
    ) -> None:
        self._inputs = inputs
        self._score = tf.function(probability_function(model, logit_shift), reduce_retracing=True, autograph=False)
        self._batch_size = batch_size
        self._progress = progress
        spec = model.spec
        dense = [{"dense": slice(i, i + 1)} for i in range(spec.n_dense)]
        bags = [slice(*spec.id_columns[name]) for name in spec.sparse_names]
        self._places = dense + [{name: bag for name in ("sparse", "weights") if name in inputs} for bag in bags]
        self._rows = np.arange(len(inputs["sparse"]), dtype=np.int32)

    @property
    def index(self) -> npt.NDArray[np.int32]:
        """Every feature from its own row."""
        return np.repeat(self._rows[:, np.newaxis], len(self._places), axis=1)

    def fit(self, index: Array, labels: Array) -> _ShuffledRows:
        """Do nothing: the model is trained. Scikit-learn takes nothing for an estimator that has no such method."""
        return self

    def probabilities(self, index: npt.NDArray[np.int32]) -> Array:
        """Return click probabilities, float32 `[rows]`."""
        inputs = {name: values.copy() for name, values in self._inputs.items()}
        for rows, places in zip(index.T, self._places, strict=True):
            if not np.array_equal(rows, self._rows):
                for name, columns in places.items():
                    inputs[name][:, columns] = self._inputs[name][rows, columns]
        found = []
        for start in range(0, len(self._rows), self._batch_size):
            batch = {name: tf.constant(values[start : start + self._batch_size]) for name, values in inputs.items()}
            found.append(self._score(batch).numpy()[:, 0])
            self._progress(len(found[-1]))
        return np.concatenate(found)


def _joined(batches: Iterable[tuple[Any, ...]]) -> tuple[dict[str, Array], Array, Array | None]:
    """Return the inputs, labels `[n]` and sample weights `[n]`, if there are any, of all batches."""
    parts = [[{name: np.asarray(values) for name, values in batch[0].items()}, *batch[1:]] for batch in batches]
    if not sum(len(part[1]) for part in parts):
        raise ValueError("`batches` must hold at least one row. Received: none.")
    inputs = {name: np.concatenate([part[0][name] for part in parts]) for name in parts[0][0]}
    labels, *weights = (
        np.concatenate([np.asarray(part[i]) for part in parts]).reshape(-1) for i in range(1, len(parts[0]))
    )
    return inputs, labels, weights[0] if weights else None
