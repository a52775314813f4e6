"""The multilayer perceptron of DLRM's bottom and top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfdlrm.layers.dropout import CountedDropout
from tfdlrm.layers.registry import serializable


@serializable
class MLP(keras.layers.Layer):
    """Fully connected layers, initialised as the paper's code does.

    A layer from n to m units draws its kernel from N(0, 2 / (n + m)) and its bias from N(0, 1 / m)
    (variances; facebookresearch/dlrm, `create_mlp`).

    Args:
        units: Width of each layer. At least one.
        activation: Activation of every layer but the last. Defaults to `"relu"`.
        final_activation: Activation of the last layer. Defaults to `"relu"`; `None` for logits.
        dropout: Share of the units of every layer but the last that is dropped in training. Defaults to 0.
        seed: Seed of the weights and of dropout; every layer draws from a seed of its own. Defaults to `None`.

    Input shape: `[B, n]`, any float dtype.
    Output shape: `[B, units[-1]]`, in the compute dtype of the layer's policy.

    Raises:
        ValueError: `units` is empty or has a width below 1, or `dropout` is outside [0, 1).

    Example:
        >>> MLP([4, 2])(tf.ones([3, 5])).shape
        TensorShape([3, 2])
    """

    def __init__(
        self,
        units: Sequence[int],
        activation: Any = "relu",
        final_activation: Any = "relu",
        dropout: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not units or min(units) < 1:
            raise ValueError(f"`units` must be one or more widths of at least 1. Received: {list(units)}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must be at least 0 and below 1. Received: {dropout}.")
        self.units = tuple(int(u) for u in units)
        self.activation = keras.activations.get(activation)
        self.final_activation = keras.activations.get(final_activation)
        self.dropout = float(dropout)
        self.seed = seed
        last = len(self.units) - 1
        self.hidden = [
            keras.layers.Dense(
                width,
                activation=self.final_activation if i == last else self.activation,
                kernel_initializer=keras.initializers.VarianceScaling(
                    1.0, "fan_avg", "untruncated_normal", seed=self._seed(2 * i)
                ),
                bias_initializer=keras.initializers.RandomNormal(stddev=width**-0.5, seed=self._seed(2 * i + 1)),
                dtype=self.dtype_policy,
                name=f"dense_{i}",
            )
            for i, width in enumerate(self.units)
        ]
        self.drops = [
            CountedDropout(self.dropout, seed=self._seed(1000 + i), dtype=self.dtype_policy, name=f"dropout_{i}")
            for i in range(last if self.dropout else 0)
        ]

    @property
    def dtype_policy(self) -> keras.mixed_precision.Policy:
        """The layer's dtype policy, shared with the layers inside."""
        return self._dtype_policy

    def _seed(self, offset: int) -> int | None:
        # One integer seed for every layer would start same-shaped kernels identical.
        return None if self.seed is None else self.seed * 7919 + offset

    def build(self, input_shape: tf.TensorShape) -> None:
        """Create the weights for inputs of `[B, n]`."""
        shape = tf.TensorShape(input_shape)
        for i, dense in enumerate(self.hidden):
            with tf.name_scope(dense.name):
                dense.build(shape)
            shape = tf.TensorShape([None, dense.units])
            if i < len(self.drops):
                with tf.name_scope(self.drops[i].name):
                    self.drops[i].build(shape)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Map `[B, n]` to `[B, units[-1]]`."""
        x = inputs
        for i, dense in enumerate(self.hidden):
            x = dense(x)
            if i < len(self.drops):
                x = self.drops[i](x, training=training)
        return x

    def compute_output_shape(self, input_shape: tf.TensorShape) -> tf.TensorShape:
        """Return `[B, units[-1]]`."""
        return tf.TensorShape([tf.TensorShape(input_shape)[0], self.units[-1]])

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "units": list(self.units),
            "activation": keras.activations.serialize(self.activation),
            "final_activation": keras.activations.serialize(self.final_activation),
            "dropout": self.dropout,
            "seed": self.seed,
        }
