"""How the vectors of a bag become one: sum or mean, with weights that come with the batch or are learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tfdlrm.spec.features import SparseFeature


class Run(NamedTuple):
    """Neighbouring features that are pooled alike, so that a few operations pool them all.

    Attributes:
        hotness: Ids of a bag.
        combiner: `"sum"` or `"mean"`.
        weighted: Whether the batch carries weights.
        learned: Whether weights are learned.
        features: Number of features.
    """

    hotness: int
    combiner: str
    weighted: bool
    learned: bool
    features: int


def runs_of(features: Sequence[SparseFeature]) -> list[Run]:
    """Return the runs of neighbours that are pooled alike."""
    runs: list[Run] = []
    for feature in features:
        run = Run(feature.hotness, feature.combiner, feature.weighted, feature.learned_weights, 1)
        if runs and runs[-1][:-1] == run[:-1]:
            runs[-1] = run._replace(features=runs[-1].features + 1)
        else:
            runs.append(run)
    return runs


def pool(
    runs: Sequence[Run],
    vectors: tf.Tensor,
    present: tf.Tensor,
    weights: tf.Tensor | None = None,
    learned: tf.Tensor | None = None,
) -> list[tf.Tensor]:
    """Pool bags: sum_j w_j a_j v_j, and under `"mean"` that divided by sum_j w_j, or zeros where that sum is 0.

    w_j is what the batch carries, else 1; a_j is what is learned for the id, else 1. Padding adds nothing to either
    sum. A mean is not divided by learned weights: they may change their sign, and a sum near 0 would have no bound.

    Args:
        runs: The features, in the order of the columns.
        vectors: `[B, columns, d]`, zeros for padding.
        present: Booleans `[B, columns]`, false for padding.
        weights: Weights of the batch, `[B, columns]`; columns of features without weights do not count.
        learned: Learned weights, `[B, columns of the features that have them]`.

    Returns:
        One `[B, run.features, d]` for each run.
    """
    pooled, start, learned_start = [], 0, 0
    for run in runs:
        size = run.hotness * run.features
        stop = start + size
        # The gradient of a slice fills a tensor with zeros first: none is taken where the run is everything.
        bag = vectors if len(runs) == 1 else vectors[:, start:stop]
        share = tf.cast(present[:, start:stop], vectors.dtype)
        if run.weighted and weights is not None:
            share *= weights[:, start:stop]
        if run.weighted:
            bag *= share[:, :, tf.newaxis]
        if run.learned and learned is not None:
            # Padding has a vector of zeros, and so needs no mask.
            bag *= learned[:, learned_start : learned_start + size, tf.newaxis]
            learned_start += size
        if run.hotness > 1:
            bag = tf.reduce_sum(tf.reshape(bag, [-1, run.features, run.hotness, vectors.shape[2]]), axis=2)
        if run.combiner == "mean" and (run.hotness > 1 or run.weighted):
            total = tf.reduce_sum(tf.reshape(share, [-1, run.features, run.hotness]), axis=2)
            bag = tf.math.divide_no_nan(bag, total[:, :, tf.newaxis])
        pooled.append(bag)
        start = stop
    return pooled
