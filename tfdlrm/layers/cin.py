"""The compressed interaction network of xDeepFM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfdlrm.layers.registry import serializable


@serializable
class CompressedInteraction(keras.layers.Layer):
    """Vector-wise crosses of growing degree, each layer pooled (xDeepFM, arXiv 1803.05170, section 3.1).

    With x^0 the m vectors of a sample and H_0 = m, layer k has H_k feature maps; map h of width d is (equation 6)

    ::

        x^k_h = sum_{i <= H_{k-1}} sum_{j <= m} W^{k,h}_ij (x^{k-1}_i * x^0_j)

    and what it gives is the sum over its d numbers, p^k_h (equation 7). As in the equations, every map is both pooled
    and handed on, and there is no activation, which the paper finds best (section 4.4.3).

    Kernels are drawn from N(0, 2 / (H_{k-1} m + H_k)), Glorot's normal distribution.

    Args:
        units: Feature maps of each layer, H_1, H_2 ... At least one.
        seed: Seed of the weights; every layer draws from a seed of its own. Defaults to `None`.

    Input shape: `[B, m, d]`, any float dtype.
    Output shape: `[B, sum(units)]`, in the compute dtype of the layer's policy.

    Raises:
        ValueError: `units` is empty or has a number below 1, or the input has another rank.

    Example:
        >>> CompressedInteraction([4, 2])(tf.ones([3, 5, 8])).shape
        TensorShape([3, 6])
    """

    def __init__(self, units: Sequence[int], seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not units or min(units) < 1:
            raise ValueError(f"`units` must be one or more numbers of at least 1. Received: {list(units)}.")
        self.units = tuple(int(u) for u in units)
        self.seed = seed

    def build(self, input_shape: Any) -> None:
        """Create one kernel `[H_{k-1} m, H_k]` a layer."""
        shape = tf.TensorShape(input_shape)
        if shape.rank != 3 or None in shape[1:].as_list():
            raise ValueError(f"`inputs` must have shape [B, m, d] with m and d known. Received: {shape}.")
        before = [shape[1], *self.units]
        self.kernels = [
            self.add_weight(f"kernel_{k}", [before[k] * shape[1], units], initializer=self._initializer(k))
            for k, units in enumerate(self.units)
        ]
        super().build(input_shape)

    def _initializer(self, k: int) -> keras.initializers.Initializer:
        seed = None if self.seed is None else self.seed * 7919 + k
        return keras.initializers.VarianceScaling(1.0, "fan_avg", "untruncated_normal", seed=seed)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Map `[B, m, d]` to `[B, sum(units)]`."""
        m, d = inputs.shape[1:]
        # Rows are pairs of a sample and one of the d places, so that a layer is one product of matrices.
        first = tf.reshape(tf.transpose(inputs, [0, 2, 1]), [-1, m])  # [B d, m]
        maps, pooled = first, []
        for kernel in self.kernels:
            height, width = maps.shape[1], kernel.shape[1]
            # Two orders of the same sums; the smaller array between decides.
            if width < height:
                parts = tf.reshape(tf.matmul(maps, tf.reshape(kernel, [height, m * width])), [-1, m, width])
                maps = tf.reduce_sum(first[:, :, tf.newaxis] * parts, axis=1)  # [B d, H']
            else:
                crosses = maps[:, :, tf.newaxis] * first[:, tf.newaxis, :]  # [B d, H, m]
                maps = tf.matmul(tf.reshape(crosses, [-1, height * m]), kernel)  # [B d, H']
            pooled.append(tf.reduce_sum(tf.reshape(maps, [-1, d, maps.shape[1]]), axis=1))
        return tf.concat(pooled, axis=1)

    def compute_output_shape(self, input_shape: Any) -> tf.TensorShape:
        """Return `[B, sum(units)]`."""
        return tf.TensorShape([tf.TensorShape(input_shape)[0], sum(self.units)])

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "units": list(self.units), "seed": self.seed}
