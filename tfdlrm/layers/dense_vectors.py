"""Vectors of dense features, so that numbers meet embeddings on equal terms."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfdlrm.layers.registry import serializable


@serializable
class DenseVectors(keras.layers.Layer):
    """The vector x_j v_j of each dense feature j (Rendle 2010, equation 1: a real-valued feature scales its factors).

    Args:
        embedding_dim: Width d of the vectors.
        seed: Seed of v, drawn from N(0, 0.05^2) as tables with the initializer `"normal"` are. Defaults to `None`.

    Input shape: `[B, n]`, any float dtype.
    Output shape: `[B, n, d]`, in the compute dtype of the layer's policy.

    Raises:
        ValueError: `embedding_dim` is below 1, or the input has another rank.

    Example:
        >>> DenseVectors(4)(tf.ones([2, 3])).shape
        TensorShape([2, 3, 4])
    """

    def __init__(self, embedding_dim: int, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if embedding_dim < 1:
            raise ValueError(f"`embedding_dim` must be at least 1. Received: {embedding_dim}.")
        self.embedding_dim = int(embedding_dim)
        self.seed = seed

    def build(self, input_shape: Any) -> None:
        """Create one vector for each feature."""
        shape = tf.TensorShape(input_shape)
        if shape.rank != 2 or shape[1] is None:
            raise ValueError(f"`inputs` must have shape [B, n] with n known. Received: {shape}.")
        initializer = keras.initializers.RandomNormal(stddev=0.05, seed=self.seed)
        self.vectors = self.add_weight("vectors", [shape[1], self.embedding_dim], initializer=initializer)
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Map `[B, n]` to `[B, n, d]`."""
        return inputs[:, :, tf.newaxis] * self.vectors

    def compute_output_shape(self, input_shape: Any) -> tf.TensorShape:
        """Return `[B, n, d]`."""
        return tf.TensorShape([*tf.TensorShape(input_shape), self.embedding_dim])

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "embedding_dim": self.embedding_dim, "seed": self.seed}
