"""The one contract that every layer keeps, checked the same way for all of them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras


def check_layer_contract(
    layer_class: type,
    config: dict[str, Any],
    inputs: Any,
    tmp_path: Any,
    compute_dtype_follows_policy: bool = True,
) -> None:
    """Check serialization, shapes, mixed precision, gradients, and a save/load round trip of one layer.

    Args:
        layer_class: The class.
        config: Arguments of the constructor.
        inputs: A NumPy array, or a list of them.
        tmp_path: Folder for the saved model.
        compute_dtype_follows_policy: Whether the output takes the policy's compute dtype.
    """
    keras.utils.set_random_seed(1)
    layer = layer_class(**config)
    tensors = tf.nest.map_structure(tf.constant, inputs)
    expected = layer(tensors)

    # Config: JSON values, and the same layer again.
    restored_config = json.loads(json.dumps(layer.get_config()))
    clone = layer_class.from_config(restored_config)
    assert clone.get_config() == layer.get_config()
    clone.build(tf.nest.map_structure(lambda t: t.shape, tensors))
    clone.set_weights(layer.get_weights())
    np.testing.assert_allclose(clone(tensors), expected, rtol=1e-6)
    assert keras.saving.get_registered_name(layer_class) == f"tfdlrm>{layer_class.__name__}"

    # Shapes: what is promised is what comes, eagerly and with an unknown batch size.
    promised = layer.compute_output_shape(tf.nest.map_structure(lambda t: t.shape, tensors))
    assert tuple(promised) == tuple(expected.shape)
    graph = tf.function(lambda x: layer(x)).get_concrete_function(
        tf.nest.map_structure(lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), tensors)
    )
    assert graph.structured_outputs.shape.as_list()[1:] == list(expected.shape)[1:]
    np.testing.assert_allclose(graph(*tf.nest.flatten(tensors)), expected, rtol=1e-5, atol=1e-6)
    single = tf.nest.map_structure(lambda t: t[:1], tensors)
    assert layer(single).shape[0] == 1

    # Mixed precision: variables stay float32, the output takes the compute dtype.
    mixed = layer_class(**{**config, "dtype": keras.mixed_precision.Policy("mixed_bfloat16")})
    out = mixed(tensors)
    assert out.dtype == (tf.bfloat16 if compute_dtype_follows_policy else tf.float32)
    assert all(v.dtype == tf.float32 for v in mixed.trainable_variables)
    mixed.set_weights(layer.get_weights())
    np.testing.assert_allclose(tf.cast(mixed(tensors), tf.float32), expected, rtol=0.05, atol=0.05)

    # Gradients reach every trainable weight.
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(layer(tensors, training=True)))
    gradients = tape.gradient(loss, layer.trainable_variables)
    assert all(g is not None for g in gradients)

    # Save and load inside a functional model, in both Keras formats.
    symbols = tf.nest.map_structure(lambda t: keras.Input(t.shape[1:], dtype=t.dtype), tensors)
    model = keras.Model(symbols, layer(symbols))
    for name in ("model.keras", "saved_model"):
        path = str(tmp_path / name)
        model.save(path)
        loaded = keras.models.load_model(path)
        np.testing.assert_allclose(loaded(tensors), expected, rtol=1e-5, atol=1e-6)
