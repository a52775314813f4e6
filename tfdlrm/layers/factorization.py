"""The pairwise term of a factorization machine."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfdlrm.layers.registry import serializable


@serializable
class FactorizationInteraction(keras.layers.Layer):
    """Sum of the dot products of all pairs of vectors, in linear time (Rendle 2010, lemma 3.1).

    ::

        sum_{i<j} <v_i, v_j>  =  1/2 sum_k ( (sum_i v_ik)^2 - sum_i v_ik^2 )

    Whatever the policy, it computes in float32: the two squares cancel, and few bits of the difference would be left.

    Input shape: `[B, n, d]`, any float dtype.
    Output shape: `[B, 1]`, float32.

    Raises:
        ValueError: the input has another rank.

    Example:
        >>> FactorizationInteraction()(tf.constant([[[1., 2.], [3., 4.]]])).numpy()
        array([[11.]], dtype=float32)
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.pop("autocast", None)
        super().__init__(autocast=False, **kwargs)

    def build(self, input_shape: Any) -> None:
        """Check the shape; there are no weights."""
        if tf.TensorShape(input_shape).rank != 3:
            raise ValueError(f"`inputs` must have shape [B, n, d]. Received: {input_shape}.")
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Map `[B, n, d]` to `[B, 1]`."""
        vectors = tf.cast(inputs, tf.float32)
        square_of_sum = tf.square(tf.reduce_sum(vectors, axis=1))
        sum_of_squares = tf.reduce_sum(tf.square(vectors), axis=1)
        return 0.5 * tf.reduce_sum(square_of_sum - sum_of_squares, axis=1, keepdims=True)

    def compute_output_shape(self, input_shape: Any) -> tf.TensorShape:
        """Return `[B, 1]`."""
        return tf.TensorShape([tf.TensorShape(input_shape)[0], 1])
