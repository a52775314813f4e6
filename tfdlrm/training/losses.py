"""The losses of click models, exact at any logit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfdlrm.spec.losses import LossName, LossSettings


@keras.saving.register_keras_serializable(package="tfdlrm")
class ClickLoss(keras.losses.Loss):
    """Loss of a click probability: that of facebookresearch/dlrm's `--loss-function`, but from logits where it may be.

    With label y, smoothed label s = y (1 - a) + a / 2 and probability p:

    - `"bce"`: -s ln p - (1 - s) ln(1 - p);
    - `"wbce"`: the same times w[y]; the mean is over rows, not over weights;
    - `"mse"`: (p - s) squared.

    With a threshold t above 0, p is first drawn in to [t, 1 - t]; beyond it the gradient is zero.

    Log losses are computed from the logits that Keras notes on the output of its sigmoid: at a logit of 1e4 on the
    wrong side `"bce"` is 1e4 with gradient 1. Of probabilities that come from elsewhere Keras cuts off 1e-7 at both
    ends.

    Args:
        loss: `"bce"`, `"wbce"` or `"mse"`. Defaults to `"bce"`.
        loss_weights: w[0] and w[1], above 0, for `"wbce"` only. Defaults to `None`.
        loss_threshold: t, at least 0 and below 0.5. Defaults to 0, which is off.
        label_smoothing: a, at least 0 and below 1. Defaults to 0.
        reduction: As in Keras. Defaults to the mean over rows.
        name: Defaults to `"click_loss"`.

    Call arguments:
        y_true: 0 or 1, `[B, 1]` or `[B]`.
        y_pred: Probabilities, float `[B, 1]`.
        sample_weight: `[B, 1]` or `[B]`, multiplied with the loss of each row. Defaults to 1.

    Raises:
        SpecError: an argument is out of its range, or has no use for this kind.

    Example:
        >>> loss = ClickLoss("wbce", loss_weights=(1.0, 3.0))
        >>> round(float(loss([[1.0], [0.0]], [[0.5], [0.5]])) / math.log(2), 4)
        2.0
    """

    def __init__(
        self,
        loss: LossName = "bce",
        loss_weights: Sequence[float] | None = None,
        loss_threshold: float = 0.0,
        label_smoothing: float = 0.0,
        reduction: str = keras.losses.Reduction.AUTO,
        name: str = "click_loss",
    ) -> None:
        super().__init__(reduction=reduction, name=name)
        self.settings = LossSettings(
            loss=loss, loss_weights=loss_weights, loss_threshold=loss_threshold, label_smoothing=label_smoothing
        )

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Return the loss of each row, `[B]`."""
        y_pred = tf.convert_to_tensor(y_pred)
        label = tf.cast(y_true, y_pred.dtype)
        if label.shape.rank == 1 and y_pred.shape.rank == 2:
            label = label[:, tf.newaxis]
        kind, threshold, smoothing = self.settings.loss, self.settings.loss_threshold, self.settings.label_smoothing
        if kind == "bce" and not threshold:
            return keras.losses.binary_crossentropy(label, y_pred, label_smoothing=smoothing)
        target = label * (1 - smoothing) + smoothing / 2
        if kind == "mse":
            drawn_in = tf.clip_by_value(y_pred, threshold, 1 - threshold) if threshold else y_pred
            return tf.reduce_mean(tf.square(drawn_in - target), axis=-1)
        loss = _cross_entropy(target, y_pred, threshold)
        if self.settings.loss_weights is not None:
            of_zero, of_one = self.settings.loss_weights
            loss *= tf.where(label > 0.5, tf.constant(of_one, loss.dtype), tf.constant(of_zero, loss.dtype))
        return tf.reduce_mean(loss, axis=-1)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), **self.settings.model_dump(mode="json")}


def build_loss(config: LossSettings) -> ClickLoss:
    """Return the loss that `[train]` describes."""
    return ClickLoss(**{key: getattr(config, key) for key in LossSettings.model_fields})


def _cross_entropy(target: tf.Tensor, probability: tf.Tensor, threshold: float) -> tf.Tensor:
    entropy = keras.backend.binary_crossentropy
    if not threshold:
        return entropy(target, probability)
    # Both -ln p and -ln(1 - p) fall as their probability rises: drawing it in to [t, 1 - t] is drawing them in to
    # [-ln(1 - t), -ln t], which loses no digit where p is next to 0 or 1.
    least, most = -math.log1p(-threshold), -math.log(threshold)
    of_one = tf.clip_by_value(entropy(tf.ones_like(probability), probability), least, most)
    of_zero = tf.clip_by_value(entropy(tf.zeros_like(probability), probability), least, most)
    return target * of_one + (1 - target) * of_zero
