"""The linear part of a click model: what every id and every number adds to the log-odds by itself."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfdlrm.layers.registry import serializable


@serializable
class LinearTerms(keras.layers.Layer):
    """Sum of looked-up id weights, weighted dense features and a bias (Rendle 2010, equation 1, first two terms).

    ::

        y = b + sum_f a_f + sum_j w_j x_j

    Whatever the policy, it computes in float32: terms of a sum of log-odds are few and cheap. All weights start at 0.

    Inputs: a, or `[a, x]`: id weights a `[B, F, 1]`, as an `EmbeddingCollection` of width 1 returns them, and dense
        features x `[B, n]`.
    Output shape: `[B, 1]`, float32.

    Raises:
        ValueError: the inputs have other shapes.

    Example:
        >>> LinearTerms()(tf.constant([[[1.], [2.]]])).numpy()
        array([[3.]], dtype=float32)
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.pop("autocast", None)
        super().__init__(autocast=False, **kwargs)

    def build(self, input_shape: Any) -> None:
        """Create the bias and, for inputs with dense features, one weight for each."""
        ids, *dense = self._shapes(input_shape)
        if ids.rank != 3 or ids[2] != 1 or len(dense) > 1 or any(shape.rank != 2 for shape in dense):
            raise ValueError(f"`inputs` must have shapes [B, F, 1] and [B, n]. Received: {[ids, *dense]}.")
        self.weight = self._zeros("weight", [dense[0][1], 1]) if dense else None
        self.bias = self._zeros("bias", [1])
        super().build(input_shape)

    def _zeros(self, name: str, shape: list[int]) -> tf.Variable:
        return self.add_weight(name, shape, tf.float32, "zeros", experimental_autocast=False)

    @staticmethod
    def _shapes(shape: Any) -> list[tf.TensorShape]:
        # One shape may itself come as a sequence of numbers.
        several = isinstance(shape, (list, tuple)) and isinstance(shape[0], (list, tuple, tf.TensorShape))
        return [tf.TensorShape(each) for each in (shape if several else [shape])]

    def call(self, inputs: tf.Tensor | list[tf.Tensor]) -> tf.Tensor:
        """Map `[B, F, 1]`, and `[B, n]` beside it, to `[B, 1]`."""
        ids, *dense = [inputs] if tf.is_tensor(inputs) else inputs
        terms = tf.reduce_sum(ids, axis=1)
        for numbers in dense:
            terms += tf.matmul(numbers, self.weight)
        return terms + self.bias

    def compute_output_shape(self, input_shape: Any) -> tf.TensorShape:
        """Return `[B, 1]`."""
        return tf.TensorShape([self._shapes(input_shape)[0][0], 1])
