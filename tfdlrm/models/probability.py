"""The click probability that a model answers, its log-odds set right where rows were left out by label."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
import tf_keras as keras

from tfdlrm.models.click_model import Batch


def probability_function(model: keras.Model, logit_shift: float = 0.0) -> Callable[[Batch], tf.Tensor]:
    """Return a function from a batch to click probabilities `[B, 1]`, float32, dropout off.

    The shift is added to the logits: at a logit of 40, whose probability is 1 in float32, none of it is lost.

    Args:
        model: A `ClickModel`. Where there is no shift, any model from batches to probabilities.
        logit_shift: Added to the log-odds: ln(1 - r) where training saw only a share 1 - r of the rows with label 0.
            Defaults to 0.
    """
    if not logit_shift:
        return lambda batch: model(batch, training=False)
    return lambda batch: tf.sigmoid(model.logits(batch, training=False) + logit_shift)
