"""Dropout whose masks follow from a seed and a saved counter, so that a resumed run draws what it would have drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfdlrm.layers.registry import serializable


@serializable
class CountedDropout(keras.layers.Layer):
    """Zero a share of the units in training and scale up the others.

    `keras.layers.Dropout` draws from a generator whose state no checkpoint holds; here the mask of the n-th training
    call is a pure function of (seed, n), and n is a weight of the layer.

    Args:
        rate: Share of units dropped, in [0, 1).
        seed: Seed; `None` draws one from NumPy's global generator. Defaults to `None`.

    Input shape: any. Output shape: the same.

    Raises:
        ValueError: `rate` is outside [0, 1).
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` must be at least 0 and below 1. Received: {rate}.")
        self.rate = float(rate)
        self.seed = seed
        self._drawn_seed = int(np.random.randint(2**31)) if seed is None else seed

    def build(self, input_shape: Any) -> None:
        """Create the counter of training calls."""
        self.calls = self.add_weight("calls", shape=[], dtype=tf.int32, initializer="zeros", trainable=False)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Return the inputs, in training with units dropped."""
        if not training:
            return inputs
        number = self.calls.assign_add(1)
        return tf.nn.experimental.stateless_dropout(inputs, self.rate, seed=[self._drawn_seed, number])

    def compute_output_shape(self, input_shape: Any) -> tf.TensorShape:
        """Return the input shape."""
        return tf.TensorShape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}
