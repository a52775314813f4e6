"""Signatures on serialized `tf.train.Example`: a probability, two classes with their scores, one number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

EXAMPLES = "tf_examples"
CLASSIFY = "classify"
REGRESS = "regress"

METHODS = {CLASSIFY: "tensorflow/serving/classify", REGRESS: "tensorflow/serving/regress"}
"""What the SignatureDef of these must say; TensorFlow 2 writes `tensorflow/serving/predict` in all."""


def examples_signatures(
    columns: Mapping[str, tf.TensorSpec], score_raw: Callable[[Mapping[str, tf.Tensor]], tf.Tensor]
) -> dict[str, Any]:
    """Return traced functions of `[B]` serialized examples by signature name; they share one graph.

    An example has features named like the raw columns, one float or one string each; a feature that is absent or has
    no kind is missing, and one of a kind without a value is an error. `tf_examples` takes `examples` and gives
    `probability`, float32 `[B, 1]`. `classify` and `regress` take `inputs`, as TensorFlow Serving's calls of these
    names do: `classify` gives `classes`, strings `[B, 2]`, "0" and "1", and `scores`, float32 `[B, 2]`, the
    probability of each; `regress` gives `outputs`, float32 `[B]`.

    Args:
        columns: The raw columns.
        score_raw: Maps them, each `[B]`, to probabilities `[B, 1]`.
    """
    features = {
        column: tf.io.FixedLenFeature([], spec.dtype, "" if spec.dtype == tf.string else float("nan"))
        for column, spec in columns.items()
    }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def score(examples: tf.Tensor) -> tf.Tensor:
        return score_raw(tf.io.parse_example(examples, features))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "examples")], autograph=False)
    def predict(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"probability": score(examples)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")], autograph=False)
    def classify(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        probability = score(inputs)
        classes = tf.tile([["0", "1"]], [tf.shape(probability)[0], 1])
        return {"classes": classes, "scores": tf.concat([1.0 - probability, probability], axis=1)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")], autograph=False)
    def regress(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"outputs": score(inputs)[:, 0]}

    functions = {EXAMPLES: predict, CLASSIFY: classify, REGRESS: regress}
    return {name: function.get_concrete_function() for name, function in functions.items()}
