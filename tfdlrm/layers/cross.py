"""Cross layers: explicit feature crosses of bounded degree."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfdlrm.layers.registry import serializable


@serializable
class CrossNetwork(keras.layers.Layer):
    """Cross layers one after the other, each with the input x_0 and the output x_l of the one before.

    ::

        kernel="vector":          x_{l+1} = x_0 (w_l^T x_l) + b_l + x_l            DCN, arXiv 1708.05123, equation 3
        kernel="matrix":          x_{l+1} = x_0 * (W_l x_l + b_l) + x_l            DCN-v2, arXiv 2008.13535, equation 1
        kernel="matrix", rank=r:  x_{l+1} = x_0 * (U_l (V_l^T x_l) + b_l) + x_l    the same, equation 2

    Kernels are drawn from N(0, 2 / (rows + columns)), Glorot's normal distribution; biases start at 0.

    Args:
        depth: Number of layers; features are crossed up to degree `depth` + 1. At least 1.
        kernel: `"matrix"` or `"vector"`. Defaults to `"matrix"`.
        rank: Rank of the matrices, at least 1; `None` for full rank. Defaults to `None`.
        seed: Seed of the weights; every kernel draws from a seed of its own. Defaults to `None`.

    Input shape: `[B, n]`, any float dtype.
    Output shape: `[B, n]`, in the compute dtype of the layer's policy.

    Raises:
        ValueError: `depth` or `rank` is below 1, `kernel` is unknown, or a vector is to have a rank.

    Example:
        >>> CrossNetwork(2, rank=1)(tf.ones([3, 5])).shape
        TensorShape([3, 5])
    """

    def __init__(
        self, depth: int, kernel: str = "matrix", rank: int | None = None, seed: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if depth < 1:
            raise ValueError(f"`depth` must be at least 1. Received: {depth}.")
        if kernel not in ("matrix", "vector"):
            raise ValueError(f'`kernel` must be "matrix" or "vector". Received: {kernel!r}.')
        if rank is not None and (rank < 1 or kernel == "vector"):
            raise ValueError(f'`rank` must be at least 1, and `None` for `kernel` "vector". Received: {rank}.')
        self.depth = int(depth)
        self.kernel = kernel
        self.rank = rank
        self.seed = seed

    def build(self, input_shape: Any) -> None:
        """Create the weights for inputs of `[B, n]`."""
        shape = tf.TensorShape(input_shape)
        if shape.rank != 2 or shape[1] is None:
            raise ValueError(f"`inputs` must have shape [B, n] with n known. Received: {shape}.")
        n = shape[1]
        # The factors of a layer's kernel, in the order that multiplies x_l.
        if self.kernel == "vector":
            factors = {"kernel": [n, 1]}
        elif self.rank is None:
            factors = {"kernel": [n, n]}
        else:
            factors = {"kernel_v": [n, self.rank], "kernel_u": [self.rank, n]}
        self.kernels = [
            [self._kernel(f"{name}_{i}", size, 2 * i + j) for j, (name, size) in enumerate(factors.items())]
            for i in range(self.depth)
        ]
        self.biases = [self.add_weight(f"bias_{i}", [n], initializer="zeros") for i in range(self.depth)]
        super().build(input_shape)

    def _kernel(self, name: str, shape: list[int], offset: int) -> tf.Variable:
        # One integer seed for all would start same-shaped kernels identical.
        seed = None if self.seed is None else self.seed * 7919 + offset
        initializer = keras.initializers.VarianceScaling(1.0, "fan_avg", "untruncated_normal", seed=seed)
        return self.add_weight(name, shape, initializer=initializer)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Map `[B, n]` to `[B, n]`."""
        x = inputs
        for factors, bias in zip(self.kernels, self.biases, strict=True):
            product = x
            for factor in factors:
                product = tf.matmul(product, factor)
            x = inputs * product + bias + x if self.kernel == "vector" else inputs * (product + bias) + x
        return x

    def compute_output_shape(self, input_shape: Any) -> tf.TensorShape:
        """Return the input shape."""
        return tf.TensorShape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        config = {"depth": self.depth, "kernel": self.kernel, "rank": self.rank, "seed": self.seed}
        return {**super().get_config(), **config}
