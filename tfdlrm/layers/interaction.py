"""Feature interactions: pairwise dot products, or plain concatenation."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfdlrm.layers.registry import serializable
from tfdlrm.layers.triangle import lower_triangle


@serializable
class DotInteraction(keras.layers.Layer):
    """Dot products between every pair of feature vectors (paper, section 2.1.3).

    With T the `[n, d]` matrix of one sample's vectors, Z = T T^T; the output is the strict lower triangle of Z in
    row-major order: (1,0), (2,0), (2,1), (3,0) ... With `self_interaction`, (i,i) ends each row:
    (0,0), (1,0), (1,1), (2,0) ...

    Args:
        self_interaction: Whether the products of a vector with itself are kept. Defaults to `False`.

    Input shape: `[B, n, d]`, or a list of n tensors `[B, d]`; n is at least 2, or 1 with `self_interaction`.
    Output shape: `[B, n (n - 1) / 2]`, or `[B, n (n + 1) / 2]` with `self_interaction`; the dtype is the compute dtype.

    Raises:
        ValueError: the input is neither of the two forms, or the number of vectors is too small or unknown.

    Example:
        >>> DotInteraction()([tf.constant([[1., 2.]]), tf.constant([[3., 4.]])]).numpy()
        array([[11.]], dtype=float32)
    """

    def __init__(self, self_interaction: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.self_interaction = bool(self_interaction)

    def build(self, input_shape: Any) -> None:
        """Check the number of vectors and lay out the constants that pick the triangle."""
        n = self._vectors(input_shape)
        if n < (1 if self.self_interaction else 2):
            raise ValueError(f"`inputs` must hold at least two vectors a sample. Received: shape {input_shape}.")
        self._pick = lower_triangle(n, self.self_interaction)
        super().build(input_shape)

    def call(self, inputs: Any) -> tf.Tensor:
        """Map `[B, n, d]` to the selected products."""
        vectors = inputs if tf.is_tensor(inputs) else tf.stack(list(inputs), axis=1)
        return self._pick(vectors)

    def compute_output_shape(self, input_shape: Any) -> tf.TensorShape:
        """Return `[B, number of pairs]`."""
        n = self._vectors(input_shape)
        batch = input_shape[0][0] if self._is_list(input_shape) else tf.TensorShape(input_shape)[0]
        return tf.TensorShape([batch, n * (n + 1) // 2 if self.self_interaction else n * (n - 1) // 2])

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "self_interaction": self.self_interaction}

    @staticmethod
    def _is_list(shape: Any) -> bool:
        # One shape may itself come as a tuple of numbers.
        return isinstance(shape, (list, tuple)) and bool(shape) and isinstance(shape[0], (tf.TensorShape, list, tuple))

    def _vectors(self, shape: Any) -> int:
        if self._is_list(shape):
            shapes = [tf.TensorShape(s) for s in shape]
            if any(s.rank != 2 for s in shapes) or len({s[1] for s in shapes}) > 1:
                raise ValueError(f"`inputs` must be a list of tensors [B, d] of one width. Received: {shapes}.")
            return len(shapes)
        shape = tf.TensorShape(shape)
        if shape.rank != 3 or shape[1] is None:
            raise ValueError(f"`inputs` must have shape [B, n, d] with n known. Received: {shape}.")
        return int(shape[1])


@serializable
class CatInteraction(keras.layers.Layer):
    """Concatenation of the feature vectors: the paper code's `cat`.

    Input shape: `[B, n, d]`, or a list of n tensors `[B, d]`.
    Output shape: `[B, n d]`.
    """

    def call(self, inputs: Any) -> tf.Tensor:
        """Map `[B, n, d]` to `[B, n d]`."""
        if not tf.is_tensor(inputs):
            return tf.concat(list(inputs), axis=1)
        return tf.reshape(inputs, [-1, inputs.shape[1] * inputs.shape[2]])

    def compute_output_shape(self, input_shape: Any) -> tf.TensorShape:
        """Return `[B, n d]`."""
        if isinstance(input_shape, list):
            return tf.TensorShape([input_shape[0][0], sum(tf.TensorShape(s)[1] for s in input_shape)])
        shape = tf.TensorShape(input_shape)
        return tf.TensorShape([shape[0], shape[1] * shape[2]])
