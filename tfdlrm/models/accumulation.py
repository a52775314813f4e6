"""Gradient accumulation: one batch in several passes, one update."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tf_keras as keras


def accumulated_gradients(
    model: keras.Model, x: Any, y: tf.Tensor, sample_weight: tf.Tensor | None, pieces: int
) -> tuple[list[tf.Tensor | tf.IndexedSlices], tf.Tensor]:
    """Return the gradients of a batch's loss, computed piece by piece, and the predictions.

    Only one piece's activations are in memory at a time. Gradients of embedding rows are kept, not made dense: the
    rows of all pieces come together as those of one large batch would, so that any optimizer takes the same step.

    Args:
        model: A compiled model.
        x: Inputs, a structure of tensors `[B, ...]`.
        y: Labels `[B, 1]`.
        sample_weight: `[B, 1]` or `None`.
        pieces: Passes; a batch of fewer samples takes as many as it has samples.

    Returns:
        One gradient for each of `model.trainable_variables`, and predictions `[B, 1]`.
    """
    samples = tf.shape(y)[0]
    pieces = tf.maximum(1, tf.minimum(pieces, samples))

    def piece(index: tf.Tensor) -> tuple[list[Any], tf.Tensor]:
        start, stop = index * samples // pieces, (index + 1) * samples // pieces
        x_part, y_part = tf.nest.map_structure(lambda t: t[start:stop], (x, y))
        weight_part = None if sample_weight is None else sample_weight[start:stop]
        with tf.GradientTape() as tape:
            predicted = model(x_part, training=True)
            # The loss of a piece is a mean over its samples: it enters the batch's mean with its share of them.
            loss = model.compute_loss(x_part, y_part, predicted, weight_part)
            loss *= tf.cast(stop - start, loss.dtype) / tf.cast(samples, loss.dtype)
            scale = getattr(model.optimizer, "get_scaled_loss", lambda value: value)
            loss = scale(loss)
        gradients = tape.gradient(loss, model.trainable_variables)
        unscale = getattr(model.optimizer, "get_unscaled_gradients", lambda values: values)
        return unscale(gradients), predicted

    # The first piece is outside of the loop: it says which gradients are sparse.
    first, predicted = piece(tf.constant(0))
    shapes = [g.dense_shape if isinstance(g, tf.IndexedSlices) else None for g in first]
    sums = [_as_array(g, pieces) if isinstance(g, tf.IndexedSlices) else g for g in first]
    predictions = tf.TensorArray(predicted.dtype, pieces, infer_shape=False, element_shape=[None, 1])
    predictions = predictions.write(0, predicted)

    def add(index: tf.Tensor, sums: list[Any], predictions: tf.TensorArray) -> tuple[Any, ...]:
        gradients, predicted = piece(index)
        added = [
            tuple(array.write(index, part) for array, part in zip(total, (g.values, g.indices), strict=True))
            if isinstance(g, tf.IndexedSlices)
            else total + g
            for total, g in zip(sums, gradients, strict=True)
        ]
        return index + 1, added, predictions.write(index, predicted)

    _, sums, predictions = tf.while_loop(
        lambda index, *_: index < pieces, add, (tf.constant(1), sums, predictions), parallel_iterations=1
    )
    gradients = [
        total if shape is None else tf.IndexedSlices(total[0].concat(), total[1].concat(), shape)
        for total, shape in zip(sums, shapes, strict=True)
    ]
    return gradients, predictions.concat()


def _as_array(gradient: tf.IndexedSlices, pieces: tf.Tensor) -> tuple[tf.TensorArray, tf.TensorArray]:
    """Return growing lists of rows and of their ids, with the first piece in them."""
    arrays = []
    for part in (gradient.values, gradient.indices):
        shape = [None, *part.shape[1:]]
        array = tf.TensorArray(part.dtype, pieces, infer_shape=False, element_shape=shape)
        arrays.append(array.write(0, part))
    return arrays[0], arrays[1]
